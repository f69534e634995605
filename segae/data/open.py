"""One door to every labelled data set: look at the folder and say what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segae.data.dataset import SegmentationData
from segae.data.folder import FolderData
from segae.data.merge import merge_classes
from segae.data.oxford_pets import CLASSES, OxfordPets
from segae.errors import SegaeError


def open_dataset(root: Path, classes: Sequence[str] = (), merge: Sequence[str] = ()) -> SegmentationData:
    """Open a folder in the official Oxford-IIIT Pet layout, or one with `images/` and `masks/`.

    Args:
        root: the data set's folder.
        classes: class names of an images/ + masks/ folder; left empty, they come from its classes.txt or from
            the values in the masks.
        merge: classes to be taken as one, such as `foreground=pet+border`; see `segae.data.merge`.

    Raises:
        SegaeError: the folder is missing, has neither layout, or has a layout that is broken; or classes are merged
            that it does not have.
    """
    return merge_classes(_open(root, classes), merge)


def _open(root: Path, classes: Sequence[str]) -> SegmentationData:
    if not root.is_dir():
        raise SegaeError(
            f"There is no folder {root}. Wanted the folder of a data set: the Oxford-IIIT Pet layout (fetch "
            f"it with `segae data pets --root {root}`), or images/ and masks/ with files of equal names."
        )
    annotations = root / "annotations"
    if (annotations / "trimaps").is_dir():
        return _open_pets(root, classes)
    if (root / "masks").is_dir():
        return FolderData(root, classes)
    if any((annotations / name).exists() for name in ("list.txt", "trainval.txt", "test.txt")):
        return _open_pets(root, classes)
    found = ", ".join(sorted(child.name for child in root.iterdir())[:5]) or "nothing"
    raise SegaeError(
        f"{root} is no labelled data set: it holds {found}. Wanted images/ and masks/ with files of equal "
        f"names, or the Oxford-IIIT Pet layout with images/ and annotations/trimaps/ (fetch it with "
        f"`segae data pets --root {root}`)."
    )


def _open_pets(root: Path, classes: Sequence[str]) -> SegmentationData:
    if classes and tuple(classes) != CLASSES:
        raise SegaeError(
            f"{root} has the Oxford-IIIT Pet layout, whose classes are {', '.join(CLASSES)}, and the classes "
            f"{', '.join(classes)} were asked for. Leave the class names out."
        )
    return OxfordPets(root)
