"""What a check of a folder found, as tables that print themselves, also in notebooks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from segae._notebook import ShownInNotebooks, html_classes, html_frame
from segae.data.datasets import SegmentationDataset

UNLABELED = "unlabeled images"  # in place of a layout
UNKNOWN = "unknown"  # where no layout fits, or several do
_SHOWN = 3  # files of a problem that are printed


@dataclass(frozen=True)
class Problem:
    """What is wrong with a folder.

    Attributes:
        found: what was seen.
        advice: what to do about it.
        refused: whether a training refuses the folder because of it.
        files: the files that have it, below the folder.
    """

    found: str
    advice: str
    refused: bool = False
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f" ({'; '.join(self.files[:_SHOWN])}{'; ...' if len(self.files) > _SHOWN else ''})"
        return f"{self.found}{first if self.files else ''}. {self.advice}".strip()


@dataclass(frozen=True, eq=False, repr=False)
class DataReport(ShownInNotebooks):
    """What `segae.check_data` found in a folder.

    Attributes:
        root: the folder.
        layout: of a labeled data set, ``unknown`` where several fit; or ``unlabeled images``.
        splits: a row per split: ``split``, ``images``.
        split_origin: in words, what divides the images into splits: files of the folder, or a hash of the names.
        classes: a row per class: ``class``, ``values`` in mask files, ``share`` of the training pixels that count, and
            the number of training ``images`` and of ``test_images`` that show it. Empty for unlabeled images.
        palette: one RGB color in 0-255 per class.
        sizes: the ``smallest``, ``median`` and ``largest`` image by area: ``size``, ``width``, ``height``.
        formats: a row per kind of file: ``channels``, ``bits`` of each, ``images``.
        ignored: share of the training pixels that do not count, in [0, 1]; None where the classes are not known.
        unbalanced: whether a class has 20 times the training pixels of another.
        duplicates: a row per image that repeats one of another split, of unlabeled images any other: ``image``,
            ``split``, ``kind`` (file, pixels or near), ``of``, ``of_split``.
        unreadable: a row per file: ``file``, ``reason``.
        images_without_mask: files below the folder.
        masks_without_image: files below the folder.
        problems: what is wrong, errors first.
        commands: what to type next, from `segae.check_data`.
        dataset: the labeled data set, if it can be read.
        datasets: of unlabeled images the folders of labeled data sets that they belong to, or that are below.
    """

    root: Path
    layout: str
    splits: pd.DataFrame
    sizes: pd.DataFrame
    formats: pd.DataFrame
    duplicates: pd.DataFrame
    unreadable: pd.DataFrame
    problems: tuple[Problem, ...]
    commands: tuple[str, ...] = ()
    classes: pd.DataFrame = field(default_factory=pd.DataFrame)
    palette: tuple[tuple[int, int, int], ...] = ()
    ignored: float | None = None
    unbalanced: bool = False
    images_without_mask: tuple[str, ...] = ()
    masks_without_image: tuple[str, ...] = ()
    dataset: SegmentationDataset | None = None
    datasets: tuple[Path, ...] = ()
    split_origin: str = ""

    @property
    def accepted(self) -> bool:
        """Whether a training accepts the folder as it is."""
        return not any(problem.refused for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, with tables as lists of rows."""
        rows = {name: value for name, value in vars(self).items() if name not in ("problems", "dataset")}
        tables = {name: value.to_dict("records") for name, value in rows.items() if isinstance(value, pd.DataFrame)}
        return {"accepted": self.accepted, **rows, **tables, "problems": [vars(problem) for problem in self.problems]}

    def _facts(self) -> dict[str, Any]:
        splits = ", ".join(f"{row.split} {row.images}" for row in self.splits.itertuples())
        sizes = ", ".join(f"{row.size} {row.width} x {row.height}" for row in self.sizes.itertuples(index=False))
        kinds = self.formats.itertuples(index=False, name=None)
        formats = ", ".join(f"{channels} x {bits} bit ({count('image', images)})" for channels, bits, images in kinds)
        ignored = "" if self.ignored is None else f"{self.ignored:.1%} of the training pixels"
        facts = {"layout": self.layout, "images": splits, "split by": self.split_origin, "pixels": sizes}
        facts |= {"channels": formats, "ignored": ignored}
        return {"folder": self.root} | {name: text for name, text in facts.items() if text}

    def _class_rows(self) -> list[tuple[str, ...]]:
        """A line of column names and a line per class; without splits of all masks."""
        names, shares = self.classes["class"], (f"{share:.2%}" for share in self.classes["share"])
        if self.dataset is None:
            return [("class", "pixels", "images"), *zip(names, shares, map(str, self.classes["images"]), strict=True)]
        counts = (map(str, self.classes[column]) for column in ("images", "test_images"))
        return [("class", "train pixels", "train images", "test images"), *zip(names, shares, *counts, strict=True)]

    def __str__(self) -> str:
        lines = [f"{name:<9} {value}" for name, value in self._facts().items()]
        if rows := self._class_rows() if len(self.classes) else []:
            wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
            aligned = ([name.ljust(wide[0]), *map(str.rjust, rest, wide[1:])] for name, *rest in rows)
            lines += ["", *map("  ".join, aligned)]
        marks = (f"{'error' if problem.refused else 'warning'}: {problem}" for problem in self.problems)
        ends = ("A training refuses this folder. When it is mended:", "Next:")
        return "\n".join([*lines, "", *marks, ends[self.accepted], *(f"  {command}" for command in self.commands)])

    def _pictures(self) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        if len(self.classes):
            columns, *rows = self._class_rows()
            if self.palette:  # without classes there is none
                chips = (html_classes([row[0]], [color]) for row, color in zip(rows, self.palette, strict=True))
                rows = [(chip, *row[1:]) for chip, row in zip(chips, rows, strict=True)]
            shown["classes"] = html_frame(columns, rows)
        if self.problems:
            listed = (("error" if one.refused else "warning", str(one)) for one in self.problems)
            shown["problems"] = html_frame(("", "what, and what to do"), listed)
        return shown | {"next": "; ".join(self.commands)}


def count(noun: str, number: int) -> str:
    """A number of things in words, such as 1 image and 2 images."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
