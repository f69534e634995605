"""Images per second of fine-tuning: segae, a plain PyTorch loop and the upper bound, taking turns in one process.

    python benchmarks/throughput.py [--encoders tf_efficientnet_lite0 resnet18] [--data FOLDER] [--write]

- segae: epochs through ``segae.fit`` with cached images, augmentation, log and freeze-then-all parameter groups.
- plain_loop: what people write: a DataLoader that decodes, resizes and augments each file, smp.Unet, AdamW.
- plain_loop_cached: the same loop over images that were decoded before.
- peak: the same model, loss and optimizer step on one batch that stays on the device.

Each round times every system once, in turn, so that a busy machine disturbs all alike. Ratios are medians of the
rounds' ratios. All use the same threads, transforms and batch size.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import segae
from segae.data import (
    CachedPairDataset,
    Pair,
    SkippedFiles,
    cache_pairs,
    drawn_pets,
    make_loaders,
    open_dataset,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
    to_class_indices,
    train_transform,
)
from segae.training import choose_device, fit, limit_threads, prepare_device, provenance, segmentation_learner
from segae.training.schedule import freeze_finetune_phases


class DecodedEachTime(Dataset):
    """The data set of a plain loop: decode, resize, augment."""

    def __init__(self, pairs: list[Pair], size: int, mask_values: tuple, transform: Callable) -> None:
        self.pairs, self.size, self.mask_values, self.transform = pairs, size, mask_values, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = self.pairs[index]
        image = resize_image(read_image(pair.image), self.size)
        mask = resize_mask(to_class_indices(read_mask(pair.mask), self.mask_values, pair.mask), self.size)
        item = self.transform(image=image, mask=mask)
        return item["image"], item["mask"].long()


class DecodedBefore(Dataset):
    """The same from arrays."""

    def __init__(self, images: np.ndarray, masks: np.ndarray, transform: Callable) -> None:
        self.images, self.masks, self.transform = images, masks, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        item = self.transform(image=np.array(self.images[index]), mask=np.array(self.masks[index]))
        return item["image"], item["mask"].long()


def plain_loop(loader: DataLoader, encoder: str, classes: int, device: torch.device) -> Callable[[], float]:
    """Make a function that trains one epoch as a plain loop does and returns images per second."""
    model = smp.Unet(f"tu-{encoder}", encoder_weights=None, classes=classes).to(device)
    optimizer, criterion = torch.optim.AdamW(model.parameters(), 1e-3), nn.CrossEntropyLoss()

    def epoch() -> float:
        model.train()
        images, started = 0, time.perf_counter()
        for image, mask in loader:
            optimizer.zero_grad()
            loss = criterion(model(image.to(device)), mask.to(device))
            loss.backward()
            optimizer.step()
            images += len(image)
        loss.item()
        return images / (time.perf_counter() - started)

    return epoch


def segae_epoch(
    images: np.ndarray, masks: np.ndarray, encoder: str, classes: int, size: int, batch: int, device: torch.device
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Make functions for an epoch through segae.fit and for the steps of an epoch on one resident batch."""
    model = segae.create_segmenter(segae.create_encoder(encoder), num_classes=classes)
    info = model.info.encoder
    dataset = CachedPairDataset(images, masks, train_transform(size, info.mean, info.std), seed=0)
    learner = segmentation_learner(make_loaders(dataset, None, batch_size=batch, device=device), model)
    learner.create_opt()
    phases = freeze_finetune_phases(0, 1)
    resident = [part.to(device) for part in next(iter(learner.dls.train))]
    resident[0] = resident[0].contiguous(memory_format=torch.channels_last)

    def epoch() -> float:
        return float(fit(learner, phases, report=str)["images_per_second"].iloc[-1])

    def peak() -> float:
        learner.model.train()
        steps = len(learner.dls.train)
        started = time.perf_counter()
        for _ in range(steps):
            loss = learner.loss_func(learner.model(resident[0]), resident[1])
            loss.backward()
            learner.opt.step()
            learner.opt.zero_grad()
        loss.item()
        return steps * len(resident[0]) / (time.perf_counter() - started)

    return epoch, peak


def measure(encoder: str, given: argparse.Namespace) -> list[dict[str, object]]:
    """Time all systems for one encoder and return the rows."""
    device = choose_device(given.device)
    prepare_device(device)
    data = open_dataset(given.data)
    pairs, size, batch = list(data.splits["train"])[: given.images], given.image_size, given.batch_size
    cached = cache_pairs(pairs, size, data.mask_values, SkippedFiles())
    info = segae.create_encoder(encoder).info
    transform, classes = train_transform(size, info.mean, info.std), len(data.classes)
    loading = {"batch_size": batch, "shuffle": True, "drop_last": True, "num_workers": given.workers}
    live = DataLoader(DecodedEachTime(pairs, size, data.mask_values, transform), **loading)
    before = DataLoader(DecodedBefore(cached.images, cached.masks, transform), **loading)
    epoch, peak = segae_epoch(cached.images, cached.masks, encoder, classes, size, batch, device)
    systems = {
        "segae": epoch,
        "plain_loop": plain_loop(live, encoder, classes, device),
        "plain_loop_cached": plain_loop(before, encoder, classes, device),
        "peak": peak,
    }
    rounds: list[dict[str, float]] = []
    for turn in range(given.rounds + 1):
        order = list(systems)[:: 1 if turn % 2 else -1]
        rates = {name: systems[name]() for name in order}
        if turn:  # the first round warms up
            rounds.append(rates)
    about = {"task": "finetune", "encoder": encoder, "image_size": size, "batch_size": batch, "data_path": "disk"}
    source = provenance(device) | {"date": datetime.date.today().isoformat()}
    found = [("images_per_second", name, [rates[name] for rates in rounds]) for name in systems] + [
        (metric, "segae", [rates["segae"] / rates[other] for rates in rounds])
        for metric, other in (
            ("ratio_to_plain_loop", "plain_loop"),
            ("ratio_to_plain_loop_cached", "plain_loop_cached"),
            ("rate_over_peak", "peak"),
        )
    ]
    rows = []
    for metric, system, values in found:
        value = statistics.median(values)
        print(f"{encoder:24} {system:18} {metric:28} {value:8.3f}  ({min(values):.3f} to {max(values):.3f})")
        limits = {"lowest": round(min(values), 4), "highest": round(max(values), 4)}
        rows.append({**about, "system": system, "metric": metric, "value": round(value, 4), **limits, **source})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["tf_efficientnet_lite0", "resnet18"])
    parser.add_argument("--data", type=Path, default=drawn_pets())
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="of the plain loops")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="add the rows to results/throughput_<device>.csv")
    given = parser.parse_args()
    with limit_threads(given.threads):
        rows = [row for encoder in given.encoders for row in measure(encoder, given)]
    if given.write:
        kind = choose_device(given.device).type
        target = Path(__file__).parents[1] / "results" / f"throughput_{kind}.csv"
        known = pd.read_csv(target) if target.exists() else pd.DataFrame()
        pd.concat([known, pd.DataFrame(rows)]).to_csv(target, index=False)
