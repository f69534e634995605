"""Rows of result tables: one finished run each, with everything needed to doubt or repeat it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "experiment",
    "dataset",
    "split",
    "labels",
    "label_fraction",
    "encoder",
    "decoder",
    "init",
    "transfer",
    "image_size",
    "freeze_epochs",
    "epochs",
    "batch_size",
    "lr",
    "lr_ratio",
    "bn_mode",
    "seed",
    "miou",
    "dice",
    "pixel_accuracy",
    "per_image_miou",
    "boundary_iou",
    "pretrain_objective",
    "pretrain_dataset",
    "pretrain_images",
    "pretrain_epochs",
    "pretrain_images_seen",
    "seconds",
    "device",
    "peak_memory_mb",
    "commit",
    "versions",
    "date",
)
"""The columns of every segmentation row; iou_<class> follows, one for each class."""


def make_row(
    *,
    experiment: str,
    split: str,
    run: Mapping[str, Any],
    scores: Mapping[str, float],
    pretraining: Mapping[str, Any],
) -> dict[str, Any]:
    """One row from a fine-tuning run's metrics.json, the scores on ``split`` and the encoder's pretraining."""
    known = {**run, **scores, "experiment": experiment, "split": split}
    for name in ("objective", "dataset", "images", "epochs", "images_seen"):
        known[f"pretrain_{name}"] = pretraining.get(name, "")
    classes = sorted(name for name in scores if name.startswith("iou_"))
    return {name: _short(known[name]) for name in (*COLUMNS, *classes)}


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows atomically; a column that only some rows have is empty in the others."""
    from segae.files import write_atomically

    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder."""
    return json.loads(path.read_text())


def summary_table(rows: Sequence[dict[str, str]]) -> str:
    """Mean over seeds of each init and schedule, best first, as text columns."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["init"], f"{row['freeze_epochs']} + {row['epochs']}"), []).append(row)
    classes = sorted({name for row in rows for name in row if name.startswith("iou_") and row[name]})
    header = ["init", "epochs", "seeds", "mIoU", *(name.removeprefix("iou_") for name in classes)]
    table = [
        [
            init,
            schedule,
            str(len(members)),
            *(f"{sum(float(row[name]) for row in members) / len(members):.3f}" for name in ("miou", *classes)),
        ]
        for (init, schedule), members in groups.items()
    ]
    table.sort(key=lambda line: -float(line[3]))
    widths = [max(len(line[column]) for line in [header, *table]) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *table]
    )
