"""Look at a folder before training: what it holds, what a training would refuse, and the settings that fit."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from segae.data.cache import remember_facts
from segae.data.color_tables import COLOR_TABLES
from segae.data.dataset_folders import UnknownLayout, refuse_masks
from segae.data.datasets import SegmentationDataset, count_values, find_images, open_dataset
from segae.data.duplicates import find_duplicates, hash_images
from segae.data.file_lists import Pair, PairList
from segae.data.formats import find_layouts
from segae.data.image_io import SkippedFiles, UnreadableImage, few, image_header, image_size
from segae.data.report import UNKNOWN, UNLABELED, DataReport, Problem, count
from segae.errors import DataError

_RARE = 20  # the largest class over the smallest, from which on weights are advised
_ALL = "all"  # the one split of a data set that cannot be read


def check_folder(root: Path, **reading: Any) -> DataReport:
    """Look at a labeled data set or at a folder of unlabeled images; ``reading`` are the settings of `open_dataset`.

    Every image is decoded once, and what was seen is remembered, so that a second call is fast. Problems are collected.
    DataError if the folder is missing, is an archive, holds no image, or holds the masks of a data set.
    """
    refuse_masks(root)
    check = _Check(root)
    try:
        dataset = open_dataset(root, **reading)
    except UnknownLayout as error:
        return check.look_at_unlabeled(error)
    except DataError as error:
        if not root.is_dir() or not _files(root):
            raise
        check.add(str(error), refused=True)
        given = reading.get("layout", "auto")
        layouts = find_layouts(root) if given == "auto" else [given]
        layout = layouts[0] if len(layouts) == 1 else UNKNOWN
        colored = reading.get("colors") or any((root / name).is_file() for name in COLOR_TABLES)
        # masks of several layouts, and those of colors, have no values to compare
        pairs = PairList() if layout == UNKNOWN or colored else _match_by_name(root)
        dataset = SegmentationDataset(
            root.resolve().name, root, (), (), (), {_ALL: pairs} if pairs else {}, layout=layout
        )
    return check.look_at_labeled(dataset)


class _Mask(NamedTuple):
    """What was seen of a mask: pixels by value, and its height and width; empty where it cannot be read."""

    counts: dict[int, int]
    size: tuple[int, ...]


class _Check:
    """The problems of a folder, collected on the way."""

    def __init__(self, root: Path) -> None:
        self.root, self.problems, self.unreadable = root, list[Problem](), SkippedFiles()

    def add(self, found: str, advice: str = "", files: Sequence[Path] = (), *, refused: bool = False) -> None:
        """Note a problem."""
        self.problems.append(Problem(found.rstrip("."), advice, refused, self.names(files)))

    def names(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Names of files below the folder."""
        return tuple(
            str(file.relative_to(self.root)) if file.is_relative_to(self.root) else str(file) for file in files
        )

    def look_at_unlabeled(self, why: UnknownLayout) -> DataReport:
        """Check images without masks; a labeled data set at hand is named."""
        images = find_images([self.root])
        if why.datasets:
            self.add(str(why))
        looks = self.look_at_images(images)
        duplicates = [(one.image, "", one.kind, one.of, "") for one in find_duplicates(images)]
        if duplicates:
            advice = "Remove copies, or training sees these pictures more often than others"
            self.add(
                f"{count('image', len(duplicates))} like another one", f"{advice}.", [row[0] for row in duplicates]
            )
        self.add_unreadable(images)
        return self.report(UNLABELED, {"unlabeled": images}, duplicates, looks, {"datasets": why.datasets})

    def look_at_labeled(self, dataset: SegmentationDataset) -> DataReport:
        """Check images with their masks; without classes, as of a layout that cannot be read, values are classes."""
        known, splits = bool(dataset.classes), dataset.splits
        pairs = PairList(pair for one in splits.values() for pair in one)
        looks = self.look_at_images(pairs.images)
        masks = dict(zip(map(str, pairs.masks), self.look_at_masks(pairs), strict=True))
        self.compare_sizes(pairs, looks, masks)
        more: dict[str, Any] = self.look_for_others(pairs) if pairs else {}
        if dataset.missing:
            self.add(
                f"{count('name', dataset.missing)} in the split files and not on the disk",
                "Add the files, or go on without.",
            )
        if known:
            self.check_values(dataset, pairs, masks)
            self.check_splits(splits)
        classes, more["ignored"] = _class_shares(dataset, masks)
        if known:
            more["unbalanced"] = self.check_classes(dataset, classes)
        duplicates = self.find_leaks(splits)
        self.add_unreadable((splits.get("train", pairs) if known else pairs).images)
        more |= {"classes": classes, "palette": dataset.palette, "dataset": dataset if known else None}
        more["split_origin"] = dataset.split_origin
        return self.report(dataset.layout, splits, duplicates, looks, more)

    def report(self, layout: str, splits: Any, duplicates: list[Any], looks: list[Any], more: Any) -> DataReport:
        """Put everything into tables."""
        readable = [look for look in looks if look]
        by_area = sorted(readable, key=lambda look: look[0] * look[1])
        places = {"smallest": 0, "median": len(by_area) // 2, "largest": -1} if by_area else {}
        sizes = [(name, by_area[place][1], by_area[place][0]) for name, place in places.items()]
        kinds = pd.DataFrame([look[2:] for look in readable], columns=["channels", "bits"])
        formats = kinds.value_counts().rename("images").reset_index()
        copies = [
            (*self.names([one]), split, kind, *self.names([of]), other) for one, split, kind, of, other in duplicates
        ]
        files, reasons = zip(*self.unreadable.files, strict=True) if len(self.unreadable) else ((), ())
        return DataReport(
            root=self.root,
            layout=layout,
            splits=_frame(((split, len(items)) for split, items in splits.items()), "split", "images"),
            sizes=_frame(sizes, "size", "width", "height"),
            formats=formats,
            duplicates=_frame(copies, "image", "split", "kind", "of", "of_split"),
            unreadable=_frame(zip(self.names(files), reasons, strict=True), "file", "reason"),
            problems=tuple(sorted(self.problems, key=lambda problem: not problem.refused)),
            **more,
        )

    def look_at_images(self, images: Sequence[Path]) -> list[Any]:
        """Height, width, channels and bits of each image, empty for one that cannot be read; decodes each once."""
        hash_images(images, self.unreadable)
        lost = {path for path, _ in self.unreadable.files}
        looks = remember_facts("channels", images, _read_header, lambda _: ())
        return [() if path in lost else look for path, look in zip(images, looks, strict=True)]

    def look_at_masks(self, pairs: PairList) -> Iterator[_Mask]:
        """Read the values of each mask; those that are no masks are a problem."""
        pictures: dict[Path, str] = {}

        def note(path: Path, error: DataError) -> None:
            if isinstance(error, UnreadableImage):
                self.unreadable.add(path, error.reason)
            else:
                pictures[path] = str(error)

        counts = count_values(pairs.masks, note)
        sizes = remember_facts("size", pairs.masks, image_size, lambda _: ())
        yield from (_Mask(*seen) for seen in zip(counts, map(tuple, sizes), strict=True))
        if pictures:
            reason = next(iter(pictures.values())).partition(" it holds ")[2]
            self.add(
                f"{count('picture', len(pictures))} in place of class masks",
                f"The first holds {reason}",
                [*pictures],
                refused=True,
            )

    def compare_sizes(self, pairs: PairList, looks: list[Any], masks: dict[str, _Mask]) -> None:
        """Masks must cover their images."""
        both = ((pair, tuple(look[:2]), masks[str(pair.mask)].size) for pair, look in zip(pairs, looks, strict=True))
        wrong = [(pair, image, mask) for pair, image, mask in both if image and mask and image != mask]
        if wrong:
            pair, image, mask = wrong[0]
            first = f"{pair.mask.name} has {mask[1]} x {mask[0]} pixels, its image {image[1]} x {image[0]}"
            found = f"{count('mask', len(wrong))} of another size than the image: {first}"
            advice = "Make the masks again at the size of the images, or remove these pairs."
            self.add(found, advice, [one[0].mask for one in wrong], refused=True)

    def check_values(self, dataset: SegmentationDataset, pairs: PairList, masks: dict[str, _Mask]) -> None:
        """Masks must hold the values of classes only."""
        known = {*_flat(dataset.mask_values), *dataset.ignore_values}
        extra = {mask: set(masks[str(mask)].counts) - known for mask in pairs.masks}
        if wrong := [mask for mask, values in extra.items() if values]:
            seen = few(sorted(set().union(*extra.values())))
            advice = (
                f"The classes have {few(sorted(known))}. Correct the masks, name a class for each value, or ignore it."
            )
            self.add(f"{count('mask', len(wrong))} with values that are no class: {seen}", advice, wrong, refused=True)

    def check_splits(self, splits: Any) -> None:
        """There must be images to train on, and should be images to test on."""
        needed = 1 if splits.get("val") else 2  # of which one validates
        if (present := len(splits.get("train", ()))) < needed:
            self.add(f"{count('image', present)} in train", f"Put {needed} or more into it.", refused=True)
        for split in ("val", "test"):
            if split in splits and not splits[split]:
                self.add(f"no images in {split}", "Put images into it: without them nothing can be scored there.")

    def check_classes(self, dataset: SegmentationDataset, classes: pd.DataFrame) -> bool:
        """Training images should show every class, and must show two; return whether one is rare beside another."""
        there = classes[classes["images"] > 0]
        absent = sorted(set(dataset.classes) - set(there["class"]))
        if len(there) < 2:
            advice = "Correct the masks, or the split files."
            self.add(f"{'one class' if len(there) else 'no class'} in all training masks", advice, refused=True)
        elif absent:
            advice = "Label some, put images of them into train, or leave the classes out."
            self.add(f"no training image shows {few(absent)}", advice)
        if len(there) < 2 or (ratio := there["share"].max() / there["share"].min()) <= _RARE:
            return False
        rare, common = (there["class"][there["share"].agg(which)] for which in ("idxmin", "idxmax"))
        advice = "balance_classes=True weighs each class by its share."
        self.add(f"{common} has {ratio:.0f} times the pixels of {rare}", advice)
        return True

    def look_for_others(self, pairs: PairList) -> dict[str, Any]:
        """Find images without masks, masks without images and labeled images in no split, in the folders of pairs."""
        used = {*map(str, pairs.images), *map(str, pairs.masks)}
        places = [
            {path.parent for path in part if path.is_relative_to(self.root)} for part in (pairs.images, pairs.masks)
        ]
        for part, name in zip(places, ("images", "masks"), strict=True):
            part |= {self.root / name} if (self.root / name).is_dir() else set()
        images, masks = ({str(path): path for place in part for path in _files(place)} for part in places)
        images, masks = ({name: path for name, path in part.items() if name not in used} for part in (images, masks))
        if places[0] & places[1]:  # nothing tells which of the rest are masks
            masks = {}
        stems = [{path.stem for path in part.values()} for part in (images, masks)]
        unused = sorted(path for path in images.values() if path.stem in stems[1])
        single = sorted(path for path in images.values() if path.stem not in stems[1])
        orphans = sorted(path for path in masks.values() if path.stem not in stems[0])
        if unused:
            advice = "Add their names to a split file to use them."
            self.add(f"{count('labeled image', len(unused))} in no split", advice, unused)
        if single:
            self.add(
                f"{count('image', len(single))} without a mask",
                "Fine-tuning leaves them out, pretraining uses them.",
                single,
            )
        if orphans:
            self.add(f"{count('mask', len(orphans))} without an image", "Add the images, or remove the masks.", orphans)
        return {"images_without_mask": self.names(single), "masks_without_image": self.names(orphans)}

    def find_leaks(self, splits: Any) -> list[Any]:
        """Find images of one split that repeat images of another one."""
        found: list[Any] = []
        for first, second in combinations([split for split in ("train", "val", "test") if splits.get(split)], 2):
            copies = find_duplicates(splits[second].images, splits[first].images)
            found += [(copy.image, second, copy.kind, copy.of, first) for copy in copies]
            if copies:
                exact = sum(copy.exact for copy in copies)
                what = f"{count('image', len(copies))} of {second} like one of {first}, {exact} exactly"
                what += f", such as {' like '.join(self.names([copies[0].image, copies[0].of]))}"
                self.add(what, f"Remove them from {first} or from {second}: scores would be too high.")
        return found

    def add_unreadable(self, images: Sequence[Path]) -> None:
        """Unreadable files are left out of a training, which must keep some."""
        lost = {path for path, _ in self.unreadable.files}
        if lost:
            reason = self.unreadable.files[0][1]
            advice = f"The first: {reason}. Replace or remove them; training leaves them out."
            self.add(f"{count('unreadable file', len(lost))}", advice, sorted(lost), refused=lost.issuperset(images))


def _class_shares(dataset: SegmentationDataset, masks: dict[str, _Mask]) -> tuple[pd.DataFrame, float | None]:
    """The table of classes, and the share of the training pixels that does not count, None without classes."""
    train, test = (
        [masks[str(mask)].counts for mask in dataset.splits.get(split, PairList()).masks]
        for split in ("train" if dataset.classes else _ALL, "test")
    )
    present = sorted({value for counts in train for value in counts})
    groups = dict(zip(dataset.classes, ([*_flat([value])] for value in dataset.mask_values), strict=True))
    groups = groups or {f"value {value}": [value] for value in present}
    pixels = [sum(counts.get(value, 0) for counts in train for value in values) for values in groups.values()]
    images, tests = (
        [sum(not set(values).isdisjoint(counts) for counts in part) for values in groups.values()]
        for part in (train, test)
    )
    left_out = sum(counts.get(value, 0) for counts in train for value in dataset.ignore_values)
    shares = np.array(pixels) / max(1, sum(pixels))
    rows = zip(groups, groups.values(), shares.tolist(), images, tests, strict=True)
    ignored = left_out / max(1, left_out + sum(pixels)) if dataset.classes else None
    return _frame(rows, "class", "values", "share", "images", "test_images"), ignored


def _read_header(path: Path) -> list[int]:
    """Height, width, channels and bits per channel, without decoding the image."""
    height, width, channels, kind = image_header(path)
    if kind != "uint8":
        return [height, width, channels, 8 * np.dtype(kind).itemsize]
    with suppress(UnidentifiedImageError), Image.open(path) as image:  # Pillow knows no .npy
        channels = 3 if image.mode == "P" else max(len(image.getbands()), channels)
        return [height, width, channels, 1 if image.mode == "1" else 8]
    return [height, width, channels, 8]


def _match_by_name(root: Path) -> PairList:
    """Pairs of equal names of a folder that no reader accepts, as far as they can be seen."""
    places = [root / "masks", root / "annotations" / "trimaps"]
    masks = {path.stem: path for place in places if place.is_dir() for path in _files(place)}
    images = {path.stem: path for path in _files(root / "images")} if (root / "images").is_dir() else {}
    return PairList(Pair(stem, images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys()))


def _files(folder: Path) -> list[Path]:
    try:
        return list(find_images([folder]))
    except DataError:  # an empty folder
        return []


def _flat(values: Any) -> list[int]:
    return [one for value in values for one in (value if isinstance(value, tuple) else [value])]


def _frame(rows: Any, *columns: str) -> pd.DataFrame:
    return pd.DataFrame([*rows], columns=[*columns])
