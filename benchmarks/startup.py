"""Time what a user waits for before anything happens: `segae --help`, and `segae predict` on one image, each cold.

    python benchmarks/startup.py [--turns 5] [--write]

Cold means a new process each time, its interpreter and its imports included; the files it reads are warm, since the
model was written moments ago. The model is trained for an epoch on a few drawn pets. The two commands take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rows import save

ENCODER, SIZE = "tf_efficientnet_lite0", 128
BOUNDS = {"help": 1.0, "predict": 8.0}
"""Seconds that the least time of each command stays below on a CPU."""


def prepare(folder: Path) -> dict[str, list[str]]:
    """Train a small model on drawn pets, and give the words of each command.

    Args:
        folder: empty; takes the pictures, the model and the masks.
    """
    pets, run = folder / "pets", folder / "run"
    drawn = ["data", "drawn", "--root", str(pets), "--train", "8", "--test", "1", "--unlabelled", "0"]
    train = ["segment", "--data", str(pets), "--out", str(run), "--encoder", ENCODER, "--image-size", str(SIZE)]
    for words in (drawn, [*train, "--freeze-epochs", "0", "--epochs", "1", "--batch-size", "4", "--device", "cpu"]):
        call(words)
    image = min((pets / "images").iterdir())
    predict = ["predict", "--model", str(run / "model.safetensors"), "--input", str(image), "--device", "cpu"]
    return {"help": ["--help"], "predict": [*predict, "--out", str(folder / "masks")]}


def call(words: Sequence[str]) -> float:
    """Seconds of one command in a new process; raises CalledProcessError where it fails."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "segae.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(turns: int) -> dict[str, list[float]]:
    """Seconds of each command in each turn."""
    with tempfile.TemporaryDirectory() as folder:
        commands = prepare(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(turns):
            for name, words in commands.items():
                seconds[name].append(call(words))
    return seconds


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="add rows to results/, or to --out")
    parser.add_argument("--out", type=Path, help="CSV file")
    return parser.parse_args(words)


def main() -> None:
    given = parse()
    seconds = measure(given.turns)
    for name, values in seconds.items():
        least, middle = min(values), statistics.median(values)
        print(f"segae {name:<8}  least {least:6.2f} s  median {middle:6.2f} s  bound {BOUNDS[name]:.0f} s")
    if given.write:
        cell = {"encoder": ENCODER, "image_size": SIZE, "batch_size": 1, "data_path": "files"}
        how = f"new process each time, {given.turns} turns"
        for name, values in seconds.items():
            timed = [("segae", "startup_seconds", values)]
            save(torch.device("cpu"), {**cell, "task": name}, timed, given.out, benchmark="startup", settings=how)


if __name__ == "__main__":
    main()
