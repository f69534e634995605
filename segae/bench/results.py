"""Result tables: one row per finished run, read with every error located, and merged atomically."""

import gzip
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from segae._io import cache_dir, read_json, write_atomically
from segae.bench.statistics import PixelCounts
from segae.errors import DataError

_SCORES = ("miou", "dice", "pixel_accuracy", "per_image_miou", "boundary_iou", "miou_without_border")
COLUMNS = (
    *("experiment", "dataset", "split", "labels", "label_fraction", "label_subset", "encoder", "decoder"),
    *("weights", "weights_source", "weights_file", "method", "method_args", "method_family", "transfer"),
    *("finetuning", "image_size", "freeze_epochs", "epochs", "epoch_images", "steps", "batch_size", "loss", "augment"),
    *("lr", "lr_ratio", "bn_mode", "warmup", "recalibrate", "lpft_head", "precision", "seed"),
    *("finetune_settings", *_SCORES),
    *("pretrain_dataset", "pretrain_images", "pretrain_images_seen", "pretrain_epochs", "pretrain_image_size"),
    *("pretrain_batch_size", "pretrain_lr", "pretrain_decoder", "pretrain_settings", "pretrain_seed"),
    *("pretrain_seconds", "pretrain_energy_wh", "pretrain_commit"),
    *("run_id", "seconds", "energy_wh", "device", "peak_memory_mb", "commit", "versions", "date"),
)
"""Columns of a segmentation row; one ``iou_<class>`` per class follows.

Sizes are the side of a square, or height x width such as 192x256. An empty ``epoch_images`` is each labeled image
once; ``method_args`` and the columns of settings are JSON, the latter of what has no column and differs from the
defaults; ``label_subset`` is a hash of the names of the training images; ``weights_file`` is the file or published name
of an encoder that the benchmark did not train itself.
"""
DETAILS = ("per_image", "confusion", "curves")
"""Tables of :func:`details_path`, several lines per run, keyed by run_id."""

_TEXTS = ("experiment", "dataset", "encoder", "decoder", "weights", "run_id")
_INTEGERS = ("labels", "epochs", "seed", "freeze_epochs")
_ABSENT = {"split": "test", "transfer": "encoder", "finetuning": "supervised", "freeze_epochs": "0"}
_AUGMENTATIONS = {"": "default", "1": "default", "0": "none"}  # of rows that have no name of one
_NUMBERS = (
    *("label_fraction", "epoch_images", "steps", "batch_size", "lr", "lr_ratio", "warmup"),
    *("pretrain_images", "pretrain_images_seen", "pretrain_epochs", "pretrain_batch_size"),
    *("pretrain_lr", "pretrain_seed", "pretrain_seconds", "pretrain_energy_wh", "seconds", "energy_wh"),
    *("peak_memory_mb", "epoch", "train_loss", "valid_loss", "pixels"),
)
_SIZES = ("image_size", "pretrain_image_size")
_COUNTS = ("intersection_", "union_")


def run_id(config: Mapping[str, Any]) -> str:
    """Identify a run by its settings: 16 hexadecimal digits of the SHA-256 of the sorted JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_rows(path: Path, *, experiment: str | None = None) -> pd.DataFrame:
    """Read segmentation rows, all or those of one study: numbers as numbers, an empty cell of text as "".

    The DataError of rows or columns that are missing, or a cell out of range, names file, row and column.
    """
    table = _read_text(path)
    if absent := [name for name in (*_TEXTS, *_INTEGERS[:3], "miou") if name not in table]:
        raise DataError(f"{path} lacks the columns {', '.join(absent)} of segmentation rows")
    usual = dict.fromkeys(COLUMNS, "") | _ABSENT
    table = table.assign(**{name: value for name, value in usual.items() if name not in table})
    table["augment"] = table["augment"].replace(_AUGMENTATIONS)
    if table.empty:
        raise DataError(f"{path} has no rows: run a benchmark first")
    for name in (*_TEXTS, "miou"):
        _require(table[name] != "", table[name], path, "must not be empty")
    for name in _SIZES:
        _require(
            table[name].str.fullmatch(r"\d+(x\d+)?|"), table[name], path, "must be a side in pixels, or such as 192x256"
        )
    rows = _parse_numbers(table, path)
    if experiment is None:
        return rows
    known = ", ".join(sorted(set(rows["experiment"])))
    rows = rows[rows["experiment"] == experiment].reset_index(drop=True)
    if rows.empty:
        raise DataError(f"experiment must be one of {known} in {path}, got {experiment!r}")
    return rows


def details_path(rows_csv: Path, experiment: str, kind: str) -> Path:
    """Path of a table beside the rows: per_image, confusion, curves or near_duplicates."""
    return rows_csv.parent / kind / f"{experiment}.csv.gz"


def read_details(rows_csv: Path, experiment: str, kind: str) -> pd.DataFrame | None:
    """Read a table beside the rows; None if there is none. Errors name file, row and column."""
    path = details_path(rows_csv, experiment, kind)
    if not path.exists():
        return None
    table = _read_text(path)
    if kind in DETAILS and "run_id" not in table:
        raise DataError(f"{path} lacks the column run_id: delete it and run the benchmark again")
    return _parse_numbers(table, path)


def pixel_counts(per_image: pd.DataFrame, rows: pd.DataFrame) -> PixelCounts:
    """Collect the pixel counts of runs that differ in nothing but their seeds: seeds ascending, images by name.

    ``per_image`` has ``run_id``, ``image`` and, for each class, ``intersection_<class>`` and ``union_<class>``; of the
    runs' ``rows``, ``run_id``, ``split`` and ``seed`` are used. A run without counts, or with other images or classes
    than another seed, is a DataError.
    """
    rows = rows.sort_values("seed")
    parts: list[pd.DataFrame] = []
    for run, split in zip(rows["run_id"], rows["split"], strict=True):
        mine = per_image[per_image["run_id"] == run]
        mine = mine[mine["split"] == split] if "split" in mine else mine
        mine = mine.set_index("image").filter(regex=f"^({'|'.join(_COUNTS)})").sort_index()
        mine = mine.dropna(axis="columns", how="all")  # classes of another data set in the same table
        if mine.empty or mine.isna().to_numpy().any():
            raise DataError(f"per_image must have pixel counts of every run and image, got none of run {run}")
        parts.append(mine)
        if not (mine.columns.equals(parts[0].columns) and mine.index.equals(parts[0].index)):
            raise DataError(f"per_image must have the same images and classes for all seeds, got others for run {run}")
    classes = [name[len(_COUNTS[1]) :] for name in map(str, parts[0]) if name.startswith(_COUNTS[1])]
    columns = [[prefix + name for name in classes] for prefix in _COUNTS]
    intersection, union = (np.stack([mine[names].to_numpy(np.int64) for mine in parts]) for names in columns)
    return PixelCounts(tuple(map(int, rows["seed"])), tuple(parts[0].index), tuple(classes), intersection, union)


def collect_details(run_folder: Path, key: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Read what a run, of the row ``key``, wrote beyond its scores, as lines of the tables in ``DETAILS``.

    It left log.csv in its folder and, where it was scored, test/per_image.csv and test/metrics.json.
    """
    run = {name: key[name] for name in ("run_id", "seed")}
    paths = (run_folder / "test" / "per_image.csv", run_folder / "log.csv")
    tables = [_read_text(path) if path.exists() else pd.DataFrame() for path in paths]
    images, log = (table.rename(columns={"name": "image"}).to_dict("records") for table in tables)
    metrics = read_json(run_folder / "test" / "metrics.json") or {}
    classes, pixels = metrics.get("classes", []), np.ravel(metrics.get("confusion", [])).tolist()
    cells = zip(itertools.product(classes, repeat=2), pixels, strict=False)
    columns = ("epoch", "phase", "train_loss", "valid_loss", "miou")
    return {
        "per_image": [{"dataset": key["dataset"], "split": key["split"], **run, **line} for line in images],
        "confusion": [{**run, "truth": true, "prediction": found, "pixels": count} for (true, found), count in cells],
        "curves": [{**run, **{name: line.get(name, "") for name in columns}} for line in log],
    }


def merge_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, key: Sequence[str] = ("experiment", "run_id")) -> None:
    """Add rows to a CSV file, in place of those with the same key (run_id for ``DETAILS``), under a lock."""
    new = [{name: _cell(value) for name, value in row.items()} for row in rows]
    lock = cache_dir() / "locks" / f"{run_id({'path': path.resolve()})}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        old = _read_text(path).to_dict("records") if path.exists() else []
        replaced = {tuple(row.get(name, "") for name in key) for row in new}
        kept = [row for row in old if tuple(row.get(name, "") for name in key) not in replaced]
        write_table(path, [*kept, *new])


def write_table(path: Path, rows: Sequence[Mapping[Any, Any]]) -> None:
    """Write rows as CSV, gzipped if the name ends with .gz, atomically; the same rows give the same bytes."""
    table = pd.DataFrame(rows, dtype=object)
    first = [name for name in COLUMNS if name in table] if "experiment" in table else []
    text = table[[*first, *table.columns.difference(first, sort=False)]].to_csv(index=False, lineterminator="\n")
    content = text.encode("utf-8", "backslashreplace")  # a file name may be no text
    write_atomically(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.6g}"
    if isinstance(value, bool | dict):
        return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(int(value))
    return "" if value is None else str(value)


def _read_text(path: Path) -> pd.DataFrame:
    """A CSV file as text: a hash may look like a number, and a class may be called NA."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV table: {error}") from error


def _parse_numbers(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    numbers: dict[str, pd.Series] = {}
    for column in map(str, table):
        score = column in _SCORES or column.startswith("iou_")
        if not (score or column in (*_INTEGERS, *_NUMBERS) or column.startswith(_COUNTS)):
            continue
        empty = table[column] == ""
        values = pd.to_numeric(table[column].where(~empty, "nan"), errors="coerce")
        finite = pd.Series(np.isfinite(values), index=table.index)
        _require(finite | empty, table[column], path, "must be a finite number")
        if column in _INTEGERS:
            _require(finite & (values % 1 == 0) & (values >= 0), table[column], path, "must be an integer >= 0")
            values = values.astype(np.int64)
        elif score:
            _require(values.between(0, 1) | empty, table[column], path, "must be in [0, 1]")
        numbers[column] = values
    return table.assign(**numbers)


def _require(fits: pd.Series, column: pd.Series, path: Path, condition: str) -> None:
    if not fits.all():
        place = int(np.argmin(fits.to_numpy()))
        raise DataError(f"{path}, row {place + 2}, column {column.name}: {condition}, got {column.iloc[place]!r}")
