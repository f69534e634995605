"""What a labelled data set is, and the seeded choices made from it: label budgets and validation images.

All choices rank the names by a seeded hash, so they do not depend on the order of the files, on the machine
or on any random state.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segae.data.packed import PackedPairs, Pair
from segae.errors import SegaeError

__all__ = [
    "Pair",
    "SegmentationData",
    "choose_by_hash",
    "names_apart",
    "split_hash",
    "split_off_validation",
    "take_labels",
]

_DEEPEST = 64  # folders that are looked at to tell two files apart


@dataclass(frozen=True)
class SegmentationData:
    """A labelled data set: where the files are, what the classes are called, which image is in which split.

    Attributes:
        name: short name of the data set, for tables.
        root: its folder.
        classes: names, in the order of the class indices.
        palette: one RGB colour (0..255) per class.
        mask_values: the raw value in a mask file of each class; its position is the class index. A class that was
            merged out of several has all their values, as a tuple.
        splits: "train" and "test", disjoint; kept as ``PackedPairs``.
        missing: number of names that a split file lists and that are not on the disk.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mask_values: tuple[int | tuple[int, ...], ...]
    splits: Mapping[str, Sequence[Pair]]
    missing: int = 0

    def __post_init__(self) -> None:
        packed = {split: PackedPairs.of(pairs) for split, pairs in self.splits.items()}
        object.__setattr__(self, "splits", packed)


def split_hash(names: Iterable[str]) -> str:
    """Fingerprint a set of image names, so that a result can say which images it rests on.

    Returns:
        16 hexadecimal digits, the same for every order of the names.
    """
    return hashlib.blake2b("\n".join(sorted(names)).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def take_labels(pairs: Sequence[Pair], count: int | None, seed: int) -> PackedPairs:
    """Choose the labelled images of a label budget.

    For one seed the budgets are nested: a smaller choice is the beginning of a larger one, so a curve over
    budgets adds images and never swaps them.

    Args:
        pairs: the training images.
        count: how many to take; None takes all.
        seed: another seed, another choice.

    Raises:
        SegaeError: count is below 1 or above the number of pairs.
    """
    if count is not None and not 1 <= count <= len(pairs):
        raise SegaeError(
            f"{count} labelled images were asked for, and the training split has {len(pairs)}. "
            f"Wanted a number from 1 to {len(pairs)}; leave the number out to take all."
        )
    packed = PackedPairs.of(pairs)
    return packed.take(sorted(range(len(packed)), key=lambda place: _rank(packed.names[place], seed, "labels"))[:count])


def split_off_validation(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[PackedPairs, PackedPairs]:
    """Set validation images aside, each by its own name alone.

    An image is in the validation part whenever its hash is below the fraction, whichever other images are
    there. So no label budget trains on an image that another budget validates on, and a smaller fraction is a
    part of a larger one. The size is therefore near the fraction, not exactly at it; neither part is empty.

    Args:
        pairs: the training images.
        fraction: share to set aside, in [0, 1); 0 sets nothing aside.
        seed: another seed, another choice.

    Returns:
        (train, validation), both in the order of `pairs`.

    Raises:
        SegaeError: the fraction is outside [0, 1), or is above 0 with fewer than two pairs.
    """
    packed = PackedPairs.of(pairs)
    chosen = choose_by_hash(packed.names, fraction, seed, "validation")
    return packed.divide(chosen)


def choose_by_hash(names: Sequence[str], fraction: float, seed: int, purpose: str) -> frozenset[str]:
    """Choose about a fraction of the names, each by its own seeded hash; at least one, and never all.

    Args:
        names: unique names.
        fraction: in [0, 1).
        seed: another seed, another choice.
        purpose: a word mixed into the hash, so that choices for different purposes are independent.

    Raises:
        SegaeError: the fraction is outside [0, 1), or is above 0 with fewer than two names.
    """
    if not 0 <= fraction < 1:
        raise SegaeError(f"The {purpose} fraction is {fraction}. Wanted a number from 0 to below 1, such as 0.2.")
    if fraction == 0:
        return frozenset()
    if len(names) < 2:
        raise SegaeError(
            f"{len(names)} image(s) cannot be divided into training and {purpose} images. Wanted two or more; add "
            f"some, or keep none apart: --val-fraction 0."
        )
    ranked = sorted(names, key=lambda name: _rank(name, seed, purpose))
    below = sum(_rank(name, seed, purpose)[0] < fraction * 2**64 for name in ranked)
    return frozenset(ranked[: min(max(below, 1), len(ranked) - 1)])


def _rank(name: str, seed: int, purpose: str) -> tuple[int, str]:
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big"), name


def names_apart(paths: Sequence[Path]) -> list[str]:
    """A name for each of different paths: folder/file, with as many folders above as tell it from the others.

    Names do not depend on where a data set lies, unless two files share every name below.
    """
    names = ["/".join(path.parts[-2:]) for path in paths]
    depth = 2
    while (shared := {name for name, count in Counter(names).items() if count > 1}) and depth < _DEEPEST:
        depth += 1
        names = [
            "/".join(path.parts[-depth:]) if name in shared else name for path, name in zip(paths, names, strict=True)
        ]
    return names
