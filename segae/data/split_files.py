"""Which image is in which split: text files of names, folders called train, val and test, or a seeded hash."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from segae._io import check_range
from segae.data.folders import SPLIT_FOLDERS, read_lines
from segae.data.image_io import few
from segae.errors import DataError

_LISTS = ("train", "trainval", "val", "test")

HASH = "a hash of the names"
"""The origin of splits that nothing in a folder decides."""


def split_names(
    root: Path, names: Collection[str], test_fraction: float = 0.2, seed: int = 0
) -> tuple[dict[str, list[str]], str]:
    """Divide names into splits by lists in a folder, else by subfolders, else by a hash; see `SegmentationFolder`.

    Returns the splits and in words what decided.
    """
    listed = read_lists(root, names)
    origin = [str(file.relative_to(root)) for file in find_lists(root)]
    known = {name for members in listed.values() for name in members}
    rest = [name for name in names if name not in known]
    folders = {SPLIT_FOLDERS.get(name.partition("/")[0].lower() if "/" in name else "") for name in names}
    if not listed and None not in folders and "train" in folders and len(folders) > 1:
        for name in names:
            listed.setdefault(SPLIT_FOLDERS[name.partition("/")[0].lower()], []).append(name)
        rest, origin = [], [f"folders {', '.join(sorted({name.partition('/')[0] for name in names}))}"]
    if "train" not in listed and "test" not in listed:
        test = choose_by_hash(rest, test_fraction, seed, "test")
        listed["train"], rest = [name for name in rest if name not in test], [name for name in rest if name in test]
        origin.append(HASH)
    return {"train": rest, "test": rest} | listed, ", ".join(origin)


def read_lists(root: Path, names: Collection[str] | None = None) -> dict[str, list[str]]:
    """Names in the split files that are there; ``names`` are those that may be in them, any where it is None."""
    listed = {split: read_list(root, split, names) for split in _LISTS}
    listed = {split: members for split, members in listed.items() if members}
    trainval, val = listed.pop("trainval", None), set(listed.get("val", ()))
    if trainval and not (val and "train" in listed):
        listed["train"] = [name for name in trainval if name not in val]
    require_disjoint(root, listed)
    return listed


def require_disjoint(root: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError if a name is in two splits."""
    seen: dict[str, str] = {}
    for split, names in splits.items():
        if both := [name for name in names if name in seen]:
            raise DataError(f"{root} lists {few(both)} for {seen[both[0]]} and for {split}. Correct its split files.")
        seen |= dict.fromkeys(names, split)


def find_lists(root: Path, splits: Sequence[str] = _LISTS) -> list[Path]:
    """The split files that are there, in the folder or else in its ``annotations``."""
    both = ([root / f"{split}.txt", root / "annotations" / f"{split}.txt"] for split in splits)
    return [path for paths in both for path in [path for path in paths if path.is_file()][:1]]


def read_list(root: Path, split: str, names: Collection[str] | None = None) -> list[str]:
    """Names in a split file in the folder or in its ``annotations``; none where there is no file."""
    if not (files := find_lists(root, [split])):
        return []
    path = files[0]
    found = [line.split()[0] if names is None else _find(line, names) for line in read_lines(path)]
    if unknown := [name for name in found if names is not None and name not in names]:
        raise DataError(f"{path} lists {len(unknown)} name(s) without an image and a mask: {few(unknown)}. Correct it.")
    return list(dict.fromkeys(found))


def _find(line: str, names: Collection[str]) -> str:
    """The name meant by a line: names with spaces and names with dots must be tried whole first."""
    first = line.split()[0]
    bare = (line, Path(line).stem, first, line.removesuffix(Path(line).suffix), first.removesuffix(Path(first).suffix))
    return next((name for name in bare if name in names), Path(first).stem)


def choose_by_hash(names: Sequence[str], fraction: float, seed: int, purpose: str) -> frozenset[str]:
    """Choose about a fraction of unique names, each by its own seeded hash; at least one, and never all.

    Further names never change the choice among the first ones, a smaller fraction is a part of a larger one, and
    choices for another ``purpose`` are independent. The fraction is in [0, 1); another one, or one above 0 of fewer
    than two names, is a SegaeError.
    """
    check_range("fraction", fraction, low=0, high=1, high_open=True)
    if fraction == 0:
        return frozenset()
    if len(names) < 2:
        raise DataError(f"{len(names)} image(s) cannot be divided into training and {purpose} images: add some")
    rank = partial(hash_rank, seed=seed, purpose=purpose)
    chosen = {name for name in names if rank(name)[0] < fraction * 2**64} or {min(names, key=rank)}
    return frozenset(chosen if len(chosen) < len(names) else chosen - {max(names, key=rank)})


def hash_rank(name: str, seed: int, purpose: str) -> tuple[int, str]:
    """A pseudo-random 64-bit number of a name, and the name, to sort by."""
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big"), name
