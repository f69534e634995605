"""What a finished run can say beyond its result row: scores of single images, confusion, learning curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segae.errors import SegaeError
from segae.tasks.rows import per_image_rows, read_rows

Rows = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Details:
    """Rows of three tables, each with the columns ``settings`` and ``seed`` that say of which run it is.

    Attributes:
        per_image: for each test image the key columns of ``segae.tasks.rows.per_image_rows``, ``image``, ``miou`` in
            [0, 1] and for each class ``intersection_<class>`` and ``union_<class>`` in pixels.
        confusion: for each pair of classes ``truth``, ``prediction`` and ``pixels``.
        curve: for each epoch ``epoch`` (from 1), ``phase``, ``train_loss``, ``valid_loss`` and ``miou``; the last two
            are of validation images, and empty where there are none.
    """

    per_image: Rows
    confusion: Rows
    curve: Rows


def details_of(run_folder: Path, key: Mapping[str, str]) -> Details:
    """Read the details of one run of a comparison.

    Args:
        run_folder: of the fine-tuning; ``segae evaluate`` wrote into its folder ``test``. A run that was scored on
            validation images has none, and no per-image rows and no confusion.
        key: the run's result row.

    Raises:
        SegaeError: the run is not finished.
    """
    log, scored = run_folder / "log.csv", run_folder / "test"
    if not (run_folder / "metrics.json").exists() or not log.exists():
        raise SegaeError(
            f"{run_folder} holds no finished run: metrics.json and log.csv are wanted. Repeat the command that "
            "began it."
        )
    run = {name: str(key[name]) for name in ("settings", "seed")}
    return Details(
        tuple(per_image_rows(key, read_rows(scored / "per_image.csv"))),
        _confusion(scored / "metrics.json", run),
        tuple(_curve_row(line, run) for line in read_rows(log)),
    )


def _confusion(path: Path, run: Mapping[str, str]) -> Rows:
    if not path.exists():
        return ()
    content = json.loads(path.read_text())
    classes: Sequence[str] = content["classes"]
    return tuple(
        {**run, "truth": truth, "prediction": prediction, "pixels": pixels}
        for truth, counts in zip(classes, content["confusion"], strict=True)
        for prediction, pixels in zip(classes, counts, strict=True)
    )


def _curve_row(line: Mapping[str, str], run: Mapping[str, str]) -> dict[str, Any]:
    names = ("epoch", "phase", "train_loss", "valid_loss", "miou")
    return {**run, **{name: line.get(name, "") for name in names}}
