"""What a reader of a labeled data set finds, and how its images are divided into splits."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from segae.data.file_lists import Pair, PairList
from segae.data.split_files import HASH, choose_by_hash, split_names
from segae.errors import DataError

logger = logging.getLogger("segae")

ALL = "all"
"""The split of images that a layout does not divide."""
_UNLISTED = "labeled images are in no split file"


class Sample(NamedTuple):
    """An image, its name in its split, and its mask file or what a mask is drawn from; None if it has no label."""

    name: str
    image: Path
    label: Any = None


@dataclass(frozen=True)
class FoundLabels:
    """What a reader finds in a folder.

    Attributes:
        splits: the samples of train, val and test, or of `ALL`, with and without label.
        classes: names, in the order of the class indices.
        values: the raw mask value of each class.
        ignored: raw mask values that do not count.
        palette: a color for each class, or none.
        convert: makes the labels of samples mask files; None if they are mask files.
        missing: number of images that are listed and not on the disk.
        origin: in words, what divides the images into splits, where something does.
    """

    splits: Mapping[str, Sequence[Sample]]
    classes: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    convert: Callable[[Sequence[Any]], Sequence[Path]] | None = None
    missing: int = 0
    origin: str = ""

    def reorder(self, classes: Sequence[str], root: Path) -> "FoundLabels":
        """Put the classes into the order that was asked for; DataError unless they are the same."""
        if not classes or tuple(classes) == self.classes:
            return self
        if sorted(classes) != sorted(self.classes):
            given, found = ", ".join(classes), ", ".join(self.classes)
            raise DataError(f"classes must be empty or those of {root}, {found}, in any order, got {given}")
        places = [self.classes.index(name) for name in classes]
        palette = tuple(self.palette[place] for place in places) if self.palette else ()
        values = tuple(self.values[place] for place in places)
        return replace(self, classes=tuple(classes), values=values, palette=palette)

    def divide(self, root: Path, test_fraction: float = 0.2, seed: int = 0) -> tuple[dict[str, list[Sample]], str]:
        """Labeled images in their splits, with names that are unique; and in words what divided them.

        Undivided ones are split by train.txt, val.txt and test.txt in ``root``, by folders, or by a hash. Where no test
        image has a label, the validation images are the test images; without those it is the ``test_fraction`` of the
        training images, by a hash. DataError if there is no training image.
        """
        splits = {split: [one for one in samples if one.label is not None] for split, samples in self.splits.items()}
        origin = self.origin
        if samples := splits.pop(ALL, None):
            named = {one.name: one for one in samples}
            if len(named) < len(samples):
                twice = next(name for name, times in Counter(one.name for one in samples).items() if times > 1)
                raise DataError(f"{root} lists {twice} twice. Remove one of the two.")
            divided, origin = split_names(root, named, test_fraction, seed)
            splits = {split: [named[name] for name in names] for split, names in divided.items()}
        counts = Counter(one.name for samples in splits.values() for one in samples)
        if any(times > 1 for times in counts.values()):
            splits = {
                split: [one._replace(name=f"{split}/{one.name}") for one in ones] for split, ones in splits.items()
            }
        if not splits.get("train"):
            raise DataError(f"{root} has no training image with a mask: its split train is empty. Correct its lists.")
        if not splits.get("test") and splits.get("val"):
            splits["test"], origin = splits.pop("val"), f"{origin}, the validation images as test"
        elif not splits.get("test"):
            test = choose_by_hash([one.name for one in splits["train"]], test_fraction, seed, "test")
            splits["test"] = [one for one in splits["train"] if one.name in test]
            splits["train"] = [one for one in splits["train"] if one.name not in test]
            origin = f"{origin}, the test images by {HASH}"
        return {split: samples for split, samples in splits.items() if samples or split == "test"}, origin

    def report(self, root: Path, divided: Mapping[str, Sequence[Sample]]) -> None:
        """Log how many images are left out, and where the test images come from."""
        samples = [one for members in self.splits.values() for one in members]
        labeled = sum(one.label is not None for one in samples)
        used = sum(map(len, divided.values()))
        unlabeled = len(samples) - labeled, "images have no mask"
        for count, why in (unlabeled, (labeled - used, _UNLISTED), (self.missing, "listed images are missing")):
            if count:
                logger.warning("%s: %d %s and are left out", root, count, why)
        if any(one.label is not None for one in self.splits.get("val", ())) and "val" not in divided:
            logger.info(
                "%s: no test image has a mask; the %d validation images are the test", root, len(divided["test"])
            )

    def held_out(self, root: Path) -> list[Path]:
        """The test images, also those without a label."""
        unlabeled = [one.image for one in self.splits.get("test", ()) if one.label is None]
        return unlabeled + [one.image for one in self.divide(root)[0]["test"]]


def to_pairs(samples: Sequence[Sample], masks: Sequence[Path]) -> PairList:
    """Pack images with their mask files."""
    return PairList(Pair(one.name, one.image, mask) for one, mask in zip(samples, masks, strict=True))
