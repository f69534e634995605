"""Few bright or dark pixels are found, wherever they are and whichever they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segae.objectives.brightness import _threshold, split_brightness
from tests.objectives.scenes import disc, overlap


def slide(size: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright discs of several sizes, one cut off by the edge, on a dark ground with noise, and where they are."""
    places = [(0.2, 0.2, 0.1), (0.7, 0.3, 0.07), (1.0, 0.6, 0.12), (0.4, 0.8, 0.15)]
    discs = [disc(size, x, y, radius) for x, y, radius in places]
    noise = 0.03 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return 0.1 + 0.5 * torch.stack(discs).amax(dim=0) + noise.abs(), torch.stack(discs).amax(dim=0)


def test_bright_things_on_a_dark_ground_and_dark_ones_on_a_bright_ground_are_found() -> None:
    image, shape = slide()
    found = split_brightness(torch.cat([image, 1 - image, 40 * image - 3]))
    assert found.shape == (3, 1, 96, 96)
    assert found.dtype == torch.float32
    assert [overlap(one, shape[0]) > 0.97 for one in found] == [True, True, True]


def test_light_that_falls_from_one_side_changes_little() -> None:
    image, shape = slide()
    slope = torch.linspace(0, 0.5, 96).view(1, 1, 1, -1)
    assert overlap(split_brightness(image + slope), shape) > 0.97
    grey = ((image + slope).mean(dim=1)[0] * 200).round().clamp(0, 255).numpy().astype(np.uint8)
    _, plain = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    assert overlap(torch.from_numpy(plain).float(), shape[0, 0]) < 0.6


def test_the_threshold_is_that_of_opencv_within_a_level() -> None:
    generator = np.random.default_rng(0)
    level = np.concatenate([generator.normal(18, 5, 6000), generator.normal(40, 6, 3216)]).clip(0, 63).round()
    cut, _ = cv2.threshold(level.astype(np.uint8).reshape(96, 96), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    assert int(_threshold(torch.from_numpy(level).long().view(1, -1))) == cut


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_an_image_of_one_brightness_is_all_ground(value: float) -> None:
    assert float(split_brightness(torch.full((2, 3, 32, 40), value)).sum()) == 0


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(16, 64),
    width=st.integers(16, 64),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_any_image_has_an_answer(channels: int, height: int, width: int, scale: float, seed: int) -> None:
    image = scale * torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    found = split_brightness(image)
    assert found.shape == (2, 1, height, width)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert float(found.mean(dim=(1, 2, 3)).max()) <= 0.5
