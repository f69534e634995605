"""The split of a folder data set: from its split files, or by a seeded hash of each name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segae.data.dataset import choose_by_hash
from segae.data.packed import PackedPairs, Pair
from segae.errors import SegaeError

logger = logging.getLogger("segae")

_FILES = {"train": ("trainval.txt", "train.txt"), "test": ("test.txt",)}


def read_splits(root: Path, pairs: Sequence[Pair]) -> dict[str, PackedPairs] | None:
    """Read `trainval.txt` or `train.txt`, and `test.txt`, from the folder or its `annotations/`.

    One name per line, with or without extension; what follows it on the line is ignored. Where only one of
    the two lists is there, the other split is the rest.

    Returns:
        The pairs of "train" and "test" in the order of the lists; None where there is no list.

    Raises:
        SegaeError: a list names an image that is not there or has no mask, or a name stands in both.
    """
    packed = PackedPairs.of(pairs)
    by_name = {name: place for place, name in enumerate(packed.names)}
    train, test = (_read_list(root, files, by_name) for files in _FILES.values())
    if train is None and test is None:
        return None
    if train is None:
        train = [name for name in by_name if name not in set(test or ())]
    if test is None:
        test = [name for name in by_name if name not in set(train)]
    both = sorted(set(train) & set(test))
    if both:
        raise SegaeError(
            f"The split files of {root} list {first_few(both)} for training and for test. Wanted each image "
            f"in one split; correct the files and type the command again."
        )
    unused = len(pairs) - len(train) - len(test)
    if unused:
        logger.warning("%s: %d labelled images are in no split file and are left out", root, unused)
    splits = {"train": train, "test": test}
    return {split: packed.take(by_name[name] for name in names) for split, names in splits.items()}


def hash_split(pairs: Sequence[Pair], test_fraction: float, seed: int) -> dict[str, PackedPairs]:
    """Split by each name's own seeded hash, so that further images never move an image to the other side."""
    packed = PackedPairs.of(pairs)
    train, test = packed.divide(choose_by_hash(packed.names, test_fraction, seed, "test"))
    return {"train": train, "test": test}


def first_few(values: Iterable[object]) -> str:
    """Write the first three values and how many more there are, for an error message."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file of names, without the mark that some editors put in front.

    Raises:
        SegaeError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SegaeError(
            f"{path} is no text in UTF-8 ({error}). Save it as UTF-8 and type the command again."
        ) from error


def _read_list(root: Path, files: Sequence[str], by_name: Mapping[str, int]) -> list[str] | None:
    places = [folder / file for file in files for folder in (root, root / "annotations")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    lines = [line.strip() for line in read_lines(path)]
    names = [_find(line, by_name) for line in lines if line and not line.startswith("#")]
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SegaeError(
            f"{path} lists {len(unknown)} name(s) for which there is no image with a mask: "
            f"{first_few(unknown)}. Wanted names of files in {root / 'images'}, one per line; correct the "
            "list and type the command again."
        )
    if not names:
        raise SegaeError(f"{path} is empty. Wanted one image name per line; fill it or remove it.")
    return list(dict.fromkeys(names))


def _find(line: str, by_name: Mapping[str, int]) -> str:
    """The name meant by a line: names with spaces and names with dots must be tried whole first."""
    first = line.split()[0]
    return next((name for name in (line, Path(line).stem, first) if name in by_name), Path(first).stem)
