"""A segmenter that is small, quick and, without training, undecided enough to predict every class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segae.models.encoder import create_encoder
from segae.models.segmenter import SegmenterDescription, create_segmenter, save_segmenter

MakeSegmenter = Callable[..., Path]


@pytest.fixture
def make_segmenter(tmp_path: Path) -> MakeSegmenter:
    """Write an untrained segmenter for 64 px images, give its path."""

    def make(classes: tuple[str, ...] = ("pet", "background", "border")) -> Path:
        torch.manual_seed(0)
        encoder, description = create_encoder("test_resnet")
        model = create_segmenter(encoder, "test_resnet", "unet", len(classes)).eval()
        head = model.segmentation_head[0]
        with torch.no_grad():  # logits of each class with mean 0, so that no class wins everywhere
            head.weight *= 20
            head.bias -= model(torch.randn(4, 3, 64, 64)).mean(dim=(0, 2, 3))
        path = tmp_path / "model" / "model.safetensors"
        described = SegmenterDescription(
            encoder="test_resnet",
            decoder="unet",
            classes=classes,
            palette=tuple((40 * index, 200 - 30 * index, 90) for index in range(len(classes))),
            mask_values=tuple(range(len(classes))),
            in_channels=3,
            mean=description.mean,
            std=description.std,
            image_size=64,
            details={"init": "random", "seed": 0},
        )
        save_segmenter(path, model, described)
        return path

    return make
