"""Any folder with `images/` and `masks/`, and any folder of unlabelled images."""

from __future__ import annotations

import colorsys
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segae.data.dataset import SegmentationData
from segae.data.fingerprint import default_cache_dir, remember_facts
from segae.data.images import UnreadableImage, read_mask
from segae.data.packed import PackedPairs, PackedPaths, Pair
from segae.data.split_files import first_few, hash_split, read_lines, read_splits
from segae.errors import SegaeError

logger = logging.getLogger("segae")

_PHOTOGRAPHS = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".jp2", ".avif")
_BITMAPS = (".png", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
IMAGE_EXTENSIONS = frozenset([*_PHOTOGRAPHS, *_BITMAPS])
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_MOST_VALUES = 64
_VALUES_REMEMBERED = 1024  # per mask; a photograph taken for a mask must not fill the index


class FolderData(SegmentationData):
    """A data set of `images/` and `masks/` whose files are matched by name without extension.

    Class names come from the argument, else from `classes.txt` (one per line), else they are `class_<value>`
    for each value found in the masks. With K names the values 0..K-1 are meant, unless exactly K other values
    are found (such as 0 and 255), which then count in ascending order. The split comes from `train.txt` or
    `trainval.txt`, with `test.txt`, in the folder itself or in `annotations/`; without them a seeded hash of
    each name decides. Images without a mask are left out, and their number is logged.

    Args:
        root: the folder.
        classes: class names in the order of the class indices.
        test_fraction: share of test images where no split files are.
        seed: of that split.

    Raises:
        SegaeError: a missing or empty folder, a mask without image, two files of one name, masks that are no
            index masks, or split files that name unknown files or one file twice.
    """

    def __init__(self, root: Path, classes: Sequence[str] = (), test_fraction: float = 0.2, seed: int = 0) -> None:
        pairs = _match(root)
        names = tuple(classes) or _read_class_names(root / "classes.txt")
        values = _mask_values(root, names, values_in_masks(pairs))
        super().__init__(
            name=root.resolve().name,
            root=root,
            classes=names or tuple(f"class_{value}" for value in values),
            palette=make_palette(len(values)),
            mask_values=values,
            splits=folder_splits(root, test_fraction, seed),
        )


def folder_splits(root: Path, test_fraction: float = 0.2, seed: int = 0) -> Mapping[str, PackedPairs]:
    """The splits of an images/ + masks/ folder as `FolderData` has them, without reading a mask."""
    pairs = _match(root)
    return read_splits(root, pairs) or hash_split(pairs, test_fraction, seed)


def find_images(roots: Sequence[Path]) -> PackedPaths:
    """Collect the image files in folders and all their subfolders, for training without labels.

    A file counts by its extension or by its first bytes. Hidden files and folders are passed over; so are
    `masks` and `annotations` beside a folder `images`, since masks are no pictures. A root may also be a
    file.

    Returns:
        The paths, sorted, each once.

    Raises:
        SegaeError: a root is missing or holds no image.
    """
    found: set[Path] = set()
    for root in roots:
        if not root.exists():
            raise SegaeError(
                f"There is no folder {root}. Wanted a folder of images; correct the path and type the command again."
            )
        images = {root} if root.is_file() else set(_walk(root))
        if not images:
            raise SegaeError(
                f"There is no image in {root} or its subfolders. Wanted files such as .jpg or .png; put "
                f"images there or name another folder, then type the command again."
            )
        found |= images
    return PackedPaths(sorted(found))


def make_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that are easy to tell apart: a dark first class, then hues a golden angle apart.

    Returns:
        RGB triples in 0..255, one per class; the first ones are the same for every number of classes.
    """
    colours = [(49, 54, 80)]
    for index in range(classes - 1):
        rgb = colorsys.hsv_to_rgb((0.05 + 0.618034 * index) % 1, 0.85 - 0.25 * (index % 2), 0.95)
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return tuple(colours[:classes])


def _walk(root: Path) -> list[Path]:
    images = []
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back up
            subfolders.clear()
            continue
        visited.add(real)
        labels = {"masks", "annotations"} if "images" in subfolders else set()
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in labels]
        images += [Path(folder, name) for name in files if _is_image(Path(folder, name))]
    return images


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in IMAGE_EXTENSIONS:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _match(root: Path) -> PackedPairs:
    images, masks = _by_stem(root, "images"), _by_stem(root, "masks")
    orphans = [masks[stem] for stem in sorted(masks.keys() - images.keys())]
    if orphans:
        raise SegaeError(
            f"{len(orphans)} mask(s) in {root / 'masks'} have no image: "
            f"{first_few(orphans)}. Wanted a file of the same name (any extension) in "
            f"{root / 'images'}; add the images or remove the masks, then type the command again."
        )
    unlabelled = len(images) - len(masks)
    if unlabelled:
        logger.warning("%s: %d of %d images have no mask and are left out", root, unlabelled, len(images))
    folders = root / "images", root / "masks"
    return PackedPairs(Pair(stem, folders[0] / images[stem], folders[1] / masks[stem]) for stem in sorted(masks))


def _by_stem(root: Path, name: str) -> dict[str, str]:
    """Name of each image file in a folder, by the name without extension; texts, since there may be many."""
    folder = root / name
    wanted = f"Wanted {root / 'images'} and {root / 'masks'} with files of equal names"
    if not folder.is_dir():
        raise SegaeError(f"There is no folder {folder}. {wanted}; make it and type the command again.")
    nested = [child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if nested:
        raise SegaeError(
            f"{folder} has subfolders: {first_few(nested)}. {wanted}, all in one level; move the files up "
            f"and type the command again."
        )
    files: dict[str, str] = {}
    for file in sorted(path.name for path in folder.iterdir() if _is_image(path)):
        stem = Path(file).stem
        if stem in files:
            raise SegaeError(
                f"{files[stem]} and {file} in {folder} have one name but for the extension. "
                f"{wanted}, each name once; rename or remove one of them and type the command again."
            )
        files[stem] = file
    if not files:
        raise SegaeError(f"There is no image file in {folder}. {wanted}; add them and type the command again.")
    return files


def _read_class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in read_lines(path) if line.strip())


def values_in_masks(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """All values in all masks, ascending. Unreadable masks are passed over here and quarantined later."""
    masks = PackedPairs.of(pairs).masks
    per_mask = remember_facts("mask_values", masks, _values_in, default_cache_dir(), is_final=bool)
    return tuple(sorted({value for values in per_mask for value in values}))


def _values_in(path: Path) -> list[int]:
    try:
        return np.unique(read_mask(path))[:_VALUES_REMEMBERED].tolist()
    except UnreadableImage:
        return []


def _mask_values(root: Path, names: tuple[str, ...], found: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(names)) < len(names):
        raise SegaeError(f"The class names {', '.join(names)} are not all different. Wanted each name once.")
    if names:
        expected = tuple(range(len(names)))
        return found if len(found) == len(names) and found != expected else expected
    if len(found) > _MOST_VALUES:
        raise SegaeError(
            f"The masks in {root / 'masks'} hold more than {_MOST_VALUES} different values "
            f"({first_few(found)}), so they are photographs, JPEG files or probabilities rather than index "
            f"masks. Wanted one number per class (0, 1, 2, ...) in a lossless format such as PNG; convert "
            f"them, or write the class names into {root / 'classes.txt'}, one per line, if there are that "
            "many classes."
        )
    if not found:
        raise SegaeError(
            f"None of the masks in {root / 'masks'} can be read. Wanted index masks, one number per class; "
            f"replace the files and type the command again."
        )
    return found
