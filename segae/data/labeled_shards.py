"""Labeled images in tar shards or parquet files as a data set without lists of files: its classes and its sources."""

from collections.abc import Sequence
from pathlib import Path

from segae.data.datasets import (
    SegmentationDataset,
    ignore_classes,
    infer_mask_values,
    make_palette,
    map_classes,
    parse_ignore,
)
from segae.data.file_lists import PairList
from segae.data.streaming import sample_values

_LOOKED_AT = 256  # masks that show which values there are


class LabeledShards(SegmentationDataset):
    """A data set that is streamed; ``source`` is one that `open_stream` takes, and the splits have no lists of files.

    Classes are named, or they are ``class_<value>`` for each value in the first 256 masks; values and
    ``ignore_values`` are read as `SegmentationFolder` does. DataError if no mask can be read, or the values fit no
    classes.
    """

    source: str

    def __init__(self, source: str, classes: Sequence[str] = (), ignore_values: Sequence[int] | None = None) -> None:
        object.__setattr__(self, "source", source)
        found = sample_values(source, _LOOKED_AT)
        values, ignored = infer_mask_values(Path(source), tuple(classes), found, ignore_values)
        names = tuple(classes) or tuple(f"class_{value}" for value in values)
        path = Path(source.partition("?")[0])
        stem = path.parent.name if any(mark in path.name for mark in "*[{") else path.stem
        empty = {"train": PairList()}
        super().__init__(stem, Path(source), names, make_palette(len(names)), values, empty, ignore_values=ignored)


def open_labeled_shards(
    source: str, *, classes: Sequence[str] = (), merge: Sequence[str] = (), ignore: Sequence[str | int] = ()
) -> SegmentationDataset:
    """Open labeled shards; the arguments are those of `open_dataset`."""
    values, names = parse_ignore(ignore)
    return ignore_classes(map_classes(LabeledShards(source, classes, values), merge), names)
