"""Which images pretraining may see: everything unlabelled, and never an image of a test split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from segae.data.folder import find_images
from segae.data.open import open_dataset
from segae.errors import SegaeError

logger = logging.getLogger("segae")


def find_pretraining_images(roots: Sequence[Path]) -> list[Path]:
    """Collect the images below the roots, without those that a data set keeps for testing.

    A root is taken for a labelled data set if `open_dataset` can open it; then its training images count, and so
    do its other images that are in no split (unlabelled ones). A data set's own `images/` folder given as root is
    treated like the data set. All other roots are searched recursively.

    Returns:
        The paths, sorted, each once.

    Raises:
        SegaeError: a root is missing or empty, or nothing but test images is left.
    """
    found = set(find_images(roots))
    kept_back: set[Path] = set()
    for root in {*map(_data_set_of, roots)} - {None}:
        assert root is not None
        test = {pair.image.resolve() for pair in open_dataset(root).splits["test"]}
        kept_back |= {path for path in found if path.resolve() in test}
    if kept_back:
        logger.info("%d test images are left out of pretraining", len(kept_back))
    if not found - kept_back:
        raise SegaeError(
            f"all {len(found)} images below {', '.join(map(str, roots))} belong to a test split, and pretraining must "
            f"not see them. Give a folder of other images: segae pretrain --data FOLDER."
        )
    return sorted(found - kept_back)


def _data_set_of(root: Path) -> Path | None:
    """The labelled data set that ``root`` is, or whose image folder it is; None for a plain folder."""
    for folder in (root, root.resolve().parent):
        is_images = folder == root or root.resolve().name == "images"
        if is_images and ((folder / "masks").is_dir() or (folder / "annotations").is_dir()):
            return folder
    return None
