"""The linear probe equals a plain regression and leaves no trace; RankMe and the spread against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.evaluation import confusion_matrix, feature_std, linear_probe, mean_iou, pooled_features, rankme
from segae.models import create_encoder

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Pyramid(nn.Module):
    """The image and its averages at stride 2 to 32, moved and scaled."""

    offset, scale = 0.0, 1.0

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [functional.avg_pool2d(image, 2**level) * self.scale + self.offset for level in range(6)]


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray]:
    """Three classes, each with its own color and some noise, in blobs of 16 px."""
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 3, (12, 4, 4)).repeat(16, axis=1).repeat(16, axis=2)
    colors = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    noise = generator.integers(-40, 40, (12, 64, 64, 3))
    return (colors[masks] + noise).clip(0, 255).astype(np.uint8), masks.astype(np.uint8)


def probe(encoder: nn.Module, images: np.ndarray, masks: np.ndarray, **more) -> float:
    indices = {"train_indices": range(8), "valid_indices": range(8, 12)}
    return linear_probe(encoder, images=images, masks=masks, num_classes=3, **{**HALF, **indices, **more})


def plain(encoder: nn.Module, images: np.ndarray, masks: np.ndarray, ridge: float) -> float:
    """All cells at once, in float64, by scikit-learn."""
    size = images.shape[1] // 8
    normal = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    maps = [functional.interpolate(part, size=(size, size), mode="bilinear") for part in encoder(normal)[2:]]
    cells = torch.cat(maps, dim=1).permute(0, 2, 3, 1).numpy()
    truth = np.eye(3)[masks].reshape(len(masks), size, 8, size, 8, 3).mean(axis=(2, 4))
    x, y = cells[:8].reshape(-1, cells.shape[-1]), truth[:8].reshape(-1, 3)
    regression = make_pipeline(StandardScaler(), Ridge(alpha=ridge * len(x))).fit(x, y)
    scores = torch.from_numpy(regression.predict(cells[8:].reshape(-1, cells.shape[-1])).reshape(4, size, size, 3))
    large = functional.interpolate(scores.permute(0, 3, 1, 2), size=masks.shape[1:], mode="bilinear")
    return mean_iou(confusion_matrix(large.argmax(dim=1), torch.from_numpy(masks[8:]), 3))


@pytest.mark.parametrize(("ridge", "batch_size"), [(1e-2, 3), (10.0, 32)])
def test_the_probe_equals_a_plain_ridge_regression(scenes, ridge, batch_size):
    expected = plain(Pyramid(), *scenes, ridge)
    assert probe(Pyramid(), *scenes, ridge=ridge, batch_size=batch_size) == pytest.approx(expected, abs=2e-3)


def test_ignored_pixels_do_not_count_in_the_probe(scenes):
    images, masks = scenes
    ignored = np.random.default_rng(1).random(masks.shape) < 0.3
    hidden = np.where(ignored, 255, masks)
    marked = np.where(ignored, 0, masks)  # the same pixels, as a class
    assert probe(Pyramid(), images, hidden) > 0.95 > probe(Pyramid(), images, marked)
    hidden[:, :, :32] = 255  # whole cells, also of all images at once
    assert probe(Pyramid(), images, hidden) > 0.95


def test_the_probe_tells_useful_features_from_useless_ones_at_any_scale(scenes):
    (images, masks), encoder = scenes, Pyramid()
    useful = probe(encoder, images, masks)
    assert useful > 0.75
    assert probe(encoder, images, masks[np.random.default_rng(1).permutation(len(masks))]) < 0.4
    encoder.offset, encoder.scale = 3e5, 1e3
    assert probe(encoder, images, masks) == pytest.approx(useful, abs=0.01)
    encoder.scale = 0.0
    assert probe(encoder, images, masks) < 0.3


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext"])
def test_the_probe_takes_statistics_from_the_encoder_and_leaves_it_as_it_was(scenes, architecture):
    torch.manual_seed(0)
    encoder = create_encoder(architecture)
    encoder.train()
    next(encoder.children()).eval()
    modes = [module.training for module in encoder.modules()]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    random_state = torch.get_rng_state()
    own = probe(encoder, *scenes, mean=None, std=None)
    assert own == probe(encoder, *scenes, mean=encoder.info.mean, std=encoder.info.std) > 0.3
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


WRONG = [
    ({"masks": np.zeros((12, 32, 32), np.uint8)}, r"masks .*\(12, 32, 32\)"),
    ({"valid_indices": []}, "valid_indices .*8 and 0"),
    ({"ridge": 0}, "ridge .*0"),
    ({"batch_size": 0}, "batch_size .*0"),
    ({"mean": None}, "mean and std"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_the_probe_refuses_what_it_cannot_score(scenes, change, message):
    with pytest.raises(SegaeError, match=message):
        probe(Pyramid(), **{"images": scenes[0], "masks": scenes[1], **change})


def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values_and_the_spread_is_over_images():
    assert rankme(torch.eye(7)) == pytest.approx(7, abs=1e-3)
    assert rankme(torch.ones(9, 1) @ torch.randn(1, 5)) == pytest.approx(1, abs=1e-3)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    features = rotation @ torch.diag(torch.tensor([6.0, 3.0, 1.0])) @ rotation.T
    entropy = -sum(share * math.log(share) for share in (0.6, 0.3, 0.1))
    assert rankme(features) == pytest.approx(rankme(1000 * features)) == pytest.approx(math.exp(entropy), abs=1e-4)
    noise = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    assert rankme(noise) > 14
    assert rankme(noise + 1e5) < 1.1  # a mean that all share is one direction
    assert rankme(torch.zeros(4, 3)) == 0
    assert all(math.isnan(rankme(torch.tensor([[1.0, bad], [0.0, 1.0]]))) for bad in (math.nan, math.inf))
    assert [feature_std(torch.tensor([[first, 5.0], [2.0, 5.0]])) for first in (0.0, 2.0)] == [0.5, 0]


def test_pooled_features_are_the_mean_of_the_deepest_map_or_of_a_single_tensor():
    encoder, image = create_encoder("test_resnet").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(pooled_features(encoder, image), encoder(image)[-1].mean((2, 3)))
    code = pooled_features(nn.Identity(), image.double())
    assert code.dtype == torch.float32
    torch.testing.assert_close(code, image.mean((2, 3)))
    assert torch.equal(pooled_features(nn.Flatten(), image), image.flatten(1))
