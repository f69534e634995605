"""Which folder is a labeled data set: its layout, and the data set that is meant where a folder beside it is named."""

from collections.abc import Iterator
from pathlib import Path

from segae._io import refuse_archives, require_choice
from segae.data.folders import IMAGE_FOLDERS, SPLIT_FOLDERS, is_image, is_mask_folder, walk_folders
from segae.data.formats import LAYOUTS, describe_layouts, find_layouts
from segae.data.image_io import few
from segae.errors import DataError

_ABOVE = 3  # folders from one of masks or images up to its data set, in Cityscapes


class UnknownLayout(DataError):
    """A folder that looks like none of the layouts of labeled data sets; ``datasets`` are those at hand, if any."""

    def __init__(self, message: str, datasets: tuple[Path, ...] = ()) -> None:
        super().__init__(message)
        self.datasets = datasets


def choose_layout(root: Path, layout: str = "auto") -> str:
    """The layout of a folder: the one that it looks like, or which of several is meant.

    DataError if it looks like several where ``layout`` is auto, or not like the one that is named, or if it is an
    archive or holds the masks of a data set; UnknownLayout if it looks like none.
    """
    require_choice("layout", layout, ["auto", *LAYOUTS])
    refuse_archives(root)
    if not root.is_dir():
        what = f"{root} is a file" if root.exists() else f"There is no folder {root}"
        raise DataError(f"{what}. Name the folder of a data set: {describe_layouts(LAYOUTS)}.")
    found = find_layouts(root)
    if not found:
        refuse_masks(root)
        raise _unknown_layout(root)
    if layout not in ("auto", *found):
        raise DataError(f"layout must be auto or what {root} looks like, {describe_layouts(found)}, got {layout}")
    if layout == "auto" and len(found) > 1:
        raise DataError(
            f"layout must be named for {root}, which can be read in {len(found)} ways: {describe_layouts(found)}"
        )
    return found[0] if layout == "auto" else layout


def _unknown_layout(root: Path) -> UnknownLayout:
    if above := _dataset_of(root, IMAGE_FOLDERS):
        return UnknownLayout(f"{root} holds the images of the labeled data set {above}. Name that folder.", (above,))
    if below := datasets_below(root):
        are, which = ("is", "that folder") if len(below) == 1 else ("are", "one of them")
        return UnknownLayout(f"{root} is no labeled data set, but {few(below)} {are}. Name {which}.", tuple(below))
    children = sorted(root.iterdir())
    listed = few(child.name for child in children) or "nothing"
    message = f"{root} is no labeled data set: it holds {listed}. It needs one of: {describe_layouts(LAYOUTS)}."
    if sum(one.is_dir() and any(map(is_image, one.iterdir())) for one in children) > 1:
        message += " A folder per class, as these may be, needs the task classify."
    return UnknownLayout(message)


def refuse_masks(root: Path) -> None:
    """Raise DataError for a folder of the masks of a labeled data set, which are no images to train on."""
    if dataset := _dataset_of(root):
        raise DataError(f"{root} holds the masks of the labeled data set {dataset}. Name that folder.")


def _dataset_of(root: Path, images: tuple[str, ...] = ()) -> Path | None:
    """The data set whose masks a folder holds; or, of a folder of this name or one below it, whose images."""
    place = root if root.name not in ("", "..") else root.resolve()
    for folder in (place, *place.parents)[:_ABOVE]:
        if (folder.name in images or is_mask_folder(folder)) and find_layouts(folder.parent):
            return whole_dataset(folder.parent)
    return None


def find_marked_folders(root: Path) -> Iterator[Path]:
    """The folders at and below one that may keep test images: labeled data sets, and others with train/ and test/."""
    for folder, inside, files in walk_folders(root):
        marked = "images" in inside or {"train", "test"} <= {*inside}
        listed = inside or any(name.endswith((".json", ".yaml", ".yml")) for name in files)
        if marked or (listed and find_layouts(folder)):
            yield folder


def datasets_below(root: Path) -> list[Path]:
    """The labeled data sets at and below a folder, sorted."""
    return sorted({whole_dataset(one) for one in find_marked_folders(root) if find_layouts(one)})


def whole_dataset(folder: Path) -> Path:
    """The data set that a folder train, val or test is a part of; another folder itself."""
    part = folder.name.lower() in SPLIT_FOLDERS and {*find_layouts(folder.parent)} & {"split_folders", "yolo", "coco"}
    return folder.parent if part else folder
