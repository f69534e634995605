"""What would make a benchmark lie, looked for before anything is trained and after each run; each find is an error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segae.bench.same_protocol import require_each_run_once, require_same_protocol, require_same_subsets
from segae.bench.sound_run import require_same_normalisation, require_sound_run
from segae.data.dataset import Pair
from segae.data.near_duplicates import Duplicate, find_duplicates
from segae.data.split_files import first_few
from segae.errors import SegaeError

logger = logging.getLogger("segae")

__all__ = [
    "require_each_run_once",
    "require_no_leak",
    "require_same_normalisation",
    "require_same_protocol",
    "require_same_subsets",
    "require_sound_rows",
    "require_sound_run",
]

Row = Mapping[str, Any]

_NEAR_SHARE = 0.02


def require_no_leak(
    train: Sequence[Pair],
    test: Sequence[Pair],
    pretraining_paths: Sequence[Path] = (),
    *,
    allow_near: bool = False,
    cache_dir: Path | None = None,
) -> list[Duplicate]:
    """Check that no test image is trained on, with or without its mask, whatever the files are called.

    An equal picture (bytes or decoded pixels) is always an error. Near-duplicates are common in collected photographs,
    the official split of Oxford-IIIT Pets has some, and whoever compares with published numbers cannot change it. So
    they are told in a warning as long as they concern at most 2 % of the test images (one is always allowed): if a
    network knew all of these by heart, a mean IoU of 0.7 would rise by 0.006; between seeds it varies by 0.02 from
    random weights and autoencoders (results/pet_sample.csv). Above that they are an error, unless the caller allows
    them. ``segae.data.near_duplicates.without_duplicates`` takes them out of a list of unlabelled images.

    Args:
        train: labelled training images.
        test: test images.
        pretraining_paths: files that pretraining sees.
        allow_near: near-duplicates are only told, however many there are.
        cache_dir: where hashes are remembered; the user's cache when None.

    Returns:
        The near-duplicates that were let through.

    Raises:
        SegaeError: a test image is among the others, or there are too many near-duplicates.
    """
    references = [pair.image for pair in test]
    near: dict[Path, Duplicate] = {}
    for stage, images in (("training", [pair.image for pair in train]), ("pretraining", list(pretraining_paths))):
        found = find_duplicates(images, references, cache_dir)
        if exact := [duplicate for duplicate in found if duplicate.exact]:
            raise SegaeError(
                f"{len(exact)} of {len(images)} {stage} images are test images: {first_few(exact)}. A test image must "
                f"be seen in no training; move these files out of the {stage} images or take the others out of the "
                "test split, then type the command again."
            )
        near |= {duplicate.image: duplicate for duplicate in found}
    touched = {duplicate.of for duplicate in near.values()}
    if not touched:
        return []
    told = (
        f"{len(touched)} of {len(test)} test images have near-duplicates among the {len(train)} training and "
        f"{len(pretraining_paths)} pretraining images: {first_few(near.values())}"
    )
    if len(touched) > max(1, int(_NEAR_SHARE * len(test))) and not allow_near:
        raise SegaeError(
            f"{told}. Scores would partly measure memory; at most {_NEAR_SHARE:.0%} of the test images are let "
            "through. Take the copies out of one side, or put all copies of one picture into the same split (train.txt "
            "and test.txt), then type the command again; --allow-near-duplicates lets them through."
        )
    logger.warning("%s", told)
    return list(near.values())


def require_sound_rows(rows: Iterable[Row]) -> None:
    """Check finished rows: the same labelled images, protocol and steps for all arms, and each run once.

    Raises:
        SegaeError: see ``segae.bench.same_protocol``.
    """
    rows = list(rows)
    require_each_run_once(rows)
    require_same_subsets(rows)
    require_same_protocol(rows)
