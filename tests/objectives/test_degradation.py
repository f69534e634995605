"""Colour, sharpness and resolution are taken from the images that were drawn, and from no others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.objectives.degradation import Blur, ColourRemoval, LightChange, Shrink

BUILD = {
    "colour": lambda probability: ColourRemoval(probability),
    "blur": lambda probability: Blur(probability, (0.8, 0.8)),
    "shrink": lambda probability: Shrink(probability, (2, 4)),
}


def images(count: int = 4, channels: int = 3, height: int = 24, width: int = 32) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(7))


def after(corruption, image: Tensor, seed: int = 0) -> Tensor:
    return corruption(image, torch.Generator().manual_seed(seed)).image_bchw


@pytest.mark.parametrize("name", BUILD)
def test_each_image_is_drawn_on_its_own(name: str) -> None:
    image = images(400, height=8, width=8)
    changed = (after(BUILD[name](0.3), image) != image).flatten(1).any(1)
    assert 0.22 < changed.float().mean().item() < 0.38
    assert torch.equal(after(BUILD[name](0.0), image), image)
    assert (after(BUILD[name](1.0), image) != image).flatten(1).any(1).all()


@pytest.mark.parametrize("name", BUILD)
def test_an_image_does_not_depend_on_the_others_of_its_batch(name: str) -> None:
    image = images()
    other = image.clone()
    other[1:] += 1
    assert torch.equal(after(BUILD[name](1.0), image)[0], after(BUILD[name](1.0), other)[0])


@pytest.mark.parametrize("name", ["blur", "shrink"])
def test_an_even_image_stays_even(name: str) -> None:
    assert torch.allclose(after(BUILD[name](1.0), torch.full((2, 3, 17, 30), 2.5)), torch.tensor(2.5), atol=1e-5)


def test_grey_is_the_luminance_in_every_channel() -> None:
    image = images()
    grey = after(ColourRemoval(1.0), image)
    expected = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    for channel in range(3):
        assert torch.allclose(grey[:, channel], expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_images_than_colour_ones_become_their_mean(channels: int) -> None:
    image = images(channels=channels)
    expected = image.mean(dim=1, keepdim=True).expand_as(image)
    assert torch.allclose(after(ColourRemoval(1.0), image), expected, atol=1e-6)


def test_blur_spreads_a_point_into_a_gaussian() -> None:
    point = torch.zeros(1, 1, 25, 31)
    point[0, 0, 12, 15] = 1
    blurred = after(Blur(1.0, (1.3, 1.3)), point)[0, 0]
    for row, column in [(12, 15), (12, 16), (10, 15), (14, 12), (9, 19)]:
        distance = (row - 12) ** 2 + (column - 15) ** 2
        expected = math.exp(-distance / (2 * 1.3**2)) / (2 * math.pi * 1.3**2)
        assert blurred[row, column].item() == pytest.approx(expected, rel=0.01)


def test_blur_draws_a_width_for_each_image() -> None:
    point = torch.zeros(300, 1, 31, 31)
    point[:, :, 15, 15] = 1
    blurred = after(Blur(1.0, (1.0, 2.0)), point)
    place = torch.arange(31.0) - 15
    width = (blurred.sum(dim=2).squeeze(1) * place.square()).sum(dim=1).sqrt()
    assert width.min() > 0.99
    assert width.max() < 2.01
    assert width.std().item() == pytest.approx(1 / 12**0.5, rel=0.15)  # that of an even distribution


@pytest.mark.parametrize(("height", "width"), [(24, 32), (23, 31)])
def test_shrink_is_area_averaging_and_bilinear_growth(height: int, width: int) -> None:
    image = images(height=height, width=width)
    for factor in (2, 4):
        small = functional.interpolate(image, size=(math.ceil(height / factor), math.ceil(width / factor)), mode="area")
        expected = functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
        assert torch.allclose(after(Shrink(1.0, (factor,)), image), expected, atol=1e-5)


def test_shrink_draws_a_factor_for_each_image() -> None:
    image = images(1).repeat(200, 1, 1, 1)
    shrunk = after(Shrink(1.0, (2, 4)), image)
    by_two = (shrunk - after(Shrink(1.0, (2,)), image)).abs().amax(dim=(1, 2, 3)) < 1e-5
    by_four = (shrunk - after(Shrink(1.0, (4,)), image)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert torch.equal(by_two, ~by_four)
    assert 0.35 < by_two.float().mean().item() < 0.65


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ColourRemoval(1.5), "probability of colour removal is 1.5"),
        (lambda: Blur(-0.1, (1.0, 2.0)), "probability of blur is -0.1"),
        (lambda: Blur(0.5, (0.0, 2.0)), r"blur sigmas are \(0.0, 2.0\)"),
        (lambda: Blur(0.5, (2.0, 1.0)), r"blur sigmas are \(2.0, 1.0\)"),
        (lambda: Shrink(math.nan, (2,)), "probability of shrink is nan"),
        (lambda: Shrink(0.5, ()), r"shrink factors are \(\)"),
        (lambda: Shrink(0.5, (1, 2)), r"shrink factors are \(1, 2\)"),
    ],
)
def test_values_are_checked(build, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        build()


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_every_image_gets_a_light_of_its_own_in_units_of_its_deviation(scale: float) -> None:
    image = images(300)
    for change, low, high in (
        (LightChange(0.4, 0, 0, 0), 0.6, 1.4),
        (LightChange(0, 0, 0.5, 0), -0.5, 0.5),
        (LightChange(0, 0, 0, 0.3), -0.3, 0.3),
    ):
        changed = after(change, scale * image + 3) / scale
        if change.contrast:
            measure = changed.flatten(1).std(1) / image.flatten(1).std(1)
            assert torch.allclose(changed.flatten(1).mean(1), image.flatten(1).mean(1) + 3 / scale, atol=1e-4)
        else:
            shift = (changed - image - 3 / scale).mean((2, 3)) / image.flatten(1).std(1)[:, None]
            assert bool(change.tint) == bool((shift.std(1) > 0.01).any())
            measure = shift[:, 0]
        assert low - 0.01 < measure.min().item() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < measure.max().item() < high + 0.01


def test_saturation_leaves_grey_images_and_the_mean_of_every_pixel() -> None:
    image = images(100)
    changed = after(LightChange(0, 1, 0, 0), image)
    assert torch.allclose(changed.mean(1), image.mean(1), atol=1e-5)
    colour = (changed - changed.mean(1, keepdim=True)).flatten(1).norm(dim=1)
    ratio = colour / (image - image.mean(1, keepdim=True)).flatten(1).norm(dim=1)
    assert ratio.min() < 0.2
    assert ratio.max() > 1.8
    grey = image[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(after(LightChange(0, 1, 0, 0), grey), grey, atol=1e-5)
    assert torch.allclose(after(LightChange(0, 0, 0, 0), image), image, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"contrast": 1.5}, "change of contrast is 1.5"),
        ({"saturation": -0.1}, "change of saturation is -0.1"),
        ({"tint": -1.0}, "change of tint is -1.0"),
        ({"brightness": math.inf}, "change of brightness is inf"),
    ],
)
def test_light_out_of_range_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        LightChange(**values)
