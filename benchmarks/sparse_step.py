"""Time segae's sparse-masked training step against the dense step of the same model.

    python benchmarks/sparse_step.py [--encoders resnet18 convnext_tiny] [--write]
    python benchmarks/sparse_step.py --quick

Both are steps of segae's own Learners (model, corruption, loss, autocast, optimizer) with the same weights, decoder,
loss and masks. The sparse one is that of ``--objective sparse_mask``; the dense one gives the encoder the image with
zeros in the holes, and has neither hooks nor mask tokens. They take turns in one process, and the median of the ratios
of neighbouring steps is what counts (wanted: at most 1.25). ``--write`` adds rows to results/ after each encoder.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from rows import save
from torch import nn
from torch.utils.data import TensorDataset
from turns import Pairs, time_pairs

import segae
from segae.objectives.presets import Objective
from segae.training.ceiling import TrainingStep

ENCODERS = ("resnet18", "resnet34", "resnet50", "tf_efficientnet_lite0", "convnext_tiny")


def make_steps(name: str, given: argparse.Namespace, device: torch.device) -> tuple[TrainingStep, TrainingStep]:
    """The sparse step, and the dense one."""
    segae.seed_everything(0)
    encoder, _ = segae.create_encoder(name)
    sparse = segae.make_objective("sparse_mask", patch=given.patch, mask_ratio=given.mask_ratio)
    dense = replace(sparse, masking="dense")
    models = [_pretrainer(copy.deepcopy(encoder), name, objective) for objective in (sparse, dense)]
    models[1].load_state_dict(models[0].state_dict(), strict=False)  # the dense model has no mask tokens
    generator = torch.Generator().manual_seed(0)
    image_bchw = torch.randn(given.batch_size, 3, given.image_size, given.image_size, generator=generator)
    loaders = segae.make_loaders(TensorDataset(image_bchw), None, batch_size=given.batch_size, device=device)
    first, second = (
        TrainingStep(segae.pretraining_learner(loaders, model, objective), (image_bchw,))
        for model, objective in zip(models, (sparse, dense), strict=True)
    )
    return first, second


def _pretrainer(encoder: nn.Module, name: str, objective: Objective) -> nn.Module:
    return segae.create_pretrainer(encoder, name, masking=objective.masking, decoder=objective.decoder)


def measure(name: str, given: argparse.Namespace, device: torch.device) -> Pairs:
    """One encoder: measure, print, and write if asked for."""
    times = time_pairs(*make_steps(name, given, device), given.pairs, device, steps=given.steps)
    print(f"{name:<24}{times}; wanted: at most 1.25", flush=True)
    if given.write:
        cell = {"task": "pretrain", "encoder": name, "image_size": given.image_size, "batch_size": given.batch_size}
        rates = {"sparse": times.on_s, "dense": times.off_s}
        values = [
            *((way, "images_per_second", [given.batch_size / one for one in taken]) for way, taken in rates.items()),
            ("sparse", "sparse_over_dense", times.ratios),
        ]
        settings = f"{given.pairs} pairs of {given.steps} step(s), patch {given.patch}, mask ratio {given.mask_ratio}"
        where = {"path": given.out, "benchmark": "sparse_step", "settings": settings}
        save(device, {**cell, "data_path": "one batch"}, values, **where)
    return times


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=20, help="timed pairs of turns")
    parser.add_argument("--steps", type=int, help="in a turn; 1 on a CPU, 20 on a GPU")
    parser.add_argument("--quick", action="store_true", help="a run of seconds that only shows that everything works")
    parser.add_argument("--write", action="store_true", help="add rows to results/, or to --out")
    parser.add_argument("--out", type=Path, help="CSV file")
    given = parser.parse_args(words)
    if given.quick:
        vars(given).update(encoders=["test_resnet"], image_size=64, batch_size=4, pairs=2, steps=1)
    if given.steps is None:
        given.steps = 1 if segae.choose_device(given.device).type == "cpu" else 20
    return given


def main() -> None:
    given = parse()
    device = segae.choose_device(given.device)
    ratios = [measure(name, given, device).ratio for name in given.encoders]
    print(f"ratios: median {statistics.median(ratios):.3f}, highest {max(ratios):.3f}")


if __name__ == "__main__":
    main()
