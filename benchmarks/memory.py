"""Peak memory of segae's commands for few and for many images.

    python benchmarks/memory.py [--counts 1000 100000] [--commands finetune pretrain]
    python benchmarks/memory.py --counts 1000 20000 --commands features predict

A hundred small images are written once; the others are hard links to them in further folders, so each is found, listed
and read like any other. A hundred images are for validation, whatever the number: only the lists grow. Each training
runs for a few steps in a process of its own, with images decoded when they are needed (--cache none). `features` and
`predict` go through all images.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import segae

WRITTEN = VALIDATED = 100


def lay_out(folder: Path, count: int) -> Path:
    """Write images and masks of a data set with this many training images."""
    generator = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    first = []
    for number in range(WRITTEN):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:07d}.jpg")
        Image.fromarray(pixels[..., 0] % 2).save(folder / "masks" / f"{number:07d}.png")
        first.append((folder / "images" / f"{number:07d}.jpg", folder / "masks" / f"{number:07d}.png"))
    for number in range(WRITTEN, count):
        image, mask = first[number % WRITTEN]
        os.link(image, folder / "images" / f"{number:07d}.jpg")
        os.link(mask, folder / "masks" / f"{number:07d}.png")
    (folder / "classes.txt").write_text("background\nthing\n")
    names = [f"{number:07d}" for number in range(count)]
    (folder / "train.txt").write_text("\n".join(names[VALIDATED:-10]) + "\n")
    (folder / "val.txt").write_text("\n".join(names[:VALIDATED]) + "\n")
    (folder / "test.txt").write_text("\n".join(names[-10:]) + "\n")
    return folder


def peak_mb(words: list[str]) -> float:
    """Run a command and return the largest sum of private memory of it and its workers, in MB."""
    process = subprocess.Popen([sys.executable, "-m", "segae.cli", *words], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(private_mb, [process.pid, *children(process.pid)])))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"segae {' '.join(words)} ended with code {process.returncode}")
    return peak


def children(pid: int) -> list[int]:
    """Process ids of a process's children (Linux)."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def private_mb(pid: int) -> float:
    """Anonymous and shared memory of a process; pages of files do not count."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(kb) for kb in re.findall(r"(?:Pss_Anon|Pss_Shmem|SwapPss):\s+(\d+)", text)) / 1e3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--commands", nargs="+", default=["finetune", "pretrain"])
    given = parser.parse_args()
    training = ["--encoder", "test_resnet", "--image-size", "64", "--cache", "none", "--max-steps", "20"]
    for count in given.counts:
        with tempfile.TemporaryDirectory() as name:
            data, model = lay_out(Path(name) / "data", count), Path(name) / "model.safetensors"
            segae.save_segmenter(segae.create_segmenter("test_resnet", num_classes=2, image_size=64), model)
            settings = {
                "finetune": [data, *training],
                "pretrain": [data, *training, "--method", "denoise", "--val-fraction", VALIDATED / count],
                "features": [data / "images", "--encoder", model, "--image-size", "64"],
                "predict": [data / "images", "--model", model],
            }
            for command in given.commands:
                out = f"{name}/{command}" + (".npz" if command == "features" else "")
                peak = peak_mb([command, *map(str, settings[command]), "--out", out])
                print(f"{command:10} {count:8,} images: {peak:7.0f} MB", flush=True)
