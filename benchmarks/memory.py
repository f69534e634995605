"""Does a training's memory stay flat when the images become many?

    python benchmarks/memory.py [--task pretrain segment] [--paths cache live tar] [--counts 1000 100000] [--write]

For each task, data path and number of images a process of its own finds the images, builds loaders and learner as
``segae pretrain`` or ``segae segment`` does, and trains for some seconds. A thousand small pictures (and masks) are
drawn once; the others are hard links to them in further folders, or links to one tar file, so each is found, listed
and read like any other. ``--write`` adds rows to results/.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import Watch

DRAWN = 1000
SIZE = 32
BATCH = 16
CLASSES = ("background", "thing")


def draw(folder: Path) -> Path:
    """A thousand noisy JPEG files, a mask for each, and a tar file of the images."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    drawn, masks = folder / "drawn", folder / "drawn-masks"
    drawn.mkdir()
    masks.mkdir()
    for number in range(DRAWN):
        picture = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(drawn / f"{number:04d}.jpg")
        Image.fromarray(picture[..., 0] % len(CLASSES)).save(masks / f"{number:04d}.png")
    with tarfile.open(folder / "drawn.tar", "w") as archive:
        for path in sorted(drawn.iterdir()):
            archive.add(path, path.name)
    return drawn


def lay_out(drawn: Path, folder: Path, count: int, kind: str) -> list[Path]:
    """So many images as ``--data`` would name them: "folders" or "tar" of images, or "labelled" with masks."""
    folder.mkdir()
    for turn in range(count // DRAWN):
        name = f"part-{turn:04d}"
        if kind == "tar":
            os.link(drawn.with_suffix(".tar"), folder / f"{name}.tar")
        elif kind == "labelled":
            _link_all(drawn, folder / "images", name)
            _link_all(drawn.with_name("drawn-masks"), folder / "masks", name)
        else:
            _link_all(drawn, folder / name, name)
    if kind == "labelled":
        (folder / "classes.txt").write_text("\n".join(CLASSES))
    return sorted(folder.glob("*.tar")) if kind == "tar" else [folder]


def _link_all(source: Path, folder: Path, prefix: str) -> None:
    folder.mkdir(exist_ok=True)
    for path in source.iterdir():
        os.link(path, folder / f"{prefix}-{path.name}")


def train(task: str, path: str, data: list[Path], out: Path, seconds: float, workers: int) -> dict[str, float]:
    """Train for some seconds as ``segae pretrain`` or ``segae segment`` begins; the peak by kind."""
    with Watch() as watch:
        how: dict[str, Any] = {} if path == "tar" else {"data_path": path}
        how |= {"encoder": "test_resnet", "image_size": SIZE, "batch_size": BATCH, "epochs": 1, "workers": workers}
        learner, phases = (_pretraining if task == "pretrain" else _segmentation)(data, {**how, "out": out})
        from segae.training.fit import fit
        from segae.training.pace import TimedLoader

        loaders = learner.dls.loaders
        loaders[:2] = [TimedLoader(loader, learner.dls.device, limit_s=seconds) for loader in loaders[:2]]
        log = fit(learner, phases, log_csv=out / "log.csv", resume_file=out / "resume.pt")
    return {**watch.peak, "trained": log[-1]["images"]}


def _pretraining(data: list[Path], how: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    from segae.data.quarantine import Quarantine
    from segae.tasks.compute import pretraining_of_items
    from segae.tasks.loading import load_unlabelled
    from segae.tasks.pretrain import Pretrain, begin

    device = torch.device("cpu")
    config, model, about, objective, phases = begin(Pretrain(tuple(data), objective="denoise", **how), device)
    items = load_unlabelled(config, about, device, Quarantine())
    given = (items.train, items.valid)
    learner = pretraining_of_items(config, given, model, objective, device, train_indices=items.train_indices)
    learner.kept = items  # a training holds them until its end
    return learner, phases


def _segmentation(data: list[Path], how: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    import segae
    from segae.data.open import open_dataset
    from segae.data.quarantine import Quarantine
    from segae.tasks.compute import segmentation_of_items
    from segae.tasks.labelled import load_labelled
    from segae.tasks.segment import Segment, resolve

    device, found = torch.device("cpu"), open_dataset(data[0])
    encoder, about = segae.create_encoder(how["encoder"])
    config = resolve(Segment(data[0], freeze_epochs=0, **how), about)
    model = segae.create_segmenter(encoder, config.encoder, config.decoder, len(found.classes))
    items = load_labelled(config, found, about, device, Quarantine())
    learner = segmentation_of_items(config, (items.train, items.valid), model, len(found.classes), SIZE, device)
    learner.kept = items, found
    return learner, segae.make_phases(freeze_epochs=0, epochs=1)


def measure(task: str, path: str, count: int, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """The peaks of one process."""
    kind = "labelled" if task == "segment" else "tar" if path == "tar" else "folders"
    data = lay_out(folder / "drawn", folder / f"{path}-{count}", count, kind)
    job = {"task": task, "path": path, "data": [str(part) for part in data], "out": str(folder)}
    job |= {"seconds": given.seconds, "workers": given.workers}
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
    parser.add_argument("--task", nargs="+", choices=("pretrain", "segment"), default=["pretrain"])
    paths = ("cache", "live", "tar")
    parser.add_argument("--paths", nargs="+", choices=paths, default=paths, help="segment has no tar")
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 100_000], help="multiples of 1000")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare images; their memory counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="of training, and of validation")
    parser.add_argument("--write", action="store_true", help="add rows to results/, or to --out")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one process's part
    return parser.parse_args(words)


def compare(given: argparse.Namespace) -> dict[tuple[str, str], list[dict[str, float]]]:
    """The peaks by task and data path, one for each number of images."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for task in given.task:
        for path in given.paths:
            if (task, path) != ("segment", "tar"):
                found[task, path] = list(_peaks(task, path, given))
                if given.write:
                    write(task, path, found[task, path], given)
    return found


def _peaks(task: str, path: str, given: argparse.Namespace) -> Iterator[dict[str, float]]:
    first = 0.0
    for count in given.counts:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder))
            peak = measure(task, path, count, Path(folder), given)
        first = first or peak["own"]
        print(
            f"{task:<9}{path:<6}{count:>9,} images  {peak['own']:8.1f} MB  {peak['own'] / first:5.3f} of the first  "
            f"{peak['files']:8.1f} MB of files  {peak['trained']:.0f} trained on",
            flush=True,
        )
        yield peak


def write(task: str, path: str, peaks: list[dict[str, float]], given: argparse.Namespace) -> None:
    """A row for each number of images, and one for what each is of the first."""
    import torch
    from rows import save

    values = []
    for count, peak in zip(given.counts, peaks, strict=True):
        system = f"{count} images, {given.workers} workers"
        values.append((system, "peak_memory_mb", peak["own"]))
        if count != given.counts[0]:
            values.append((system, "peak_over_smaller", peak["own"] / peaks[0]["own"]))
    cell = {"task": task, "encoder": "test_resnet", "image_size": SIZE, "batch_size": BATCH, "data_path": path}
    settings = f"{given.seconds:g} s of training and of validation, process and workers together, without mapped files"
    save(torch.device("cpu"), cell, values, given.out, benchmark="memory", settings=settings)


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
