"""Seeded choices of labeled images, and the images that pretraining may see: never those of a test split.

All choices rank the names by a seeded hash: they do not depend on the order of files, the machine or a random state.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from segae._io import check_range
from segae.data.dataset_folders import find_marked_folders, refuse_masks, whole_dataset
from segae.data.datasets import held_out_images
from segae.data.duplicates import find_duplicates
from segae.data.file_lists import Pair, PairList, PathList
from segae.data.folders import IMAGE_FOLDERS, find_images
from segae.data.image_io import few
from segae.data.split_files import choose_by_hash, hash_rank
from segae.errors import DataError

logger = logging.getLogger("segae")

_DEEPEST = 64  # folders that are looked at to tell two files apart


@dataclass(frozen=True)
class ExclusionReport:
    """The images that pretraining may see, and those it must not see, each with the reason."""

    kept: PathList
    excluded: list[tuple[Path, str]]


def label_subset(pairs: Sequence[Pair], count: int | float | None, seed: int) -> PairList:
    """Choose the labeled images of a label budget, in a seeded order.

    For one seed a smaller choice is the beginning of a larger one. Of class folders the choice is stratified: one image
    of each, then equal shares. ``count`` is a number, or a share as a float in (0, 1]; else SegaeError. None takes all.
    """
    packed = PairList.of(pairs)
    if isinstance(count, float):
        check_range("count", count, low=0, high=1, low_open=True)
        count = max(1, round(count * len(packed)))
    elif count is not None:
        check_range("count", count, low=1, high=len(packed), integer=True)
    names = packed.names
    order = np.array(sorted(range(len(packed)), key=lambda place: hash_rank(names[place], seed, "labels")), np.intp)
    if len(packed) and packed.masks[0].is_dir():
        folders = pd.Series([packed.masks[place] for place in order])
        groups = folders.groupby(folders)
        order = order[(groups.cumcount() / groups.transform("size")).argsort(kind="stable")]
    return packed.take(order[:count])


def train_val_split(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[PairList, PairList]:
    """Set about a fraction of the images aside for validation, each by its own name alone; neither part is empty.

    An image is in the validation part whenever its hash is below the fraction, whichever other images are there. So no
    label budget trains on an image that another budget validates on, and a smaller fraction is a part of a larger one.
    The fraction is in [0, 1), and 0 sets nothing aside. Another one, or fewer than two pairs, is a SegaeError. Both
    parts, training and validation, are in the order of ``pairs``.
    """
    packed = PairList.of(pairs)
    chosen = choose_by_hash(packed.names, fraction, seed, "validation")
    held_out = np.array([name in chosen for name in packed.names], bool)
    return packed.take(np.flatnonzero(~held_out)), packed.take(np.flatnonzero(held_out))


def split_hash(names: Iterable[str]) -> str:
    """Fingerprint a set of image names: 16 hexadecimal digits, the same for every order."""
    return hashlib.blake2b("\n".join(sorted(names)).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Name different paths by folder/file, and by more folders only where that does not tell two apart."""
    names = ["/".join(path.parts[-2:]) for path in paths]
    depth = 2
    while (shared := {name for name, count in Counter(names).items() if count > 1}) and depth < _DEEPEST:
        depth += 1
        deeper = ("/".join(path.parts[-depth:]) for path in paths)
        names = [longer if name in shared else name for longer, name in zip(deeper, names, strict=True)]
    return names


def find_pretraining_images(roots: Sequence[Path], *, near_duplicates: bool = True) -> ExclusionReport:
    """Collect the images below the roots (`find_images`) without test images of labeled data sets and their copies.

    Data sets of all layouts, and folders with train/ and test/, are looked for at the given roots and below them; and
    at the parent of a root named ``images``, ``JPEGImages`` or ``leftImg8bit`` (or of a file in such a folder), which
    may be the image folder of a data set. Training images and images without masks stay, unless they repeat a test
    image. The number left out is logged.

    Without ``near_duplicates`` only copies of files are looked for, not those that were resized, mirrored or changed.
    DataError if all images are test images, a root holds the masks of a data set, or its splits cannot be read.
    """
    for root in roots:
        refuse_masks(root)
    packed = find_images(roots)
    if not (test := _test_images(roots)):
        return ExclusionReport(packed, [])
    real = {os.path.realpath(image) for image in test}
    reasons = {path: "is a test image" for path in packed if os.path.realpath(path) in real}
    rest = PathList(path for path in packed if path not in reasons)
    duplicates = find_duplicates(rest, test, near=near_duplicates)
    reasons |= {duplicate.image: f"{duplicate.reason}, a test image" for duplicate in duplicates}
    kept = PathList(path for path in packed if path not in reasons)
    if reasons:
        near, tests = sum(not duplicate.exact for duplicate in duplicates), len(packed) - len(rest)
        kinds = f"{tests} test images, {len(duplicates) - near} copies, {near} near-duplicates of them"
        example = f", such as {duplicates[0]}" if duplicates else ""
        logger.warning("%d of %d images are left out of pretraining: %s%s", len(reasons), len(packed), kinds, example)
    if not kept:
        raise DataError(f"All {len(packed)} images of {few(roots)} are test images. Name another folder.")
    return ExclusionReport(kept, list(reasons.items()))


def _test_images(roots: Iterable[Path]) -> list[Path]:
    """The test images of all data sets that `find_pretraining_images` looks for."""
    folders: dict[str, Path] = {}
    for root in roots:
        top = root.parent if root.is_file() else root
        # as named and as it is: a root may be a link to an image folder
        places = (top.absolute(), Path(os.path.realpath(top)))
        found = [place.parent for place in places if place.name in IMAGE_FOLDERS]
        found += find_marked_folders(root) if root.is_dir() else ()
        for folder in map(whole_dataset, found):
            folders.setdefault(os.path.realpath(folder), folder)
    return [image for folder in sorted(folders.values()) for image in held_out_images(folder)]
