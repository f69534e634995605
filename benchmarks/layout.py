"""A data set of any wanted length in torchvision's layout of Oxford-IIIT Pets, out of fewer pictures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import segae

FOLDER = "oxford-iiit-pet"  # where torchvision.datasets.OxfordIIITPet looks
DRAWN = 96


def lay_out(count: int, root: Path, *, source: Path | None = None, size: int = 256) -> Path:
    """Make ``root/oxford-iiit-pet`` with so many training pictures, each a link to one of the source's.

    Every link is a file of its own to whoever reads it: it is decoded, cached and augmented once for each name.

    Args:
        count: training pictures.
        root: folder to make.
        source: a copy of the data set; None draws a few pictures.
        size: side of the drawn pictures in pixels.

    Returns:
        The data set's folder.
    """
    if source is None:
        source = segae.draw_pets(root / "drawn", train=min(count, DRAWN), test=1, size=size, progress=False)
    pairs = segae.OxfordPets(source).splits["train"]
    folder = root / FOLDER
    images, trimaps = folder / "images", folder / "annotations" / "trimaps"
    for made in (images, trimaps):
        made.mkdir(parents=True)
    lines = []
    for number in range(count + 1):  # the last one is the test picture that the layout wants
        pair = pairs[number % len(pairs)]
        name = f"{pair.name.rsplit('_', 1)[0]}_{number + 1}"
        _link(pair.image, images / f"{name}.jpg")
        _link(pair.mask, trimaps / f"{name}.png")
        lines.append(f"{name} 1 1 1\n")
    for split, listed in (("trainval", lines[:-1]), ("test", lines[-1:]), ("list", lines)):
        (folder / "annotations" / f"{split}.txt").write_text("".join(listed))
    return folder


def _link(file: Path, link: Path) -> None:
    try:
        os.link(file.resolve(), link)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, link)
