"""Our fine-tuning beside a plain loop, step by step from the same weights: the present trainer, not older rows.

One batch holds all images, so that the order of the images, which no two programs share, does not matter.
"""

from __future__ import annotations

import csv
import importlib.util
import math
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from PIL import Image
from torch import nn

from segae.models.encoder import create_encoder
from segae.models.segmenter import create_segmenter
from segae.tasks.segment import Segment
from segae.tasks.segment import run as segment
from segae.training.run import seed_everything

ENCODER, SIZE, IMAGES = "test_resnet", 64, 16
FROZEN, FULL = 2, 6  # epochs, each of one step
COMPARED = 5  # steps; rounding grows from step to step, to 1 % at the fifth
RATE, RATIO, RISE = 8e-3, 0.5, 0.3
SCRIPT = Path(__file__).with_name("reference_loop.py")


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    """The script of the independent loop, which reads and normalises images without segae."""
    specification = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    """Training images and a test image: a disc with a rim on noise, all three of varying grey, in the Pets layout."""
    root = tmp_path_factory.mktemp("discs")
    (root / "images").mkdir()
    (root / "annotations" / "trimaps").mkdir(parents=True)
    names = [f"disc_{index}" for index in range(IMAGES + 1)]
    for split, part in (("trainval", names[:-1]), ("test", names[-1:])):
        (root / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in part))
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for name in names:
        distance = np.hypot(rows - generator.uniform(20, 44), columns - generator.uniform(20, 44))
        radius = generator.uniform(8, 18)
        trimap = np.select([distance < radius, distance < radius + 4], [1, 3], default=2).astype(np.uint8)
        grey = np.array([0, *generator.uniform((20, 110, 60), (110, 200, 150))])
        image = grey[trimap] + generator.normal(0, 25, trimap.shape)
        pixels = np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    return root


def cosine(start: float, end: float, share: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


def one_cycle(share: float, peak: float, rise: float, divisor: float) -> tuple[float, float]:
    """Learning rate and momentum after a share of the steps, as fastai has them."""
    if share < rise:
        return cosine(peak / divisor, peak, share / rise), cosine(0.95, 0.85, share / rise)
    fallen = (share - rise) / (1 - rise)
    return cosine(peak, peak / 1e5, fallen), cosine(0.85, 0.95, fallen)


def theirs(loop: ModuleType, root: Path) -> list[float]:
    """The losses of a plain loop: the head alone under a resting encoder, then everything."""
    images, masks = loop.read_pairs(root, loop.read_names(root, "trainval"), SIZE)
    seed_everything(0)
    encoder, _ = create_encoder(ENCODER)
    seed_everything(0)
    model = create_segmenter(encoder, ENCODER, "unet", 3)
    own = {id(parameter) for parameter in model.encoder.parameters()}
    head = [parameter for parameter in model.parameters() if id(parameter) not in own]
    losses = []
    for epochs, peak, rise, divisor, frozen in ((FROZEN, RATE, 0.99, 25, True), (FULL, RATE / 2, RISE, 5, False)):
        model.train()
        model.encoder.train(not frozen).requires_grad_(not frozen)
        groups = [{"params": head, "ratio": 1.0}]
        groups += [] if frozen else [{"params": list(model.encoder.parameters()), "ratio": RATIO}]
        optimizer = torch.optim.AdamW(groups, weight_decay=loop.WEIGHT_DECAY)
        for epoch in range(epochs):
            rate, momentum = one_cycle(epoch / epochs, peak, rise, divisor)
            for group in optimizer.param_groups:
                group |= {"lr": rate * group["ratio"], "betas": (momentum, 0.999)}
            loss = nn.functional.cross_entropy(model(loop.normalise(images)), masks.long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def ours(root: Path, out: Path) -> list[float]:
    """The losses of `segae segment`."""
    protocol: dict[str, Any] = {"lr": RATE, "lr_ratio": RATIO, "bn_mode": "strict", "warmup": RISE}
    amount: dict[str, Any] = {"freeze_epochs": FROZEN, "epochs": FULL, "batch_size": IMAGES, "val_fraction": 0.0}
    protocol |= {"encoder": ENCODER, "image_size": SIZE, "augment": False, "recalibrate": False, "device": "cpu"}
    segment(Segment(root, out, **protocol, **amount))
    with (out / "log.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def as_of(losses: list[float]) -> Any:
    """Equal to losses of the same training."""
    return pytest.approx(losses[:COMPARED], rel=0.02)


@pytest.fixture(scope="module")
def plain(loop, discs) -> list[float]:
    return theirs(loop, discs)


def test_every_step_is_that_of_a_plain_loop(discs, plain, tmp_path):
    mine = ours(discs, tmp_path / "run")
    assert mine[:COMPARED] == as_of(plain)
    assert mine[-1] < 0.5 * mine[0]


@pytest.mark.parametrize("fault", ["half the rate", "an encoder that stays frozen"])
def test_a_trainer_with_a_fault_takes_other_steps(discs, plain, tmp_path, monkeypatch, fault):
    """The test above can fail."""
    if fault == "half the rate":
        monkeypatch.setattr(Learner, "fit_one_cycle", partialmethod(_half_the_rate, Learner.fit_one_cycle))
    else:
        monkeypatch.setattr(Learner, "unfreeze", Learner.freeze)
    assert ours(discs, tmp_path / "run")[:COMPARED] != as_of(plain)


def _half_the_rate(learner: Learner, fit_one_cycle: Any, epochs: int, rates: list[float], **settings: Any) -> None:
    fit_one_cycle(learner, epochs, [rate / 2 for rate in rates], **settings)
