"""Time segae's training against its own ceiling and against what others offer, in the same minutes.

    python benchmarks/throughput.py [--task all] [--device auto] [--quick] [--write]

The ceiling C is the same model, loss and optimizer step on one batch that stays on the device. The rate R is that of
whole epochs through ``segae.fit`` with sampling, cache, corruption, augmentation and logging (no checkpoint), without
the first epoch. Ceiling, segae and peers take turns, there and back, so that a busy machine disturbs all of them alike;
where nothing is prepared in the background (a CPU without workers) a ceiling's step is timed after each batch of an
epoch. Medians over the rounds count, and of ratios the median of the rounds' ratios. Data wait is the share of an
epoch in which the loop waits for a batch; with no workers that is all work of augmentation.

Rows are written after each cell, and replace those of the same cell. On a CPU each cell runs in a process of its own,
because a process keeps the memory of its largest cell.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from layout import lay_out
from peers import PEERS, Absent, Peer, Work
from rates import Rates, measure_rates, time_phases
from rows import save

import segae
from segae.data.batch_transforms import CropAndFlip, MildChange
from segae.data.device_images import DeviceImages
from segae.data.live import LiveImages, LivePairs

ENCODERS = ("resnet18", "resnet34", "resnet50", "tf_efficientnet_lite0", "convnext_tiny")


@dataclass(frozen=True)
class Cell:
    """One line of the table: what is trained, on what, and how its images come."""

    task: str
    encoder: str
    size: int
    data_path: str


Source = tuple[segae.OxfordPets, segae.EncoderDescription, argparse.Namespace, torch.device]


def from_cache(cell: Cell, source: Source) -> Any:
    """Decoded once, read through a memory map, augmented by albumentations on the CPU."""
    pets, about, given, _ = source
    normalisation = (cell.size, about.mean, about.std)
    pairs = _cached(cell, pets, given)
    if cell.task == "pretrain":
        return segae.UnlabelledImages(pairs.images, segae.pretrain_transform(*normalisation), seed=0)
    return segae.LabelledImages(pairs.images, pairs.masks, segae.train_transform(*normalisation), seed=0)


def from_device(cell: Cell, source: Source) -> Any:
    """Decoded once, kept on the training device as bytes, augmented there in whole batches."""
    pets, about, given, device = source
    pairs = _cached(cell, pets, given)
    masks, change = (None, CropAndFlip()) if cell.task == "pretrain" else (pairs.masks, MildChange())
    return DeviceImages(pairs.images, masks, change, about.mean, about.std, device=device)


def from_files(cell: Cell, source: Source) -> Any:
    """Decoded anew each time, augmented by albumentations on the CPU."""
    pets, about, _, _ = source
    normalisation = (cell.size, about.mean, about.std)
    pairs = pets.splits["train"]
    if cell.task == "pretrain":
        paths = [pair.image for pair in pairs]
        return LiveImages(paths, cell.size, segae.pretrain_transform(*normalisation), seed=0)
    return LivePairs(pairs, cell.size, pets.mask_values, segae.train_transform(*normalisation), seed=0)


DATA_PATHS: dict[str, Callable[[Cell, Source], Any]] = {"cache": from_cache, "device": from_device, "live": from_files}


def _cached(cell: Cell, pets: segae.OxfordPets, given: argparse.Namespace) -> Any:
    quarantine, folder = segae.Quarantine(), given.work / "cache"
    return segae.cache_pairs(pets.splits["train"], cell.size, pets.mask_values, quarantine, folder, progress=False)


def make_learner(cell: Cell, given: argparse.Namespace, device: torch.device) -> Any:
    segae.seed_everything(0)
    encoder, about = segae.create_encoder(cell.encoder)
    images = DATA_PATHS[cell.data_path](cell, (segae.OxfordPets(given.work / "oxford-iiit-pet"), about, given, device))
    loaders = segae.make_loaders(images, None, batch_size=given.batch_size, device=device, workers=given.workers)
    if cell.task == "segment":
        model = segae.create_segmenter(encoder, cell.encoder, "unet", classes=3)
        return segae.segmentation_learner(loaders, model, classes=3, bn_mode="train")
    objective = segae.make_objective(given.objective)
    model = segae.create_pretrainer(encoder, cell.encoder, masking=objective.masking, decoder=objective.decoder)
    return segae.pretraining_learner(loaders, model, objective)


def make_peers(cell: Cell, given: argparse.Namespace, device: torch.device) -> list[Peer]:
    """Those that were asked for and exist here."""
    steps = given.images // given.batch_size
    work = Work(given.work, cell.encoder, cell.size, given.batch_size, device, given.peer_workers, steps)
    peers = []
    for name, make in PEERS[cell.task].items():
        if name in given.peers:
            try:
                peers.append(make(work))
            except Absent as reason:
                print(f"  {name} left out: {reason}")
    return peers


def measure(cell: Cell, given: argparse.Namespace, device: torch.device) -> None:
    """One cell: measure, print, and write if asked for."""
    print(f"{cell.task} {cell.encoder} {cell.size} px, {cell.data_path}, {given.batch_size} at a time", flush=True)
    learner = make_learner(cell, given, device)
    rates = measure_rates(learner, device, given.rounds, lambda: make_peers(cell, given, device))
    rows = as_values(cell, rates, time_phases(learner, 2 if given.quick else 20))
    for data_path, values in rows.items():
        for system, metric, value in values:
            middle = statistics.median(value) if isinstance(value, list) else value
            print(f"  {data_path:<9}  {system:<20}  {metric:<28}  {middle:10.3f}", flush=True)
    base = {"task": cell.task, "encoder": cell.encoder, "image_size": cell.size, "batch_size": given.batch_size}
    for data_path, values in rows.items() if given.write else ():
        own = {**base, "data_path": data_path, "beside": cell.data_path}
        save(device, own, values, given.out, benchmark="throughput", settings=in_words(cell, given, rates))


Values = list[tuple[str, str, "float | list[float]"]]


def as_values(cell: Cell, rates: Rates, phases: dict[str, float]) -> dict[str, Values]:
    """System, metric and value of each row, by data path; several values are those of the rounds."""
    own: Values = [
        ("segae", "ceiling", rates.ceiling),
        ("segae", "images_per_second", rates.segae),
        ("segae", "rate_over_ceiling", rates.over_ceiling),
        ("segae", "data_wait", rates.data_wait),
        ("segae", "peak_memory_mb", rates.peak_memory_mb),
        *(("segae", f"{phase}_ms", value) for phase, value in phases.items()),
    ]
    rows = {cell.data_path: own}
    for peer, values in rates.peers:
        rows.setdefault(peer.data_path, []).append((peer.system, peer.metric, values))
        if peer.metric == "images_per_second":
            own.append(("segae", f"ratio_to_{peer.system.replace('-', '_')}", _paired(rates.segae, values)))
    return rows


def _paired(ours: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ours, others, strict=True)]


def in_words(cell: Cell, given: argparse.Namespace, rates: Rates) -> str:
    """What else was chosen."""
    pictures = f"drawn at {given.drawn_size} px" if given.data is None else f"of {given.data.name}"
    parts = [f"{given.images} images an epoch, {pictures}", f"{given.rounds} rounds there and back, second epochs"]
    own = "workers as segae chooses" if given.workers is None else f"{given.workers} workers"
    parts += [f"{own}, {given.peer_workers} of the peers"]
    parts += ["a ceiling's step after each batch"] if rates.in_epochs else []
    return "; ".join([*parts, *([f"objective {given.objective}"] if cell.task == "pretrain" else [])])


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("pretrain", "segment", "all"), default="all")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 224])
    parser.add_argument("--data-paths", nargs="+", choices=DATA_PATHS, default=["cache"])
    parser.add_argument("--peers", nargs="*", default=["plain-loop", "fastai", "timm", "lightly"], help="none: no peer")
    parser.add_argument("--objective", default="mask", help="of the pretraining")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, help="a copy of Oxford-IIIT Pets; pictures are drawn without one")
    parser.add_argument("--drawn-size", type=int, default=256, help="side of the drawn pictures")
    parser.add_argument("--images", type=int, help="in an epoch; 192 on a CPU, 4096 on a GPU")
    parser.add_argument("--batch-size", type=int, help="16 on a CPU, 64 on a GPU")
    parser.add_argument("--workers", type=int, help="of segae; as many as its commands take")
    parser.add_argument("--peer-workers", type=int, help="of the peers; 2 on a CPU, 8 on a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="there and back: everything is timed twice in each")
    parser.add_argument("--quick", action="store_true", help="a minute's run that only shows that everything works")
    parser.add_argument("--write", action="store_true", help="add rows to results/, or to --out")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # a folder that the parent process has filled
    given = parser.parse_args(words)
    if given.quick:
        quick = {"encoders": ["test_resnet"], "sizes": [64], "images": 16, "batch_size": 8, "rounds": 1}
        vars(given).update(quick, drawn_size=64, workers=0, peer_workers=0)
    gpu = segae.choose_device(given.device).type != "cpu"
    defaults = {"images": (192, 4096), "batch_size": (16, 64), "peer_workers": (2, 8)}
    for name, values in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, values[gpu])
    return given


def main() -> None:
    given = parse()
    device = segae.choose_device(given.device)
    tasks = ("pretrain", "segment") if given.task == "all" else (given.task,)
    sizes = ((encoder, size) for encoder in given.encoders for size in given.sizes)
    cells = [Cell(task, *pair, data_path) for pair in sizes for task in tasks for data_path in given.data_paths]
    if given.work is not None:
        measure(cells[0], given, device)
        return
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        given.work = Path(folder)
        lay_out(given.images, given.work, source=given.data, size=given.drawn_size)
        for cell in cells:
            if device.type == "cpu" and len(cells) > 1 and not given.quick:
                own = ["--task", cell.task, "--encoders", cell.encoder, "--sizes", str(cell.size)]
                own += ["--data-paths", cell.data_path, "--work", folder]
                # of equal flags the last one counts
                done = subprocess.run([sys.executable, *sys.argv, *own], check=False).returncode == 0
            else:
                done = measure_if_it_fits(cell, given, device)
            failed += [] if done else [cell]
    if failed:
        sys.exit(f"not measured: {', '.join(map(str, failed))}")


def measure_if_it_fits(cell: Cell, given: argparse.Namespace, device: torch.device) -> bool:
    """Whether the device's memory sufficed; the other cells are measured either way."""
    try:
        measure(cell, given, device)
    except torch.OutOfMemoryError as error:
        print(f"  out of memory: {error}", file=sys.stderr)
        return False
    finally:
        gc.collect()  # a learner and its callbacks refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


if __name__ == "__main__":
    main()
