"""The scores of one arm: how many pixels of each test image every seed's model got right, read from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segae.errors import SegaeError

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, str]

_INTERSECTION, _UNION = "intersection_", "union_"


@dataclass(frozen=True, eq=False)
class ArmScores:
    """Pixel counts of one arm at one setting: all its seeds, each on the same test images.

    Attributes:
        seeds: names of the S runs.
        images: names of the N test images.
        classes: names of the K classes.
        intersection: int64 (S, N, K), pixels where prediction and truth are both the class.
        union: int64 (S, N, K), pixels where prediction or truth is the class; 0 where the image has nothing of it.

    Raises:
        SegaeError: the shapes do not fit the names, a name is there twice, an intersection is negative or larger
            than its union, or a seed has no pixel at all.

    Example:
        >>> scores = ArmScores((0,), ("a", "b"), ("pet",), np.array([[[1], [2]]]), np.array([[[2], [6]]]))
        >>> scores.miou().tolist(), scores.influence().tolist()
        ([0.375], [[0.4375, 0.3125]])
    """

    seeds: tuple[int, ...]
    images: tuple[str, ...]
    classes: tuple[str, ...]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = (len(self.seeds), len(self.images), len(self.classes))
        if self.intersection.shape != shape or self.union.shape != shape or 0 in shape:
            raise SegaeError(
                f"The counts have the shapes {self.intersection.shape} and {self.union.shape}, but the names say "
                f"{shape}, each at least 1: give one count for every seed, image and class."
            )
        for what, names in (("seed", self.seeds), ("image", self.images), ("class", self.classes)):
            if len(set(names)) < len(names):
                twice = next(name for name in names if list(names).count(name) > 1)
                raise SegaeError(f"The {what} {twice!r} is there twice, but each may count once: leave one out.")
        if (self.intersection < 0).any() or (self.intersection > self.union).any():
            raise SegaeError(
                "An intersection is negative or larger than its union, but it must lie from 0 to the union: "
                "count both at the same resolution."
            )
        empty = [seed for seed, total in zip(self.seeds, self.union.sum(axis=(1, 2)), strict=True) if total == 0]
        if empty:
            raise SegaeError(f"Seed {empty[0]} has no scored pixel, but at least 1 is wanted: evaluate it again.")

    def iou(self) -> NDArray[np.float64]:
        """float64 (S, K): sum of intersections over sum of unions; NaN for a class that a seed has nowhere."""
        return _ratio(self.intersection.sum(axis=1), self.union.sum(axis=1))

    def miou(self) -> NDArray[np.float64]:
        """float64 (S,): the data-set mIoU of each seed, a mean over the classes that it has somewhere."""
        return np.asarray(np.nanmean(self.iou(), axis=-1))

    def influence(self) -> NDArray[np.float64]:
        """What each image adds to its seed's mIoU: float64 (S, N), whose mean over images is exactly ``miou()``.

        A ratio of sums is no mean over images. Its first-order expansion is: image i has the value
        ``IoU_c + N (I_ic - IoU_c U_ic) / sum_j U_jc`` for class c (the infinitesimal jackknife, Efron 1982;
        in survey statistics Woodruff's linearisation of a ratio). The values may leave [0, 1].
        """
        iou_sk = self.iou()
        residual = self.intersection - np.nan_to_num(iou_sk)[:, None] * self.union
        per_class = iou_sk[:, None] + len(self.images) * _ratio(residual, self.union.sum(axis=1)[:, None])
        return np.asarray(np.nanmean(per_class, axis=-1))

    def of_seeds(self, wanted: Sequence[int]) -> ArmScores:
        """The same scores of some of the seeds, in the order given; each must be there."""
        at = [self.seeds.index(seed) for seed in wanted]
        return ArmScores(tuple(wanted), self.images, self.classes, self.intersection[at], self.union[at])

    def matched_to(self, other: ArmScores) -> ArmScores:
        """The same scores with seeds, images and classes in the order of ``other``.

        Raises:
            SegaeError: one of the two has a seed, an image or a class that the other lacks.
        """
        seed = _order("seeds", self.seeds, other.seeds)
        image = _order("images", self.images, other.images)
        kind = _order("classes", self.classes, other.classes)
        pick = np.ix_(seed, image, kind)
        return ArmScores(other.seeds, other.images, other.classes, self.intersection[pick], self.union[pick])


def read_scores(per_image: Path, rows: Sequence[Row]) -> ArmScores:
    """The counts of some finished runs, from the file of single images beside the rows.

    Args:
        per_image: such as ``results/per_image/<experiment>.csv.gz``.
        rows: result rows that differ in nothing but their seeds; ``settings``, ``split`` and ``seed`` are used.

    Returns:
        The scores, seeds in ascending order, images by name.

    Raises:
        SegaeError: the file or its counts are not there, a row has no images in it, or two seeds have not the
            same images and classes.
    """
    if not per_image.exists() or not rows:
        raise SegaeError(
            f"{len(rows)} rows and the file {per_image} are to be read, but at least 1 row and a file that is there "
            "are wanted: run segae bench, which writes both."
        )
    table = _read(per_image, per_image.stat().st_mtime_ns)
    if len({row["seed"] for row in rows}) < len(rows):
        seeds = ", ".join(row["seed"] for row in rows)
        raise SegaeError(f"The rows have the seeds {seeds}, but each may be there once: give the rows of one arm.")
    parts = [_of_run(table, row, per_image) for row in sorted(rows, key=lambda row: int(row["seed"]))]
    first = parts[0]
    for part in parts[1:]:
        part.matched_to(_renamed(first, part.seeds))  # raises where images or classes differ
    return ArmScores(
        seeds=tuple(part.seeds[0] for part in parts),
        images=first.images,
        classes=first.classes,
        intersection=np.concatenate([part.intersection for part in parts]),
        union=np.concatenate([part.union for part in parts]),
    )


@lru_cache(maxsize=1)  # of a page every arm asks for the same file
def _read(path: Path, _written: int) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError) as error:
        raise SegaeError(
            f"{path} cannot be read ({error}). Delete it, and run the benchmark's command again."
        ) from error


def _of_run(table: pd.DataFrame, row: Row, source: Path) -> ArmScores:
    """The counts of one run, images in the order of their names."""
    mine = table[(table["settings"] == row["settings"]) & (table["split"] == row["split"])].sort_values("image")
    if mine.empty:
        raise SegaeError(
            f"{source} has no image of the run {row['settings']} (seed {row['seed']}, split {row['split']}), but its "
            "row is there: remove the row and run the same command again."
        )
    # classes of another data set in the same file are empty here
    classes = tuple(
        name.removeprefix(_UNION) for name in table.columns if name.startswith(_UNION) and (mine[name] != "").all()
    )
    if not classes:
        raise SegaeError(
            f"{source} has no pixel counts (columns {_INTERSECTION}<class> and {_UNION}<class>) of the run "
            f"{row['settings']}; it was written by an older version: run the benchmark again in a new folder."
        )
    return ArmScores(
        seeds=(int(row["seed"]),),
        images=tuple(mine["image"]),
        classes=classes,
        intersection=_counts(mine, [_INTERSECTION + name for name in classes]),
        union=_counts(mine, [_UNION + name for name in classes]),
    )


def _counts(table: pd.DataFrame, columns: list[str]) -> NDArray[np.int64]:
    try:
        return table[columns].to_numpy().astype(np.int64)[None]
    except (KeyError, ValueError) as error:
        raise SegaeError(
            f"The columns {', '.join(columns)} cannot be read as pixel counts ({error}), but whole numbers are "
            "wanted: restore the file, or run the benchmark again in a new folder."
        ) from error


def _renamed(scores: ArmScores, seeds: tuple[int, ...]) -> ArmScores:
    return ArmScores(seeds, scores.images, scores.classes, scores.intersection, scores.union)


def _order(what: str, mine: Sequence[Any], wanted: Sequence[Any]) -> list[int]:
    place = {name: index for index, name in enumerate(mine)}
    odd = sorted(set(mine) ^ set(wanted), key=str)
    if odd:
        shown = ", ".join(map(str, odd[:3])) + (", ..." if len(odd) > 3 else "")
        raise SegaeError(
            f"The {what} differ: {shown} ({len(odd)} in all) have scores on one side only, but pairing wants the same "
            f"{what} on both: run the missing ones, or leave the odd ones out of both."
        )
    return [place[name] for name in wanted]


def _ratio(part: NDArray[Any], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
