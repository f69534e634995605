"""Find image files in folders, pair images with masks by their names, and read lists of names."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from segae.data.file_lists import PathList
from segae.data.image_io import few
from segae.errors import DataError

_PHOTOGRAPHS = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".jp2", ".avif")
_BITMAPS = (".png", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_ARRAYS = (".npy",)
IMAGE_EXTENSIONS = frozenset([*_PHOTOGRAPHS, *_BITMAPS, *_ARRAYS])
IMAGE_FOLDERS = ("images", "JPEGImages", "leftImg8bit")
"""Names of the folders of pictures in data sets, whose parent is then the data set."""
SPLIT_FOLDERS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
"""The split that a folder of this name holds."""
BRUSH_MASK = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)(?:-by-[^-]*)?-[^-]+-(?P<label>.+)-\d+\.png")
"""Name of a mask that Label Studio exports: task, annotation, who made it, control tag, label, number."""

_MASK_FOLDERS = {  # folders of masks, which are no pictures, beside a folder of images of this name
    "images": {"masks", "annotations"},
    "JPEGImages": {"SegmentationClass", "SegmentationObject", "Annotations"},
    "ImageSets": {"SegmentationClass", "SegmentationObject", "Annotations"},
    "leftImg8bit": {"gtFine", "gtCoarse"},
}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def find_images(roots: Iterable[Path]) -> PathList:
    """Collect the image files in folders and all their subfolders, for training without labels: sorted, each once.

    A file counts by its extension or by its first bytes. Hidden files and folders are passed over; so are the masks of
    data sets, such as ``masks`` and ``annotations`` beside a folder ``images``, since masks are no pictures. A root may
    also be a file. A root that is missing or holds no image is a DataError.
    """
    found: set[str] = set()
    for root in roots:
        if not root.exists():
            raise DataError(f"There is no folder {root}. Name a folder of images.")
        paths = (folder / name for folder, _, files in walk_folders(root) for name in files)
        images = {str(root)} if root.is_file() else {str(path) for path in paths if is_image(path)}
        if not images:
            raise DataError(f"There is no image in {root} or its subfolders. Name a folder with files such as .jpg.")
        found |= images
    # the order of Path objects, which compare folder by folder
    return PathList(sorted(found, key=lambda path: path.replace(os.sep, "\0")))


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """A folder and all below, hidden ones and masks of data sets passed over, with the names of folders and files.

    Names that the caller removes from the list of folders are passed over, too.
    """
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back up
            subfolders.clear()
            continue
        visited.add(real)
        labels = {label for name in subfolders for label in _MASK_FOLDERS.get(name, ())}
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in labels]
        yield Path(folder), subfolders, [name for name in files if not BRUSH_MASK.fullmatch(name)]


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder has a name that masks have, beside a folder of images."""
    return any(folder.name in labels and (folder.parent / name).is_dir() for name, labels in _MASK_FOLDERS.items())


def is_image(path: Path) -> bool:
    """Whether a file looks like an image, by its extension or its first bytes."""
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in IMAGE_EXTENSIONS:
        return True
    try:
        if not path.is_file():  # to open a FIFO would block
            return False
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def images_by_name(folder: Path) -> dict[str, str]:
    """Path of each image file below a folder by that path without extension; texts, since there may be many.

    DataError if there is none, or if two differ in the extension only.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Put the files there, or name another data set.")
    files: dict[str, str] = {}
    found = (Path(place, name) for place, _, names in walk_folders(folder) for name in names)
    for file in sorted(path.relative_to(folder).as_posix() for path in found if is_image(path)):
        stem = file.removesuffix(Path(file).suffix)
        if stem in files:
            raise DataError(f"{files[stem]} and {file} in {folder} differ in the extension only. Rename one of them.")
        files[stem] = file
    if not files:
        raise DataError(f"There is no image file in {folder}. Put images there, or name another data set.")
    return files


def match_masks(images: Path, masks: Path) -> dict[str, tuple[Path, Path | None]]:
    """Image and mask by name, sorted; the mask is None where an image has none.

    A mask has the name of its image, in the same subfolder, or that name and a suffix such as ``_mask`` or
    ``_labelIds``, the same one for all masks with a suffix. DataError if a mask has no image, or there are several
    suffixes.
    """
    named, labels = images_by_name(images), images_by_name(masks)
    found = {name: file for name, file in labels.items() if name in named}
    suffixes: dict[str, str] = {}  # an example of each
    orphans = []
    for label in sorted(labels.keys() - found.keys()):
        ends = (place for place in range(len(label) - 1, 0, -1) if not label[place].isalnum())
        name = next((label[:end] for end in ends if label[:end] in named), "")
        if not name or name in found:
            orphans.append(labels[label])
            continue
        found[name] = labels[label]
        suffixes.setdefault(label.removeprefix(name), labels[label])
    if len(suffixes) > 1:
        shown = few(f"{suffix} as in {file}" for suffix, file in suffixes.items())
        raise DataError(f"{masks} has masks with several suffixes: {shown}. Move all kinds but one out of it.")
    if orphans:
        raise DataError(f"{masks} has masks without an image: {few(orphans)}. Add the images or remove them.")
    return {name: (images / named[name], masks / found[name] if name in found else None) for name in sorted(named)}


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are neither empty nor comments; DataError if there are none or it is no UTF-8."""
    lines = (line.strip() for line in read_text(path).splitlines())
    if found := [line for line in lines if line and not line.startswith("#")]:
        return found
    raise DataError(f"{path} is empty. Write one name per line or remove it.")


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8; DataError if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text in UTF-8 ({error}). Save it as UTF-8.") from error
