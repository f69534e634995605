"""A data set opened so that its classes are those of a trained model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from segae.errors import SegaeError

if TYPE_CHECKING:
    from segae.data.dataset import SegmentationData
    from segae.models.segmenter import SegmenterDescription


def open_as_trained(
    root: Path, classes: Sequence[str], merge: Sequence[str], description: SegmenterDescription
) -> SegmentationData:
    """The data set, its classes merged as they were for the model.

    Args:
        root: the data set's folder.
        classes: class names of an images/ + masks/ folder, as for ``segae.open_dataset``.
        merge: classes to be taken as one; none takes what the model was trained with, if the data set needs it.
        description: of the model.

    Raises:
        SegaeError: the data set cannot be opened, other classes are to be merged than for the model, or the classes
            are not the model's.
    """
    from segae.data.merge import merge_classes, read_merge, same_merge
    from segae.data.open import open_dataset

    trained = tuple(json.loads(str(description.details.get("merge", "[]"))))
    if merge and trained and not same_merge(read_merge(merge), read_merge(trained)):
        raise SegaeError(
            f"The model was trained with --merge {' '.join(trained)}, and --merge {' '.join(merge)} was asked for. "
            "Leave --merge out to score it as it was trained."
        )
    data = open_dataset(root, classes, merge)
    if trained and not merge and data.classes != description.classes:  # a data set may have the classes without it
        data = merge_classes(data, trained)
    require_same_classes(description.classes, data.classes)
    return _with_values_of(description, data)


def _with_values_of(description: SegmenterDescription, data: SegmentationData) -> SegmentationData:
    """The data set, its raw mask values read as the model's were.

    Which value is which class is inferred where only names are given, so a data set that lacks a class may be read
    another way than the one that the model was trained on.
    """
    from segae.data.dataset import SegmentationData
    from segae.data.folder import values_in_masks

    trained, here = description.mask_values, data.mask_values
    if trained == here or not (data.root / "masks").is_dir():
        return data
    found = values_in_masks([pair for split in data.splits.values() for pair in split])
    if set(found) <= set(_flat(trained)):
        shown = {field.name: getattr(data, field.name) for field in fields(SegmentationData)}
        return SegmentationData(**{**shown, "mask_values": trained})
    if set(found) <= set(_flat(here)):  # another coding of the same classes, such as 0 and 255 for 0 and 1
        return data
    raise SegaeError(
        f"The masks of {data.root} hold the values {', '.join(map(str, found))}. Wanted those of the model's classes "
        f"{', '.join(description.classes)}, which were {', '.join(map(str, _flat(trained)))}; correct the masks or "
        "choose another --data."
    )


def _flat(mask_values: Sequence[int | Sequence[int]]) -> tuple[int, ...]:
    return tuple(value for one in mask_values for value in ([one] if isinstance(one, int) else one))


def require_same_classes(model_classes: Sequence[str], data_classes: Sequence[str]) -> None:
    """Raise SegaeError unless the model's classes are the data set's, in the same order."""
    if tuple(model_classes) != tuple(data_classes):
        raise SegaeError(
            f"The data set has the {len(data_classes)} classes {', '.join(data_classes)}, but the model was "
            f"trained for the {len(model_classes)} classes {', '.join(model_classes)}. If they mean the "
            f"same, type --classes {' '.join(model_classes)}; else choose another --data or --model."
        )
