"""Rows of results/throughput_<device>.csv, which all scripts of this folder write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from segae.tasks.rows import read_rows, write_rows
from segae.training.provenance import provenance

RESULTS = Path(__file__).resolve().parent.parent / "results"
KEY = ("task", "encoder", "image_size", "batch_size", "data_path", "system", "metric", "device")


def save(
    device: torch.device,
    cell: Mapping[str, Any],
    values: Iterable[tuple[str, str, float]],
    path: Path | None = None,
) -> None:
    """Write rows; what the same script has measured before on the same hardware is replaced.

    Args:
        device: where it was measured.
        cell: task, encoder, image_size, batch_size and data_path.
        values: (system, metric, value).
        path: the CSV file; None takes the one of the device in results/.
    """
    target = RESULTS / f"throughput_{device.type}.csv" if path is None else path
    source = provenance(device)
    new: list[dict[str, Any]] = [
        {**cell, "system": system, "metric": metric, "value": round(value, 4), **source}
        for system, metric, value in values
    ]
    replaced = {_key(row) for row in new}
    write_rows(target, [*(row for row in read_rows(target) if _key(row) not in replaced), *new])
    print(f"{len(new)} rows in {target}")


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)
