"""Does a pretraining's memory stay flat when the images become many?

    python benchmarks/memory.py [--paths cache live tar] [--counts 1000 100000]

For each data path and each number of images a process of its own finds the images, builds loaders and learner as
``segae pretrain`` does, and trains for some seconds. A thousand small pictures are drawn once; the others are hard
links to them in further folders, or links to one tar file, so each is found, listed and read like any other.

What counts is memory that nobody else can use: anonymous and shared pages, each page divided by the processes that
share it (``Pss_Anon`` and ``Pss_Shmem`` of Linux's ``smaps_rollup``, and ``SwapPss``: what was moved out to swap is
still held), summed over the process and its workers, five times a second. The pages of the memory-mapped cache are the
kernel's to take back and do not count; they stand in a column of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

DRAWN = 1000
SIZE = 32
KINDS = {"own": ("Pss_Anon", "Pss_Shmem", "SwapPss"), "files": ("Pss_File",)}


class Watch:
    """The largest memory of this process and its children while the block runs, in 10^6 bytes, by kind."""

    def __enter__(self) -> Watch:
        self.peak: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            seen: Counter[str] = Counter()
            for process in _family(os.getpid()):
                seen.update(_pages(process))
            for kind, value in seen.items():
                self.peak[kind] = max(self.peak[kind], value)
            if self._ended.wait(0.2):
                return


def _family(process: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [process, *children]


def _pages(process: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return {}
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return {kind: sum(sizes[name] for name in names) / 1e6 for kind, names in KINDS.items()}


def draw(folder: Path) -> Path:
    """A thousand noisy JPEG files, and a tar file of them."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    drawn = folder / "drawn"
    drawn.mkdir()
    for number in range(DRAWN):
        picture = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(drawn / f"{number:04d}.jpg")
    with tarfile.open(folder / "drawn.tar", "w") as archive:
        for path in sorted(drawn.iterdir()):
            archive.add(path, path.name)
    return drawn


def lay_out(drawn: Path, folder: Path, count: int, tar: bool) -> list[Path]:
    """So many images as ``--data`` would name them."""
    folder.mkdir()
    for turn in range(count // DRAWN):
        if tar:
            os.link(drawn.with_suffix(".tar"), folder / f"part-{turn:04d}.tar")
            continue
        part = folder / f"part-{turn:04d}"
        part.mkdir()
        for path in drawn.iterdir():
            os.link(path, part / f"{part.name}-{path.name}")
    return sorted(folder.glob("*.tar")) if tar else [folder]


def train(path: str, data: list[Path], out: Path, seconds: float, workers: int) -> dict[str, float]:
    """Pretrain for some seconds as ``segae pretrain`` begins; the peak by kind."""
    with Watch() as watch:
        learner, phases = _learner(path, data, out, workers)
        from segae.training.fit import fit
        from segae.training.pace import TimedLoader

        loaders = learner.dls.loaders
        loaders[:2] = [TimedLoader(loader, learner.dls.device, limit_s=seconds) for loader in loaders[:2]]
        log = fit(learner, phases, log_csv=out / "log.csv", resume_file=out / "resume.pt")
    return {**watch.peak, "trained": log[-1]["images"]}


def _learner(path: str, data: list[Path], out: Path, workers: int) -> tuple[Any, Any]:
    import torch

    from segae.data.quarantine import Quarantine
    from segae.tasks.compute import pretraining_of_items
    from segae.tasks.loading import load_unlabelled
    from segae.tasks.pretrain import Pretrain, begin

    device = torch.device("cpu")
    how: dict[str, Any] = {} if path == "tar" else {"data_path": path}
    how |= {"objective": "denoise", "image_size": SIZE, "epochs": 1, "workers": workers}
    config, model, description, objective, phases = begin(Pretrain(tuple(data), out, "test_resnet", **how), device)
    items = load_unlabelled(config, description, device, Quarantine())
    given = (items.train, items.valid)
    learner = pretraining_of_items(config, given, model, objective, device, train_indices=items.train_indices)
    learner.kept = items  # a training holds them until its end
    return learner, phases


def measure(path: str, count: int, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """The peaks of one process."""
    drawn, place = folder / "drawn", folder / f"{path}-{count}"
    data = lay_out(drawn, place, count, tar=path == "tar")
    job = {"path": path, "data": [str(part) for part in data], "out": str(folder), "seconds": given.seconds}
    job["workers"] = given.workers
    run = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)],
        env={**os.environ, "SEGAE_CACHE": str(folder / f"cache-{path}-{count}")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", nargs="+", choices=("cache", "live", "tar"), default=["cache", "live", "tar"])
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 100_000], help="multiples of 1000")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3.0, help="of training, and of validation")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one process's part
    return parser.parse_args(words)


def compare(given: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """The peaks by data path, one for each number of images."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in given.paths:
        for count in given.counts:
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder))
                peak = measure(path, count, Path(folder), given)
            found.setdefault(path, []).append(peak)
            ratio = peak["own"] / found[path][0]["own"]
            print(
                f"{path:<6}{count:>9,} images  {peak['own']:8.1f} MB  {ratio:5.3f} of the first  "
                f"{peak['files']:8.1f} MB of files  {peak['trained']:.0f} trained on",
                flush=True,
            )
    return found


def main() -> None:
    given = parse()
    if given.job is None:
        compare(given)
        return
    job = json.loads(given.job)
    data, out = [Path(part) for part in job.pop("data")], Path(job.pop("out"))
    print(json.dumps(train(data=data, out=out, **job)))


if __name__ == "__main__":
    main()
