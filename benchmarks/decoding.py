"""Time how a JPEG becomes a small square: decoded whole and resized, against live decoding, which reads it reduced.

    python benchmarks/decoding.py [--data PETS] [--write]

One process, one thread. Of a set of photographs so many are read by turns, both ways; large pictures of 2000 x 1500
pixels are drawn. How far the two results are apart, in grey levels of 255, is in the rows too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from rows import save
from turns import Pairs, time_pairs

import segae
from segae.data.images import read_image
from segae.data.reduced import read_resized
from segae.data.resize import resize_image

CPU = torch.device("cpu")
LARGE = (1500, 2000)


def draw_large(folder: Path, count: int) -> list[Path]:
    """Drawn pets of 2000 x 1500 pixels, with a camera's noise: flat areas would decode too fast."""
    pets = segae.draw_pets(folder / "pets", train=count, test=1, size=256, progress=False)
    noise = np.random.default_rng(0)
    paths = []
    for pair in segae.OxfordPets(pets).splits["train"]:
        picture = cv2.resize(read_image(pair.image), LARGE[::-1], interpolation=cv2.INTER_CUBIC)
        grainy = np.clip(picture + noise.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{pair.name}.jpg")
        Image.fromarray(grainy).save(paths[-1], quality=90)
    return paths


def measure(paths: Sequence[Path], size: int, pairs: int) -> tuple[Pairs, float]:
    """Seconds of both ways for one image, and the mean distance of their results in grey levels."""

    def live() -> None:
        for path in paths:
            read_resized(path, size)

    def whole() -> None:
        for path in paths:
            resize_image(read_image(path), size)

    timed = time_pairs(live, whole, pairs, CPU, warm_up=1)
    each = Pairs(*([seconds / len(paths) for seconds in way] for way in (timed.on_s, timed.off_s)))
    apart = [
        np.abs(read_resized(path, size).astype(float) - resize_image(read_image(path), size)).mean() for path in paths
    ]
    return each, float(np.mean(apart))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a copy of Oxford-IIIT Pets; left out: drawn pictures alone")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 224])
    parser.add_argument("--images", type=int, default=32, help="of each set")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="add rows to results/, or to --out")
    parser.add_argument("--out", type=Path, help="CSV file")
    return parser.parse_args(words)


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = {"2000 x 1500 px": draw_large(Path(folder), given.images)}
        if given.data is not None:
            pairs = segae.OxfordPets(given.data).splits["train"][: given.images]
            sets["Oxford-IIIT Pets"] = [pair.image for pair in pairs]
        for name, paths in sets.items():
            for size in given.sizes:
                timed, apart = measure(paths, size, given.pairs)
                print(f"{name:<18}{size:>4} px  live against whole: {timed}; {apart:.2f} grey levels apart", flush=True)
                if given.write:
                    write(name, size, timed, apart, given)


def write(name: str, size: int, timed: Pairs, apart: float, given: argparse.Namespace) -> None:
    cell = {"task": "decode", "encoder": "", "image_size": size, "batch_size": 1, "data_path": name}
    values = [
        ("live", "ms", [1000 * seconds for seconds in timed.on_s]),
        ("whole", "ms", [1000 * seconds for seconds in timed.off_s]),
        ("live", "time_over_whole", timed.ratios),
        ("live", "grey_levels_apart", apart),
    ]
    settings = f"{given.images} images, {given.pairs} pairs there and back, one thread"
    save(CPU, cell, values, given.out, benchmark="decoding", settings=settings)


if __name__ == "__main__":
    main()
