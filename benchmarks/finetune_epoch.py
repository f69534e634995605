"""Time one fine-tuning epoch of segae against a plain PyTorch loop.

    python benchmarks/finetune_epoch.py [--write]

Both train the same model on the same batches with the same transforms, loss and kind of optimizer, turn by turn in one
process; the median of the ratios, one for each pair of turns, is what counts (wanted: at most 1.0). The allocator's
setting is the process's, so the plain loop has it too. ``--write`` adds rows to results/.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rows import save
from torch import nn
from torch.utils.data import DataLoader

import segae
from segae.training.pace import synchronise


def make_data(count: int, size: int, folder: Path):
    segae.draw_pets(folder / "pets", train=count, test=1, size=size, progress=False)
    data = segae.OxfordPets(folder / "pets")
    return segae.cache_pairs(
        data.splits["train"], size, data.mask_values, segae.Quarantine(), cache_dir=folder / "cache", progress=False
    )


def time_segae(model: nn.Module, images: segae.LabelledImages, batch_size: int, device: torch.device) -> float:
    loaders = segae.make_loaders(images, None, batch_size=batch_size, device=device)
    learner = segae.segmentation_learner(loaders, model, classes=3)
    started = time.perf_counter()
    segae.fit(learner, segae.make_phases(freeze_epochs=0, epochs=1))
    synchronise(device)
    return time.perf_counter() - started


def time_plain(model: nn.Module, images: segae.LabelledImages, batch_size: int, device: torch.device) -> float:
    """The loop that anyone would write: channels_last (and bfloat16 on a GPU), one-cycle AdamW, no framework."""
    started = time.perf_counter()
    model = model.to(device, memory_format=torch.channels_last).train()
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=len(images) % batch_size == 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=len(loader) + 1)
    loss_function = nn.CrossEntropyLoss()
    for image_bchw, mask_bhw in loader:
        image_bchw = image_bchw.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_function(model(image_bchw), mask_bhw.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    synchronise(device)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="a run of seconds that only shows that everything works")
    parser.add_argument("--write", action="store_true", help="add rows to results/, or to --out")
    parser.add_argument("--out", type=Path, help="CSV file")
    given = parser.parse_args()
    if given.quick:
        vars(given).update(encoder="test_resnet", size=64, images=8, batch_size=4, rounds=1)

    device = segae.choose_device(given.device)
    encoder, description = segae.create_encoder(given.encoder)
    model = segae.create_segmenter(encoder, given.encoder, "unet", classes=3)
    with tempfile.TemporaryDirectory() as folder:
        cached = make_data(given.images, given.size, Path(folder))
        transform = segae.train_transform(given.size, description.mean, description.std)
        images = segae.LabelledImages(cached.images, cached.masks, transform, seed=0)
        times: dict[str, list[float]] = {"segae": [], "plain": []}
        for turn in range(given.rounds + 1):  # the first round warms up
            for name, epoch in (("segae", time_segae), ("plain", time_plain))[:: 1 if turn % 2 else -1]:
                seconds = epoch(copy.deepcopy(model), images, given.batch_size, device)
                if turn:
                    times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["segae"], times["plain"], strict=True)]
    for name, value in medians.items():
        print(f"{name:>6}: {value:7.2f} s an epoch, {given.images / value:7.1f} images/s")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f} in {given.rounds} pairs"
    print(f" ratio: {statistics.median(ratios):.3f} ({spread}; wanted: at most 1.0)")
    if given.write:
        cell = {"task": "segment", "encoder": given.encoder, "image_size": given.size, "batch_size": given.batch_size}
        values = [
            ("segae", "images_per_second", [given.images / seconds for seconds in times["segae"]]),
            ("plain-loop", "images_per_second", [given.images / seconds for seconds in times["plain"]]),
            ("segae", "time_over_plain_loop", ratios),
        ]
        settings = f"epochs of {given.images} drawn images, {given.rounds} pairs, 0 workers, {given.size} px"
        where = {"path": given.out, "benchmark": "finetune_epoch", "settings": settings}
        save(device, {**cell, "data_path": "cache"}, values, **where)


if __name__ == "__main__":
    main()
