"""Make tiny data sets in their real layouts: colored shapes on noise, with masks, the same for the same seed.

Each class has a color of its own, so a small network learns the masks within a minute. The background of every image
is another one, so that no two images count as near-duplicates.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

COLORS = ((230, 60, 40), (40, 190, 70), (50, 90, 230), (230, 210, 50), (200, 60, 210))
PET, BACKGROUND, BORDER = 1, 2, 3  # values of a trimap


def draw(generator: np.random.Generator, size: int = 64, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Draw an ellipse or a box for each class but the first, which is the background.

    Returns:
        Image uint8 (size, size, 3), RGB; mask uint8 (size, size), class indices.
    """
    image = np.full((size, size, 3), 110.0, np.float32)
    for cells in (3, 6):
        noise = generator.normal(0, 45, (cells, cells, 1)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    ground, mask = image.copy(), np.zeros((size, size), np.uint8)
    for index in range(1, classes):
        shape = np.zeros_like(mask)
        center = [int(value) for value in generator.integers(size // 4, 3 * size // 4, 2)]
        axes = [int(value) for value in generator.integers(size // 8, size // 3 + 1, 2)]
        if generator.random() < 0.5:
            cv2.ellipse(shape, center, axes, float(generator.uniform(0, 180)), 0, 360, 1, -1)
        else:
            low, high = np.subtract(center, axes), np.add(center, axes)
            cv2.rectangle(shape, low.tolist(), high.tolist(), 1, -1)
        mask[shape > 0] = index
        image[shape > 0] = 0.3 * ground[shape > 0] + 0.7 * np.array(COLORS[(index - 1) % len(COLORS)], np.float32)
    image += generator.normal(0, 8, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def drawings(count: int, size: int, classes: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and masks of which each depends on its place and the seed only."""
    for place in range(count):
        yield draw(np.random.default_rng((seed, place)), size, classes)


def make_pets(
    root: Path, train: int = 6, test: int = 4, *, unlabeled: int = 0, size: int = 64, seed: int = 0, val: int = 0
) -> Path:
    """Make a data set in the official Oxford-IIIT Pet layout, its unlabeled images in ``root/unlabeled``."""
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    names = [f"{'Abyssinian' if place % 2 == 0 else 'beagle'}_{place}" for place in range(train + val + test)]
    for name, (image, mask) in zip(names, drawings(len(names), size, 2, seed), strict=True):
        trimap = np.where(mask > 0, PET, BACKGROUND).astype(np.uint8)
        thickness = np.ones((3, 3), np.uint8)
        trimap[cv2.dilate(mask, thickness) != cv2.erode(mask, thickness)] = BORDER
        save(image, root / "images" / f"{name}.jpg")
        save(trimap, root / "annotations" / "trimaps" / f"{name}.png")
    parts = {"trainval": names[: train + val], "test": names[train + val :]}
    if val:
        parts["val"] = names[train : train + val]
    for part, listed in parts.items():
        write_list(root / "annotations" / f"{part}.txt", [f"{name} 1 1 1" for name in listed])
    if unlabeled:
        make_images(root / "unlabeled", unlabeled, size=size, seed=seed + 1)
    return root


def make_folder(
    root: Path,
    train: int = 6,
    test: int = 4,
    *,
    val: int = 0,
    size: int = 64,
    values: Sequence[int] = (0, 1),
    classes: Sequence[str] = (),
    lists: bool = True,
    seed: int = 0,
) -> Path:
    """Make ``images/`` and ``masks/``.

    Args:
        root: the folder to make.
        train: number of training images.
        test: number of test images.
        val: number of validation images.
        size: side in pixels.
        values: value of each class in the masks.
        classes: names, written into classes.txt.
        lists: whether to write train.txt, test.txt and, where ``val`` is not 0, val.txt.
        seed: another seed, other images.
    """
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    names = [f"n{place}" for place in range(train + val + test)]
    for name, (image, mask) in zip(names, drawings(len(names), size, len(values), seed + 500), strict=True):
        save(image, root / "images" / f"{name}.png")
        save(np.array(values, np.uint16 if max(values) > 255 else np.uint8)[mask], root / "masks" / f"{name}.png")
    if classes:
        write_list(root / "classes.txt", classes)
    if lists:
        ends = np.cumsum([train, val, test])
        write_list(root / "train.txt", names[: ends[0]])
        write_list(root / "test.txt", names[ends[1] :])
        if val:
            write_list(root / "val.txt", names[ends[0] : ends[1]])
    return root


def make_images(root: Path, count: int = 6, *, size: int = 64, seed: int = 0, extension: str = "jpg") -> Path:
    """Make a folder of images without masks."""
    root.mkdir(parents=True)
    for place, (image, _) in enumerate(drawings(count, size, 2, seed + 1000)):
        save(image, root / f"photo_{place:03d}.{extension}")
    return root


def make_shard(path: Path, count: int = 6, *, size: int = 64, seed: int = 0, extension: str = "jpg") -> Path:
    """Make a tar shard as webdataset reads it: the images of `make_images`, one file each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for place, (image, _) in enumerate(drawings(count, size, 2, seed + 1000)):
            stored = io.BytesIO()
            Image.fromarray(image).save(stored, "JPEG" if extension == "jpg" else extension, quality=95)
            member = tarfile.TarInfo(f"photo_{place:03d}.{extension}")
            member.size = stored.tell()
            stored.seek(0)
            tar.addfile(member, stored)
    return path


def save(array: np.ndarray, path: Path) -> Path:
    """Write an array as an image in the format of its file name."""
    Image.fromarray(array).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def write_list(path: Path, lines: Sequence[str]) -> Path:
    """Write a list of names, one per line."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
