"""Time one sparse-masked training step against the dense step of the same model.

    python benchmarks/sparse_step.py [--encoder resnet18] [--write]

Both train one `Pretrainer` with the hierarchical decoder on the same masked images with the same loss and
optimizer, turn by turn in one process; the dense step gives the encoder the image with zeros in the holes and has
no hooks. The median of the ratios of neighbouring steps is what counts (wanted: at most 1.25). ``--write`` adds
rows to results/.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rows import save
from torch import Tensor, nn

import segae
from segae.models.pretrainer import create_pretrainer
from segae.objectives.corruption import PatchMask


def make_stepper(model: nn.Module, clean_bchw: Tensor, masked_bchw: Tensor, hidden_b1hw: Tensor):
    """A function that trains one step and returns its seconds; `sparse` says how."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    device = clean_bchw.device
    shown: dict[bool, Tensor | None] = {True: hidden_b1hw, False: None}

    def step(sparse: bool) -> float:
        _wait(device)
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            prediction_bchw = model(masked_bchw, shown[sparse])
        loss = ((prediction_bchw.float() - clean_bchw).square() * hidden_b1hw).sum() / hidden_b1hw.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _wait(device)
        return time.perf_counter() - started

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20, help="timed pairs of steps")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()

    device = segae.choose_device(given.device)
    torch.manual_seed(0)
    encoder, _ = segae.create_encoder(given.encoder)
    model = create_pretrainer(encoder, given.encoder, masking="sparse", decoder="hierarchical")
    model = model.to(device, memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(0)
    image_bchw = torch.randn(given.batch_size, 3, given.image_size, given.image_size, generator=generator)
    clean_bchw = image_bchw.to(device, memory_format=torch.channels_last)
    corrupted = PatchMask(given.patch, given.mask_ratio)(clean_bchw, generator)
    step = make_stepper(model, clean_bchw, corrupted.image_bchw, corrupted.hidden_b1hw)

    seconds: dict[bool, list[float]] = {True: [], False: []}
    warm_up = 3
    for turn in range(given.steps + warm_up):
        for sparse in (True, False)[:: 1 if turn % 2 else -1]:
            taken = step(sparse)
            if turn >= warm_up:
                seconds[sparse].append(taken)
    medians = {"sparse": statistics.median(seconds[True]), "dense": statistics.median(seconds[False])}
    ratio = statistics.median(a / b for a, b in zip(seconds[True], seconds[False], strict=True))
    for name, value in medians.items():
        print(f"{name:>6}: {1000 * value:8.1f} ms a step, {given.batch_size / value:8.1f} images/s")
    print(f" ratio: {ratio:.3f} (median of {given.steps} pairs; wanted: at most 1.25)")
    if given.write:
        cell = {
            "task": "pretrain",
            "encoder": given.encoder,
            "image_size": given.image_size,
            "batch_size": given.batch_size,
            "data_path": "one batch",
        }
        values = [
            ("sparse", "images_per_second", given.batch_size / medians["sparse"]),
            ("dense", "images_per_second", given.batch_size / medians["dense"]),
            ("sparse", "sparse_over_dense", ratio),
        ]
        save(device, cell, values)


if __name__ == "__main__":
    main()
