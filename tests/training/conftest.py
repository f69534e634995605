"""Tiny learners: a test_resnet U-Net on random 64 px images, the same from the same seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.data import Dataset

from segae.models.autoencoder import Autoencoder
from segae.models.encoder import create_encoder
from segae.models.segmenter import create_segmenter
from segae.objectives.presets import make_objective
from segae.training.learner import pretraining_learner, segmentation_learner
from segae.training.loaders import make_loaders
from segae.training.run import seed_everything

CPU = torch.device("cpu")


class Items(Dataset):
    """A list as a data set."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def images(count: int) -> list[torch.Tensor]:
    """Blobs: noise at 8 px, enlarged."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return list(torch.nn.functional.interpolate(coarse, size=64, mode="bilinear"))


def pairs(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose mask can be read off the first channel, so that there is something to learn."""
    return [(image, (image[0] > 0).long()) for image in images(count)]


@pytest.fixture
def segmentation() -> Callable:
    def make(bn_mode: str = "strict", seed: int = 0, valid: int = 4, architecture: str = "test_resnet", **more):
        seed_everything(seed)
        encoder, _ = create_encoder(architecture)
        model = create_segmenter(encoder, architecture, "unet", 2)
        loaders = make_loaders(Items(pairs(18)), Items(pairs(valid)), batch_size=8, device=CPU, seed=seed)
        return segmentation_learner(loaders, model, classes=2, bn_mode=bn_mode, seed=seed, **more)

    return make


@pytest.fixture
def pretraining() -> Callable:
    def make(objective: str = "mask", seed: int = 0, **more):
        seed_everything(seed)
        encoder, description = create_encoder("test_resnet")
        model = Autoencoder(encoder, description.mean, description.std)
        loaders = make_loaders(Items(images(18)), Items(images(4)), batch_size=8, device=CPU, seed=seed)
        chosen = make_objective(objective, noise_sigma=0.5, patch=16, mask_ratio=0.6)
        return pretraining_learner(loaders, model, chosen, seed=seed, **more)

    return make
