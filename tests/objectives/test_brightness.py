"""Few bright or dark pixels are found, wherever they are and whichever they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segae.objectives.brightness import split_brightness
from tests.objectives.scenes import disc, overlap


def slide(size: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright discs of several sizes, one cut off by the edge, on a dark ground with noise, and where they are."""
    places = [(0.2, 0.2, 0.1), (0.7, 0.3, 0.07), (1.0, 0.6, 0.12), (0.4, 0.8, 0.15)]
    shape = torch.stack([disc(size, x, y, radius) for x, y, radius in places]).amax(dim=0)
    noise = 0.03 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return 0.1 + 0.5 * shape + noise.abs(), shape


def test_bright_things_on_a_dark_ground_and_dark_ones_on_a_bright_ground_are_found() -> None:
    image, shape = slide()
    found = split_brightness(torch.cat([image, 1 - image, 40 * image - 3]))
    assert found.shape == (3, 1, 96, 96)
    assert found.dtype == torch.float32
    assert [overlap(one, shape[0]) > 0.97 for one in found] == [True, True, True]


def test_the_threshold_is_that_of_opencv_within_a_level() -> None:
    generator = np.random.default_rng(0)
    grey = np.concatenate([generator.normal(70, 18, 6000), generator.normal(150, 25, 3216)]).clip(0, 255).round()
    grey[:2] = 0, 255
    cut, _ = cv2.threshold(grey.astype(np.uint8).reshape(96, 96), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # the square root inside is undone, so that both look at the same values
    found = split_brightness(torch.from_numpy(grey / 255).square().view(1, 1, 96, 96))
    darkest = grey[found.flatten().numpy() > 0].min()
    assert abs(darkest - cut) <= 256 / 64


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_an_image_of_one_brightness_is_all_ground(value: float) -> None:
    assert float(split_brightness(torch.full((2, 3, 32, 40), value)).sum()) == 0


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_any_image_has_objects_on_half_of_it_at_most(
    channels: int, height: int, width: int, scale: float, seed: int
) -> None:
    image = scale * torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    found = split_brightness(image)
    assert found.shape == (2, 1, height, width)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert float(found.mean(dim=(1, 2, 3)).max()) <= 0.5
    assert torch.equal(split_brightness(image.flip(3)).flip(3), found)
