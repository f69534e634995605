"""A segmentation on one batch, as ``segae segment`` trains it with a given set of switches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import segae
from segae.tasks.compute import set_up
from segae.tasks.segment import Segment
from segae.training.ceiling import TrainingStep

CLASSES = 3


@dataclass(frozen=True)
class Scene:
    """What is trained, and where.

    Attributes:
        encoder: timm's name.
        size: side of the images in pixels.
        batch_size: images in a step.
        device: where to compute.
        pairs: that are timed.
    """

    encoder: str
    size: int
    batch_size: int
    device: torch.device
    pairs: int

    def batch(self) -> tuple[Tensor, Tensor]:
        """Noise, and masks of noise: (B, 3, S, S) and (B, S, S)."""
        generator = torch.Generator().manual_seed(0)
        image_bchw = torch.randn(self.batch_size, 3, self.size, self.size, generator=generator)
        return image_bchw, torch.randint(CLASSES, (self.batch_size, self.size, self.size), generator=generator)

    def learner(self, *, precision: str = "auto", **switches: Any) -> Any:
        """A segmentation as ``segae segment`` has it with these switches, always with the same weights."""
        segae.seed_everything(0)
        encoder, _ = segae.create_encoder(self.encoder)
        model = segae.create_segmenter(encoder, self.encoder, "unet", classes=CLASSES).to(self.device)
        set_up(model, Segment(Path(), **switches))
        loaders = segae.make_loaders(
            TensorDataset(*self.batch()), None, batch_size=self.batch_size, device=self.device, workers=0
        )
        return segae.segmentation_learner(loaders, model, classes=CLASSES, bn_mode="train", precision=precision)

    def step(self, **named: Any) -> TrainingStep:
        """One of its steps; arguments as of ``learner``."""
        return TrainingStep(self.learner(**named), self.batch())


def kept_mb(step: TrainingStep, batch: tuple[Tensor, ...]) -> float:
    """What is kept between forward and backward besides the weights, in 10^6 bytes."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step.forward(batch[:1], batch[1:])
    step.backward(loss)
    step.optimizer.zero_grad()
    return sum(kept.values()) / 1e6
