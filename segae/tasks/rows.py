"""Rows of result tables: one finished run each, with everything needed to doubt or repeat it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segae.errors import SegaeError
from segae.files import write_atomically

COLUMNS = (
    "experiment",
    "dataset",
    "split",
    "labels",
    "label_fraction",
    "label_subset",
    "encoder",
    "decoder",
    "init",
    "init_source",
    "transfer",
    "image_size",
    "freeze_epochs",
    "epochs",
    "epoch_images",
    "batch_size",
    "loss",
    "augment",
    "lr",
    "lr_ratio",
    "bn_mode",
    "warmup",
    "recalibrate",
    "fitted_head",
    "precision",
    "micro_batch",
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
    "pretrain_image_size",
    "pretrain_batch_size",
    "pretrain_lr",
    "pretrain_decoder",
    "pretrain_target",
    "pretrain_settings",
    "pretrain_seed",
    "pretrain_seconds",
    "pretrain_energy_wh",
    "pretrain_commit",
    "settings",
    "seconds",
    "energy_wh",
    "device",
    "peak_memory_mb",
    "commit",
    "versions",
    "date",
)
"""The columns of every segmentation row; iou_<class> follows, one for each class.

Rows of early files lack some: there an epoch was the labelled images once, which an empty ``epoch_images`` says too,
the loss was cross_entropy, and images were augmented. ``label_subset`` is a hash of the training images' names,
``precision`` is what was computed in, ``micro_batch`` how many images at once; early rows do not say. ``init_source``
is where the first weights came from; energy in watt-hours is empty where the device reported none.
"""


def make_row(
    *,
    experiment: str,
    split: str,
    run: Mapping[str, Any],
    scores: Mapping[str, float],
) -> dict[str, Any]:
    """One row from a fine-tuning run's metrics.json and its scores on ``split``.

    What the run says of its encoder's pretraining goes into the row; without pretraining these columns are empty.
    """
    none = {name: "" for name in COLUMNS if name.startswith("pretrain_")}
    before = {
        "epoch_images": "",
        "loss": "cross_entropy",
        "augment": 1,
        "precision": "",
        "micro_batch": "",
        "energy_wh": "",
    }  # what a run was that is older than these columns
    own = {"experiment": experiment, "split": split, "label_subset": run["split_hash"]}
    own["init_source"] = first_source(run.get("source", ""))
    known = {**none, **before, **run, **scores, **own}
    classes = sorted(name for name in scores if name.startswith("iou_"))
    return {name: _short(known[name]) for name in (*COLUMNS, *classes)}


def first_source(source: str) -> str:
    """Where the weights came from that the first of a chain of pretrainings began with.

    Args:
        source: of an encoder's description; each pretraining writes in front of it what it did.
    """
    return re.sub(r"^(segae pretrain --objective \S+ from )+", "", source)


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text; none if there is no file.

    Raises:
        SegaeError: it is there and cannot be read.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SegaeError(f"{path} cannot be read as a table of rows ({error}). Wanted a CSV file.") from error


def require_result_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Raise SegaeError where rows that were read from ``path`` are those of another table."""
    needed = {"experiment", "settings", "miou"}
    if missing := needed - set(rows[0] if rows else needed):
        raise SegaeError(
            f"{path} is no table of result rows: it has no column {' and no '.join(sorted(missing))}. Wanted a file "
            "that segae compare or segae bench wrote, or none: choose another --rows."
        )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows atomically; a column that only some rows have is empty in the others."""
    write_atomically(path, lambda file: file.write(_as_csv(rows)))


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")  # a file name may be no text


PIXEL_COUNTS = ("intersection_", "union_")
"""How the columns of one image's pixels begin; a class name follows."""
_PER_IMAGE = ("dataset", "split", "settings", "init", "seed", "labels", "freeze_epochs", "epochs")


def per_image_rows(row: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The scores of single images under the columns that say of which run they are.

    Args:
        row: the run's result row, or as much of it as those columns.
        images: lines of the per_image.csv of ``segae evaluate``: name, miou in [0, 1], and where they exist
            ``intersection_<class>`` and ``union_<class>`` in pixels.
    """
    key = {name: str(row[name]) for name in _PER_IMAGE}
    return [
        {
            **key,
            "image": line["name"],
            "miou": round(float(line["miou"]), 6),
            **{name: int(value) for name, value in line.items() if name.startswith(PIXEL_COUNTS)},
        }
        for line in images
    ]


def add_per_image(path: Path, row: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> None:
    """Add the scores of single images, which paired tests need, to a gzipped CSV file beside the rows.

    Args:
        path: such as ``results/per_image/<experiment>.csv.gz``; scores of the same run in it are replaced.
        row: as in ``per_image_rows``.
        images: as in ``per_image_rows``.
    """
    key = {name: str(row[name]) for name in _PER_IMAGE}
    old = [line for line in read_compressed(path) if any(line[name] != value for name, value in key.items())]
    lines: list[dict[str, Any]] = [*old, *per_image_rows(row, images)]
    write_compressed(path, lines)


def read_compressed(path: Path) -> list[dict[str, str]]:
    """The lines of a gzipped CSV file as text; none if there is no file."""
    if not path.exists():
        return []
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def write_compressed(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a gzipped CSV file atomically; the same lines give the same bytes."""
    write_atomically(path, lambda file: file.write(gzip.compress(_as_csv(lines), mtime=0)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder."""
    return json.loads(path.read_text())


def summary_table(rows: Sequence[dict[str, str]]) -> str:
    """Mean over seeds of what differs in nothing else that is shown, best first, as text columns."""
    shown = ("init", "transfer", "encoder", "decoder", "labels")
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        group = (*(row[name] for name in shown), f"{row['freeze_epochs']} + {row['epochs']}")
        groups.setdefault(group, []).append(row)
    classes = sorted({name for row in rows for name in row if name.startswith("iou_") and row[name]})
    header = [*shown, "epochs", "seeds", "mIoU", *(name.removeprefix("iou_") for name in classes)]
    table = [
        [
            *group,
            str(len(members)),
            *(f"{sum(float(row[name]) for row in members) / len(members):.3f}" for name in ("miou", *classes)),
        ]
        for group, members in groups.items()
    ]
    table.sort(key=lambda line: -float(line[header.index("mIoU")]))
    widths = [max(len(line[column]) for line in [header, *table]) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *table]
    )
