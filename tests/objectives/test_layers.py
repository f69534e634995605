"""The layers of an image are found without a label."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segae.objectives.layers import split_layers
from tests.objectives.scenes import overlap, scene


@pytest.mark.parametrize("where", [{}, {"x": 0.4, "y": 0.6}, {"radius": 0.2}])
def test_a_thing_of_its_own_colours_is_found_better_than_by_the_prior(where: dict[str, float]) -> None:
    image, shape = scene(**where)
    found = split_layers(image)
    assert found.shape == (2, 1, 96, 96)
    assert found.dtype == torch.float32
    prior = split_layers(torch.zeros_like(image))
    for one in found:
        assert overlap(one, shape[0]) > overlap(prior[0], shape[0]) + 0.08
    large = scene(radius=0.35)
    assert overlap(split_layers(large[0])[0], large[1][0]) > 0.93


def test_an_image_of_one_colour_keeps_the_prior_high_in_the_middle_and_low_at_the_edge() -> None:
    found = split_layers(torch.full((1, 3, 64, 80), 0.7))[0, 0]
    assert found[32, 40] > 0.7
    assert found[0, 0] < 0.2
    assert torch.allclose(found, found.flip(0), atol=1e-5)
    assert torch.allclose(found, found.flip(1), atol=1e-5)


def test_scale_brightness_and_mirroring_of_an_image_do_not_matter() -> None:
    image, _ = scene()
    found = split_layers(image)
    assert torch.allclose(split_layers(40 * image - 3), found, atol=1e-3)
    assert overlap(split_layers(image.flip(3)).flip(3), found) > 0.99
    assert torch.allclose(split_layers(image[:1]), found[:1], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(8, 100),
    width=st.integers(8, 100),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_any_image_gives_probabilities(channels: int, height: int, width: int, scale: float, seed: int) -> None:
    image = scale * torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    found = split_layers(image)
    assert found.shape == (2, 1, height, width)
    assert bool(((found >= 0) & (found <= 1)).all())
