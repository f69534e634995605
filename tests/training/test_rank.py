"""Effective rank and spread of features, against values that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from segae.models.encoder import create_encoder
from segae.training.rank import effective_rank, feature_spread, pooled_features


def orthogonal(rows: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, rows, generator=torch.Generator().manual_seed(0)))[0]


def test_rank_counts_equal_directions():
    assert effective_rank(torch.eye(7)) == pytest.approx(7, abs=1e-3)
    assert effective_rank(torch.ones(9, 1) @ torch.randn(1, 5)) == pytest.approx(1, abs=1e-3)


def test_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    features = orthogonal(3) @ torch.diag(torch.tensor([6.0, 3.0, 1.0])) @ orthogonal(3).T
    entropy = -sum(share * math.log(share) for share in (0.6, 0.3, 0.1))
    assert effective_rank(features) == pytest.approx(math.exp(entropy), abs=1e-4)
    assert effective_rank(1000 * features) == pytest.approx(effective_rank(features), abs=1e-6)


def test_rank_counts_a_common_mean_as_a_direction():
    noise = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    assert effective_rank(noise) > 14
    assert effective_rank(noise + 1e5) < 1.1


def test_rank_of_useless_features_is_a_number_or_nan_but_no_crash():
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])))
    assert math.isnan(effective_rank(torch.tensor([[1.0, float("inf")], [0.0, 1.0]])))


def test_spread_is_over_images_and_not_over_channels():
    assert feature_spread(torch.tensor([[1.0, 5.0], [1.0, 5.0]])) == 0
    assert feature_spread(torch.tensor([[0.0, 5.0], [2.0, 5.0]])) == pytest.approx(0.5)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_pooled_features_are_the_mean_of_the_deepest_map(architecture):
    encoder, _ = create_encoder(architecture)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = pooled_features(encoder.eval(), image)
        deepest = encoder(image)[-1]
    assert pooled.shape == (2, encoder.out_channels[-1])
    assert torch.allclose(pooled[1, 0], deepest[1, 0].mean())
