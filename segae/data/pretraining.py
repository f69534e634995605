"""Which images pretraining may see: everything unlabelled, and never an image of a test split."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from segae.data.fingerprint import content_hashes, default_cache_dir
from segae.data.folder import find_images, folder_splits
from segae.data.oxford_pets import test_images
from segae.data.packed import PackedPaths
from segae.errors import SegaeError

logger = logging.getLogger("segae")


def find_pretraining_images(roots: Sequence[Path], cache_dir: Path | None = None) -> PackedPaths:
    """Collect the images below the roots, without those that a data set keeps for testing.

    Labelled data sets are recognised wherever they are: at a root, somewhere below it, or above it (a data set's
    own image folder given as root). Their test images are left out, and so is every other file of the same content.
    Their training images and their images without masks stay.

    Args:
        roots: folders, searched recursively.
        cache_dir: where content hashes are remembered; `default_cache_dir()` when None.

    Returns:
        The paths, sorted, each once.

    Raises:
        SegaeError: a root is missing or empty, or nothing but test images is left.
    """
    found = find_images(roots)
    test = [image for folder in _data_sets_around(found) for image in _test_images(folder)]
    if not test:
        return found
    kept_back = {path.resolve() for path in test}
    cache_dir = cache_dir or default_cache_dir()
    contents = set(content_hashes(test, cache_dir))
    kept = PackedPaths(
        path
        for path, content in zip(found, content_hashes(found, cache_dir), strict=True)
        if path.resolve() not in kept_back and content not in contents
    )
    if len(kept) < len(found):
        logger.debug("%d test images are left out of pretraining", len(found) - len(kept))
    if not kept:
        raise SegaeError(
            f"all {len(found)} images below {', '.join(map(str, roots))} belong to a test split, and pretraining must "
            f"not see them. Give a folder of other images: segae pretrain --data FOLDER."
        )
    return kept


def _data_sets_around(images: Iterable[Path]) -> list[Path]:
    """The folders, among all ancestors of the images, that hold a labelled data set."""
    # as named and as it is: a data set may be made of links to files elsewhere
    parents = {parent for path in images for parent in (path.absolute().parent, path.resolve().parent)}
    ancestors = parents.union(*(parent.parents for parent in parents))
    with_images = sorted(folder for folder in ancestors if (folder / "images").is_dir())
    return [folder for folder in with_images if _is_pets(folder) or _has_masks(folder)]


def _is_pets(folder: Path) -> bool:
    return (folder / "annotations" / "test.txt").is_file() and not _has_masks(folder)


def _has_masks(folder: Path) -> bool:
    return (folder / "masks").is_dir()


def _test_images(folder: Path) -> tuple[Path, ...]:
    if _has_masks(folder):
        return tuple(pair.image for pair in folder_splits(folder)["test"])
    return test_images(folder)
