"""Write the drawn-pets data set: python -m tools.draw_pets data/drawn-pets (from the repository's root)."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from tools.draw_pets.breeds import BREEDS, official_line
from tools.draw_pets.picture import draw_breed

SPLITS = {"train": 0, "test": 1, "unlabeled": 2}


def draw_pets(root: Path, counts: dict[str, int], size: int, seed: int, quality: int) -> None:
    """Draw a data set with images/, annotations/{trimaps/,list.txt,trainval.txt,test.txt} and unlabeled/.

    Each picture depends only on the seed, its split, its number and the size.

    Args:
        root: new or empty folder.
        counts: pictures of train, test and unlabeled.
        size: side in pixels, at least 32.
        seed: 0 or more.
        quality: of the JPEG files, 1 to 100.
    """
    for folder in ("images", "annotations/trimaps", "unlabeled"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        for index in range(count):
            breed, name = breed_and_name(split, index)
            image, trimap = draw_breed(BREEDS[breed], np.random.default_rng([seed, SPLITS[split], index]), size)
            if split == "unlabeled":
                target = root / "unlabeled" / f"drawn_{index + 1:06d}.jpg"
            else:
                target = root / "images" / f"{name}.jpg"
                write(root / "annotations" / "trimaps" / f"{name}.png", trimap, [cv2.IMWRITE_PNG_COMPRESSION, 9])
            write(target, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    lines = {
        split: [official_line(name, breed) for name, breed in sorted(breed_and_name(split, i)[::-1] for i in range(n))]
        for split, n in counts.items()
        if split != "unlabeled"
    }
    files = {"list": sorted(lines["train"] + lines["test"]), "trainval": lines["train"], "test": lines["test"]}
    for file, rows in files.items():
        (root / "annotations" / f"{file}.txt").write_text("".join(f"{row}\n" for row in rows))


def breed_and_name(split: str, index: int) -> tuple[int, str]:
    """Breeds take turns, cats and dogs mixed; odd numbers are train, even ones test."""
    breed = index * 16 % len(BREEDS)
    number = 2 * (index // len(BREEDS)) + 1 + SPLITS[split]
    return breed, f"{BREEDS[breed].name}_{number}"


def write(path: Path, pixels: np.ndarray, options: list[int]) -> None:
    """Encode in memory and write: OpenCV's own file writing fails without a reason."""
    path.write_bytes(cv2.imencode(path.suffix, pixels, options)[1].tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--test", type=int, default=120)
    parser.add_argument("--unlabeled", type=int, default=800)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quality", type=int, default=80)
    given = parser.parse_args()
    if given.root.exists() and any(given.root.iterdir()):
        parser.error(f"{given.root} is not empty; delete it or name a new folder")
    sizes = {"train": given.train, "test": given.test, "unlabeled": given.unlabeled}
    draw_pets(given.root, sizes, given.size, given.seed, given.quality)
