"""Histograms of oriented gradients agree with a loop over pixels, and the loss compares cells with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.gradients import CONTRAST_FLOOR, PixelsAndGradients, oriented_gradients
from segae.objectives.patches import average_patches, spread_patches


def images(height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(4))


def naive(image: np.ndarray, cell: int, bins: int) -> np.ndarray:
    """The histograms of one image (3, H, W), pixel by pixel: (bins, rows, columns)."""
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    height, width = grey.shape
    rows, columns = math.ceil(height / cell), math.ceil(width / cell)
    histogram, pixels = np.zeros((bins, rows, columns)), np.zeros((rows, columns))
    for y in range(height):
        for x in range(width):
            across = grey[y, min(x + 1, width - 1)] - grey[y, max(x - 1, 0)]
            down = grey[min(y + 1, height - 1), x] - grey[max(y - 1, 0), x]
            place = math.atan2(down, across) % math.pi / math.pi * bins
            low = int(place)
            size = math.hypot(across, down)
            histogram[low % bins, y // cell, x // cell] += (1 - (place - low)) * size
            histogram[(low + 1) % bins, y // cell, x // cell] += (place - low) * size
            pixels[y // cell, x // cell] += 1
    histogram /= pixels
    normalised = np.zeros_like(histogram)
    for row in range(rows):
        for column in range(columns):
            around = histogram[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            energy = (around**2).sum(axis=0).mean()
            normalised[:, row, column] = histogram[:, row, column] / math.sqrt(energy + CONTRAST_FLOOR**2)
    return normalised


@pytest.mark.parametrize(("height", "width", "cell", "bins"), [(16, 24, 8, 9), (20, 19, 8, 9), (12, 12, 4, 2)])
def test_histograms_agree_with_a_loop_over_pixels(height: int, width: int, cell: int, bins: int) -> None:
    image = images(height, width)
    computed = oriented_gradients(image, cell, bins)
    for ours, one in zip(computed, image, strict=True):
        np.testing.assert_allclose(ours.numpy(), naive(one.double().numpy(), cell, bins), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("degrees", "strongest"), [(0, 0), (20, 1), (100, 5), (160, 8), (180, 0), (280, 5)])
def test_an_edge_votes_for_its_orientation_whatever_its_sign(degrees: int, strongest: int) -> None:
    down, across = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angle = math.radians(degrees)
    ramp = (math.cos(angle) * across + math.sin(angle) * down).expand(1, 3, 32, 32)
    histogram = oriented_gradients(ramp, 8, 9)[0, :, 1:3, 1:3]  # away from the repeated border
    assert (histogram.argmax(dim=0) == strongest).all()
    assert histogram[strongest].min() > 0.95 * histogram.sum(dim=0).max()


def test_brightness_and_contrast_do_not_matter_but_an_even_area_is_zero() -> None:
    histogram = oriented_gradients(images(), 8, 9)
    assert torch.allclose(oriented_gradients(3 * images() + 2, 8, 9), histogram, atol=1e-3)
    assert oriented_gradients(torch.full((1, 3, 16, 16), 2.0), 8, 9).abs().max() == 0
    assert oriented_gradients(1e-4 * images(), 8, 9).abs().max() < 0.05  # fainter than a grey level: no edge


def perfect(target: Tensor, score: PixelsAndGradients) -> Tensor:
    histogram = spread_patches(oriented_gradients(target, score.cell, score.bins), score.cell, *target.shape[2:])
    return torch.cat([target, histogram], dim=1)


def test_image_and_histograms_are_the_best_prediction() -> None:
    score, target = PixelsAndGradients(), images()
    prediction = perfect(target, score)
    assert prediction.shape[1] == score.out_channels(3) == 12
    assert score(prediction, target, None).item() < 1e-10
    for channel in (0, 2, 3, 11):
        wrong = prediction.clone()
        wrong[:, channel] += 0.5
        expected = 0.25 / 3 if channel < 3 else 0.25  # the distance of two vectors
        assert score(wrong, target, None).item() == pytest.approx(expected, rel=1e-4)


def test_the_weight_scales_the_gradients_only() -> None:
    target = images()
    prediction = torch.randn(2, 12, 16, 24, generator=torch.Generator().manual_seed(1))
    pixels, both, twice = (PixelsAndGradients(weight=weight)(prediction, target, None) for weight in (0.0, 1.0, 2.0))
    assert torch.allclose(pixels, (prediction[:, :3] - target).square().mean())
    expected = (average_patches(prediction[:, 3:], 8) - oriented_gradients(target, 8, 9)).square().sum(dim=1).mean()
    assert torch.allclose(both - pixels, expected)
    assert torch.allclose(twice - pixels, 2 * expected)


def test_over_hidden_pixels_a_cell_counts_by_its_hidden_share() -> None:
    score, target = PixelsAndGradients(where="hidden"), images()
    hidden = torch.zeros(2, 1, 16, 24)
    hidden[:, :, :8, :8] = 1  # the first cell whole
    hidden[:, :, :4, 8:16] = 1  # the second one by half
    error = torch.zeros(2, 9, 2, 3)
    error[:, :, 0, 0], error[:, :, 0, 1], error[:, :, 1, 2] = 1.0, 2.0, 100.0
    prediction = perfect(target, score)
    prediction[:, 3:] += spread_patches(error, 8, 16, 24)
    assert score(prediction, target, hidden).item() == pytest.approx(9 * (1 * 1 + 0.5 * 4) / 1.5, rel=1e-4)
    prediction[:, :3] += torch.where(hidden > 0, 3.0, 50.0)
    assert score(prediction, target, hidden).item() == pytest.approx(9 + 9 * 2, rel=1e-4)
    assert score(prediction, target, torch.zeros_like(hidden)).item() == 0


def test_the_two_terms_are_about_as_large_as_each_other() -> None:
    """For an answer that knows nothing but the means, on shapes of unit variance."""
    coarse = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    target = torch.nn.functional.interpolate(coarse, size=96, mode="bicubic")
    target = target / target.std()
    histogram = oriented_gradients(target, 8, 9).mean(dim=(0, 2, 3), keepdim=True)
    blind = torch.cat([target.mean(dim=(0, 2, 3), keepdim=True), histogram], dim=1).expand(8, 12, 96, 96)
    pixels, both = (float(PixelsAndGradients(weight=weight)(blind, target, None)) for weight in (0.0, 1.0))
    assert 0.3 < (both - pixels) / pixels < 3


def test_autocast_and_half_precision_are_compared_in_single() -> None:
    score, target = PixelsAndGradients(), images()
    prediction = torch.randn(2, 12, 16, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = score(prediction, target, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(prediction, target, None), expected)
    half = score((1000 * prediction).half(), target, None)
    assert half.dtype == torch.float32
    assert torch.isfinite(half)
    expected.backward()
    assert prediction.grad.abs().amin(dim=(0, 2, 3)).min() > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PixelsAndGradients(cell=0), "cell is 0 px"),
        (lambda: PixelsAndGradients(bins=1), "bins is 1"),
        (lambda: PixelsAndGradients(weight=-1), "weight of the gradient term is -1"),
        (lambda: PixelsAndGradients(where="visible"), '"visible"'),
        (
            lambda: PixelsAndGradients()(images(), images(), None),
            r"shape \(2, 3, 16, 24\); \(2, 12, 16, 24\) is wanted",
        ),
        (lambda: PixelsAndGradients(where="hidden")(torch.zeros(2, 12, 16, 24), images(), None), "hides none"),
    ],
)
def test_wrong_values_are_refused(build, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        build()
