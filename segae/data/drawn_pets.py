"""Cats and dogs drawn procedurally, in the official layout of the Oxford-IIIT Pet set.

The data set for whoever has no connection, and for tests: nothing is downloaded, every picture comes from a
seed. Drawn pets are no photographs, and numbers measured on them say nothing about photographs.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from segae.data.drawing.breeds import BREEDS, official_line
from segae.data.drawing.picture import draw_breed
from segae.errors import SegaeError

MIN_SIZE = 32
PARAMETERS = "drawn.json"
_DRAWING = 1  # raise it when the same seed gives other pictures
_SPLITS = {"train": 0, "test": 1, "unlabelled": 2}


def draw_pet(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one cat or dog of a random breed, pose, coat and scene.

    Args:
        generator: Source of all randomness: the same state gives the same picture.
        size: Side in pixels, at least 32.

    Returns:
        Image uint8 (size, size, 3) RGB, and trimap uint8 (size, size): 1 pet, 2 background, 3 border, all
        three present. The pet's outline encloses 15 to 70 % of the picture.

    Raises:
        SegaeError: The size is below 32.

    Example:
        ``image, trimap = draw_pet(np.random.default_rng(0), 128)``
    """
    _require_size(size)
    return draw_breed(BREEDS[generator.integers(len(BREEDS))], generator, size)


def is_drawn(root: Path) -> bool:
    """Whether the folder of a data set was made by :func:`draw_pets`."""
    return (root / PARAMETERS).is_file()


def draw_pets(
    root: Path,
    train: int,
    test: int,
    size: int = 128,
    seed: int = 0,
    unlabelled: int = 0,
    progress: bool = True,
) -> Path:
    """Draw a data set in the official layout: images/, annotations/{trimaps/,list.txt,trainval.txt,test.txt}.

    Every picture depends only on (seed, split, its place in the split, size), so more pictures keep the
    first ones. A finished folder is known by its ``drawn.json``; drawing it again with the same parameters
    returns at once, and an interrupted drawing is taken up again.

    Args:
        root: Folder to make; its content must be nothing, or an earlier drawing with the same parameters.
        train: Pictures in trainval.txt.
        test: Pictures in test.txt.
        size: Side in pixels, at least 32.
        seed: Not negative.
        unlabelled: Further pictures without trimaps, in ``root/unlabelled``.
        progress: Show a progress bar.

    Returns:
        ``root``.

    Raises:
        SegaeError: A parameter is out of range, or the folder holds something else.
    """
    root = Path(root)
    _require_size(size)
    counts = {"train": train, "test": test, "unlabelled": unlabelled}
    _require_not_negative(counts | {"seed": seed})
    parameters = json.dumps({"drawing": _DRAWING, "size": size, "seed": seed, **counts}, indent=1) + "\n"
    if _already_drawn(root, parameters):
        return root
    for folder in ("images", "annotations/trimaps", *(["unlabelled"] if unlabelled else [])):
        (root / folder).mkdir(parents=True, exist_ok=True)
    begun = root / f"{PARAMETERS}.part"
    begun.write_text(parameters)
    work = [(split, index) for split, count in counts.items() for index in range(count)]
    for split, index in tqdm(work, desc="drawing pets", unit="image", leave=False, disable=None if progress else True):
        _write_picture(root, split, index, size, seed)
    _write_lists(root, train, test)
    begun.replace(root / PARAMETERS)
    return root


def _require_size(size: int) -> None:
    if size < MIN_SIZE:
        raise SegaeError(f"The size is {size} pixels, but a drawn pet needs at least {MIN_SIZE}: give --size 128.")


def _require_not_negative(values: dict[str, int]) -> None:
    for name, value in values.items():
        if value < 0:
            raise SegaeError(f"{name} is {value}, but it must be 0 or more: give --{name} 0 or a larger number.")


def _already_drawn(root: Path, parameters: str) -> bool:
    """Whether root is finished; raises if it holds anything but a drawing with these parameters."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise SegaeError(f"{root} is a file, but pets are drawn into a folder: give the name of a new folder.")
    for marker in (root / PARAMETERS, root / f"{PARAMETERS}.part"):
        if not marker.exists():
            continue
        found = marker.read_text()
        if found == parameters:
            return marker.name == PARAMETERS
        seen, wanted = " ".join(found.split()), " ".join(parameters.split())
        raise SegaeError(
            f"{root} holds pets drawn with {seen}, but {wanted} is asked for: name another folder, or delete this one."
        )
    if any(root.iterdir()):
        raise SegaeError(
            f"{root} holds files that are no drawn pets, and nothing is drawn over them: name a new or empty folder."
        )
    return False


def _breed_and_name(split: str, index: int) -> tuple[int, str]:
    """Breeds take turns, cats and dogs mixed; odd numbers are train, even ones test."""
    breed = index * 16 % len(BREEDS)
    number = 2 * (index // len(BREEDS)) + 1 + _SPLITS[split]
    return breed, f"{BREEDS[breed].name}_{number}"


def _write_picture(root: Path, split: str, index: int, size: int, seed: int) -> None:
    breed, name = _breed_and_name(split, index)
    generator = np.random.default_rng([seed, _SPLITS[split], index])
    image, trimap = draw_breed(BREEDS[breed], generator, size)
    if split == "unlabelled":
        target = root / "unlabelled" / f"drawn_{index + 1:06d}.jpg"
    else:
        target = root / "images" / f"{name}.jpg"
        _write(root / "annotations" / "trimaps" / f"{name}.png", trimap, [])
    _write(target, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def _write(path: Path, pixels: np.ndarray, options: list[int]) -> None:
    # Encoded in memory: OpenCV's own file writing fails without a reason.
    encoded = cv2.imencode(path.suffix, pixels, options)[1]
    path.write_bytes(encoded.tobytes())


def _write_lists(root: Path, train: int, test: int) -> None:
    lines = {}
    for split, count in (("train", train), ("test", test)):
        named = sorted(_breed_and_name(split, index)[::-1] for index in range(count))
        lines[split] = [official_line(name, breed) for name, breed in named]
    everything = {
        "list": sorted(lines["train"] + lines["test"]),
        "trainval": lines["train"],
        "test": lines["test"],
    }
    for name, rows in everything.items():
        (root / "annotations" / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
