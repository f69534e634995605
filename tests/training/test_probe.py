"""The linear probe: agrees with a naive one, tells useful features from useless ones, leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.training.probe import linear_probe

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Pyramid(nn.Module):
    """The image and its averages at stride 2 to 32, moved and scaled as asked."""

    def __init__(self, offset: float = 0.0, keep: float = 1.0) -> None:
        super().__init__()
        self.offset, self.keep = offset, keep

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [functional.avg_pool2d(image, 2**level) * self.keep + self.offset for level in range(6)]


def scenes(count: int = 12, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, each with its own colour and some noise, in blobs of 16 px."""
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 3, (count, size // 16, size // 16)).repeat(16, axis=1).repeat(16, axis=2)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    noise = generator.integers(-40, 40, (count, size, size, 3))
    return (colours[masks] + noise).clip(0, 255).astype(np.uint8), masks.astype(np.uint8)


def probe(encoder: nn.Module, images: np.ndarray, masks: np.ndarray, **more) -> float:
    return linear_probe(encoder, images, masks, range(8), range(8, 12), classes=3, **{**HALF, **more})


def naive(encoder: nn.Module, images: np.ndarray, masks: np.ndarray, ridge: float) -> float:
    """All cells at once, in float64, with the formulas as a textbook has them."""
    size = images.shape[1] // 8
    normal = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    maps = [functional.interpolate(part, size=(size, size), mode="bilinear") for part in encoder(normal)[2:]]
    cells = torch.cat(maps, dim=1).permute(0, 2, 3, 1).numpy()
    truth = np.eye(3)[masks].reshape(len(masks), size, 8, size, 8, 3).mean(axis=(2, 4))
    x, y = cells[:8].reshape(-1, cells.shape[-1]), truth[:8].reshape(-1, 3)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    x = (x - centre) / scale
    weight = np.linalg.inv(x.T @ x / len(x) + ridge * np.eye(x.shape[1])) @ (x.T @ (y - y.mean(axis=0)) / len(x))
    scores = (cells[8:] - centre) / scale @ weight + y.mean(axis=0)
    large = functional.interpolate(torch.from_numpy(scores).permute(0, 3, 1, 2), size=masks.shape[1:], mode="bilinear")
    guess, true = large.argmax(dim=1).numpy(), masks[8:]
    return float(np.mean([((guess == k) & (true == k)).sum() / ((guess == k) | (true == k)).sum() for k in range(3)]))


@pytest.mark.parametrize("ridge", [1e-2, 10.0])
@pytest.mark.parametrize("batch_size", [3, 32])
def test_probe_equals_a_naive_ridge_regression(ridge, batch_size):
    images, masks = scenes()
    expected = naive(Pyramid(), images, masks, ridge)
    assert 0.5 < expected < 1
    assert probe(Pyramid(), images, masks, ridge=ridge, batch_size=batch_size) == pytest.approx(expected, abs=2e-3)


def test_probe_tells_useful_features_from_useless_ones():
    images, masks = scenes()
    useful = probe(Pyramid(), images, masks)
    assert useful > 0.75
    assert probe(Pyramid(keep=0.0), images, masks) < 0.3
    shuffled = masks[np.random.default_rng(1).permutation(len(masks))]
    assert probe(Pyramid(), images, shuffled) < 0.4


def test_probe_does_not_mind_the_scale_of_features():
    images, masks = scenes()
    expected = probe(Pyramid(), images, masks)
    assert probe(Pyramid(offset=300.0), images, masks) == pytest.approx(expected, abs=0.01)
    assert probe(Pyramid(keep=1e3), images, masks) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_probe_of_a_real_encoder_leaves_it_as_it_was_and_repeats_itself(architecture):
    torch.manual_seed(0)
    encoder, description = create_encoder(architecture)
    encoder.train()
    encoder.model.eval() if hasattr(encoder, "model") else None
    modes = [module.training for module in encoder.modules()]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    random_state = torch.get_rng_state()
    images, masks = scenes()
    scores = [probe(encoder, images, masks, mean=description.mean, std=description.std) for _ in range(2)]
    assert scores[0] == scores[1] > 0.3
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_probe_refuses_what_it_cannot_score():
    images, masks = scenes()
    with pytest.raises(SegaeError, match=r"\(12, 32, 32\)"):
        probe(Pyramid(), images, masks[:, ::2, ::2])
    with pytest.raises(SegaeError, match="8 training and 0 validation"):
        linear_probe(Pyramid(), images, masks, range(8), [], classes=3, **HALF)
    with pytest.raises(SegaeError, match="ridge is 0"):
        probe(Pyramid(), images, masks, ridge=0)
