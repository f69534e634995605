"""The record of every reading of a test split, beside the model that was scored."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from segae.errors import SegaeError
from segae.tasks.rows import read_rows

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger("segae")

LEDGER = "test_readings.csv"
"""Beside model.safetensors. Starting a run again in its folder keeps it: what was seen cannot be unseen."""


@dataclass(frozen=True)
class Reading:
    """One scoring of a model on test images.

    Attributes:
        date: UTC, to the second.
        weights: fingerprint of the model's tensors; saving the same weights again does not change it.
        model_sha256: of the model's file.
        dataset: its name.
        split_hash: of the test images' names.
        mean: with which images were normalised, one number per channel, separated by spaces.
        std: likewise.
        out: folder of the scores.
    """

    date: str
    weights: str
    model_sha256: str
    dataset: str
    split_hash: str
    mean: str
    std: str
    out: str


def note_reading(
    path: Path,
    model: nn.Module,
    dataset: str,
    names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    out: Path,
) -> None:
    """Add a line to the ledger beside the model's file; to be called before any score is known.

    Where the folder cannot be written to, a warning says so and the scoring goes on.

    Args:
        path: the model's file.
        model: what was loaded from it, on any device.
        dataset: name of the data set.
        names: of the test images.
        mean: per channel, as used on the images that are scored.
        std: likewise.
        out: folder of the scores.
    """
    from segae.data.dataset import split_hash
    from segae.models.weights import fingerprint

    reading = Reading(
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        weights=fingerprint(model.state_dict()),
        model_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        dataset=dataset,
        split_hash=split_hash(names),
        mean=as_text(mean),
        std=as_text(std),
        out=str(out),
    )
    ledger = path.parent / LEDGER
    try:
        with ledger.open("a", newline="", encoding="utf-8") as file:  # one short write: whole or not at all
            writer = csv.DictWriter(file, [field.name for field in fields(Reading)], lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(asdict(reading))
    except OSError as error:
        logger.warning("%s cannot be written (%s): this reading of the test split is not recorded", ledger, error)


def read_readings(folder: Path) -> list[Reading]:
    """The readings recorded in a model's folder, the oldest first; none where there is no ledger.

    Raises:
        SegaeError: the ledger was changed and cannot be read.
    """
    try:
        return [
            Reading(**{field.name: row[field.name] for field in fields(Reading)}) for row in read_rows(folder / LEDGER)
        ]
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise SegaeError(
            f"{folder / LEDGER} is no record of test readings ({error!r}): it was changed or damaged. Put it back as "
            "it was, or make the run again in a new folder."
        ) from error


def as_text(values: Sequence[float]) -> str:
    """Numbers as the ledger holds them, every digit kept."""
    return " ".join(repr(float(value)) for value in values)
