"""Rows of results/throughput_<device>.csv, which all scripts of this folder write."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from segae.tasks.rows import read_rows, write_rows
from segae.training.provenance import provenance

RESULTS = Path(__file__).resolve().parent.parent / "results"
KEY = ("benchmark", "task", "encoder", "image_size", "batch_size", "data_path", "beside", "system", "metric", "device")
PACKAGES = ("torchvision", "pillow", "opencv-python-headless", "opencv-python", "lightly", "accelerate")
"""What can change a speed besides those that decide a number."""


def save(
    device: torch.device,
    cell: Mapping[str, Any],
    values: Iterable[tuple[str, str, float | Sequence[float]]],
    path: Path | None = None,
    *,
    benchmark: str,
    settings: str,
) -> None:
    """Write rows; what the same script has measured before of the same cell on the same hardware is replaced.

    Args:
        device: where it was measured.
        cell: task, encoder, image_size, batch_size, data_path (how the system gets its images), and beside (the data
            path of segae in whose turns it was timed; None: the same).
        values: (system, metric, value); of several values, one for each round, the median counts, and the lowest and
            the highest stand beside it.
        path: the CSV file; None takes the one of the device in results/.
        benchmark: name of the script.
        settings: what else was chosen, in words: images in an epoch, rounds, workers, kind of pictures.
    """
    target = RESULTS / f"throughput_{device.type}.csv" if path is None else path
    source = provenance(device, code=("segae", "benchmarks"))
    source["versions"] = "; ".join([source["versions"], *_more_versions()])
    base = {"benchmark": benchmark, **cell, "beside": cell.get("beside") or cell["data_path"]}
    new = [{**base, "system": system, "metric": name, **_summary(value)} for system, name, value in values]
    new = [{**row, "settings": settings, **source} for row in new]
    replaced = {_key(row) for row in new}
    write_rows(target, [*(row for row in read_rows(target) if _key(row) not in replaced), *new])
    print(f"{len(new)} rows in {target}")


def _summary(value: float | Sequence[float]) -> dict[str, Any]:
    if isinstance(value, Sequence):
        lowest, highest = (round(one, 4) for one in (min(value), max(value)))
        return {"value": round(statistics.median(value), 4), "lowest": lowest, "highest": highest}
    return {"value": round(value, 4), "lowest": "", "highest": ""}


def _more_versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in KEY)
