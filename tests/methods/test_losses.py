"""Losses agree with the textbook, and with a mask they look at hidden pixels only."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.methods.corruptions import spread_patches
from segae.methods.losses import (
    CONTRAST_FLOOR,
    denormalize_patches,
    focal_frequency,
    frequency_loss,
    hog_loss,
    mask_classes,
    normalize_patches,
    oriented_gradients,
    pixel_loss,
    pseudo_mask_loss,
)
from tests.methods.scenes import disc, drawing, overlap, scene

MORE = {pixel_loss: 0, frequency_loss: 0, hog_loss: 9}  # channels of the prediction beyond the target's
LOSSES = pytest.mark.parametrize("loss", MORE, ids=lambda loss: loss.__name__)


def images(height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(2, 3, height, width, generator=drawing(4))


def batch(more: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = drawing()
    prediction = torch.randn(2, 3 + more, 16, 24, generator=source)
    return prediction, images(), (torch.rand(2, 1, 16, 24, generator=source) < 0.4).float()


@LOSSES
def test_visible_pixels_have_no_influence(loss) -> None:
    prediction, target, _ = batch(MORE[loss])
    mask = torch.zeros(2, 1, 16, 24)
    mask[:, :, :8, 8:] = 1  # whole cells of the histograms
    prediction.requires_grad_()
    expected = loss(prediction, target, mask)
    expected.backward()
    visible = (mask == 0).expand_as(prediction)
    assert prediction.grad[visible].abs().max() == 0
    assert (prediction.grad[~visible] != 0).float().mean() > 0.99
    wrong = torch.where(visible, torch.full_like(prediction, 1e6), prediction)
    assert torch.equal(loss(wrong, target, mask), expected)


@LOSSES
def test_half_precision_is_compared_in_single_and_another_shape_is_not_broadcast(loss) -> None:
    prediction, target, mask = batch(MORE[loss])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(prediction, target, mask)
    assert torch.equal(value, loss(prediction, target, mask))
    half = loss((1000 * prediction).half(), target, None)  # a square of 1e6 has no half
    assert half.dtype == torch.float32
    assert torch.isfinite(half)
    for wrong in (prediction[:, :1], prediction[:, :, :1], prediction[:1]):
        with pytest.raises(SegaeError, match=r"prediction must have shape .*got"):
            loss(wrong, target, mask)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 27)])
def test_a_normalized_patch_has_mean_0_and_variance_1(height: int, width: int) -> None:
    image = 7 + 3 * images(height, width)
    normalized = normalize_patches(image, 8)
    for rows in torch.arange(height).split(8):
        for columns in torch.arange(width).split(8):
            patch, before = (one[:, :, rows][..., columns].flatten(1) for one in (normalized, image))
            deviation = before.std(1, unbiased=False, keepdim=True)
            assert torch.allclose(patch.mean(1), torch.zeros(2), atol=1e-5)
            assert torch.allclose(patch, (before - before.mean(1, keepdim=True)) / deviation, atol=1e-4)
    assert torch.allclose(normalize_patches(5 * image - 3, 8), normalized, atol=1e-4)
    assert torch.allclose(denormalize_patches(normalized, image, 8), image, atol=1e-3)
    assert normalize_patches(torch.full((1, 3, 16, 16), 2.0), 8).abs().max() == 0


def textbook(first: np.ndarray, second: np.ndarray) -> float:
    """Focal frequency loss with exponent 1, written down from its formula."""
    distance = np.abs(np.fft.fft2(first) - np.fft.fft2(second)) / math.sqrt(first[0, 0].size)
    return float((distance / distance.max(axis=(2, 3), keepdims=True) * distance**2).mean())


def test_pixel_and_frequency_loss_are_the_textbooks_and_a_prediction_fills_the_holes() -> None:
    prediction, target, mask = batch()
    where = mask.bool().expand_as(target)
    assert torch.allclose(pixel_loss(prediction, target), functional.mse_loss(prediction, target))
    assert torch.allclose(pixel_loss(prediction, target, mask), functional.mse_loss(prediction[where], target[where]))
    assert pixel_loss(torch.where(where, prediction, torch.inf), target, mask).isfinite()
    expected = (prediction - target).abs().mean().item() + 0.5 * textbook(prediction.numpy(), target.numpy())
    assert frequency_loss(prediction, target).item() == pytest.approx(expected, rel=1e-5)
    completed = torch.where(mask > 0, prediction, target)
    hidden = (prediction - target)[where].abs().mean().item() + 0.5 * textbook(completed.numpy(), target.numpy())
    assert frequency_loss(prediction, target, mask).item() == pytest.approx(hidden, rel=1e-5)


def test_equal_images_have_a_finite_gradient_and_the_weights_of_the_spectrum_are_not_minimized() -> None:
    prediction, target, mask = batch()
    same = torch.where(mask > 0, target, prediction).requires_grad_()
    loss = frequency_loss(same, target, mask)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(same.grad).all()
    difference = batch()[0].requires_grad_()
    focal_frequency(difference).backward()
    spectrum = torch.fft.fft2(difference.detach(), norm="ortho")
    weight = spectrum.abs() / spectrum.abs().amax(dim=(2, 3), keepdim=True)
    expected = 2 * torch.fft.ifft2(weight * spectrum, norm="ortho").real / difference.numel()
    assert torch.allclose(difference.grad, expected, atol=1e-7)


def naive(image: np.ndarray, cell: int, bins: int) -> np.ndarray:
    """The histograms of one image (3, H, W), written down from their definition: (bins, rows, columns)."""
    gray = np.pad(0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2], 1, mode="edge")
    across, down = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
    place = np.arctan2(down, across) % np.pi / np.pi * bins
    low, size, (y, x) = place.astype(int), np.hypot(across, down), np.indices(down.shape) // cell
    histogram, pixels = np.zeros((bins, y.max() + 1, x.max() + 1)), np.zeros((y.max() + 1, x.max() + 1))
    np.add.at(pixels, (y, x), 1)
    np.add.at(histogram, (low % bins, y, x), (1 - (place - low)) * size)
    np.add.at(histogram, ((low + 1) % bins, y, x), (place - low) * size)
    histogram /= pixels
    normalized = np.zeros_like(histogram)
    for row, column in np.ndindex(pixels.shape):
        around = histogram[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        energy = (around**2).sum(axis=0).mean()
        normalized[:, row, column] = histogram[:, row, column] / math.sqrt(energy + CONTRAST_FLOOR**2)
    return normalized


@pytest.mark.parametrize(("height", "width", "cell", "bins"), [(16, 24, 8, 9), (20, 19, 8, 9), (12, 12, 4, 2)])
def test_histograms_agree_with_their_definition(height: int, width: int, cell: int, bins: int) -> None:
    image = images(height, width)
    for ours, one in zip(oriented_gradients(image, cell, bins), image, strict=True):
        np.testing.assert_allclose(ours.numpy(), naive(one.double().numpy(), cell, bins), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("degrees", "strongest"), [(0, 0), (20, 1), (100, 5), (160, 8), (180, 0), (280, 5)])
def test_an_edge_votes_for_its_orientation_whatever_its_sign(degrees: int, strongest: int) -> None:
    down, across = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angle = math.radians(degrees)
    ramp = (math.cos(angle) * across + math.sin(angle) * down).expand(1, 3, 32, 32)
    histogram = oriented_gradients(ramp)[0, :, 1:3, 1:3]  # away from the repeated border
    assert (histogram.argmax(dim=0) == strongest).all()
    assert histogram[strongest].min() > 0.95 * histogram.sum(dim=0).max()


def test_brightness_and_contrast_do_not_matter_but_an_even_area_is_zero() -> None:
    assert torch.allclose(oriented_gradients(3 * images() + 2), oriented_gradients(images()), atol=1e-3)
    assert oriented_gradients(torch.full((1, 3, 16, 16), 2.0)).abs().max() == 0
    assert oriented_gradients(1e-4 * images()).abs().max() < 0.05  # fainter than a gray level: no edge


def perfect(target: Tensor) -> Tensor:
    return torch.cat([target, spread_patches(oriented_gradients(target), 8, *target.shape[2:])], dim=1)


def test_image_and_histograms_are_the_best_prediction_and_a_cell_counts_by_its_hidden_share() -> None:
    target = images()
    assert hog_loss(perfect(target), target).item() < 1e-10
    for channel in (0, 2, 3, 11):
        wrong = perfect(target)
        wrong[:, channel] += 0.5
        expected = 0.25 / 3 if channel < 3 else 0.25  # the distance of two vectors
        assert hog_loss(wrong, target).item() == pytest.approx(expected, rel=1e-4)
    mask = torch.zeros(2, 1, 16, 24)
    mask[:, :, :8, :8] = 1  # the first cell whole
    mask[:, :, :4, 8:16] = 1  # the second one by half
    error = torch.zeros(2, 9, 2, 3)
    error[:, :, 0, 0], error[:, :, 0, 1], error[:, :, 1, 2] = 1.0, 2.0, 100.0
    prediction = perfect(target)
    prediction[:, 3:] += spread_patches(error, 8, 16, 24)
    assert hog_loss(prediction, target, mask).item() == pytest.approx(9 * (1 * 1 + 0.5 * 4) / 1.5, rel=1e-4)
    assert hog_loss(prediction, target, torch.zeros_like(mask)).item() == 0


@pytest.mark.parametrize("reach", [1, 3])
def test_the_boundary_is_a_class_of_its_own_on_both_sides_of_the_edge(reach: int) -> None:
    mask = disc(96, radius=0.3)
    classes = mask_classes(mask, reach / 96)
    assert torch.equal(classes.sum(dim=1), torch.ones(1, 96, 96))
    background, thing, boundary = (classes[0, index].numpy().astype(np.uint8) for index in range(3))
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    inside = mask[0, 0].numpy().astype(np.uint8)
    wider, narrower = cv2.dilate(inside, square), cv2.erode(inside, square)
    assert np.array_equal(boundary, wider - narrower)
    assert np.array_equal(thing, narrower)
    assert np.array_equal(background, 1 - wider)
    assert torch.equal(mask_classes(mask, 0.0), torch.cat([1 - mask, mask], dim=1))


@pytest.mark.parametrize("boundary", [0.0, 0.03])
def test_the_loss_moves_logits_towards_the_mask_and_counts_pixels_a_tenth(boundary: float) -> None:
    image, mask = scene(64)
    target = torch.cat([image, mask.expand(2, -1, -1, -1)], dim=1)
    classes = mask_classes(mask, boundary)
    prediction = torch.cat([image, 0 * classes.expand(2, -1, -1, -1)], dim=1).requires_grad_()
    loss = pseudo_mask_loss(prediction, target, boundary)
    (slope,) = torch.autograd.grad(loss, prediction)
    assert loss.item() == pytest.approx(math.log(classes.shape[1]), rel=1e-5)
    for index in range(classes.shape[1]):
        assert overlap((slope[:, 3 + index] < 0).float(), classes[:, index].expand(2, -1, -1)) == 1
    right = torch.cat([image, 50 * classes.expand(2, -1, -1, -1)], dim=1)
    assert pseudo_mask_loss(right, target, boundary).item() < 1e-6
    brighter = torch.cat([image + 1, right[:, 3:]], dim=1)
    assert pseudo_mask_loss(brighter, target, boundary).item() == pytest.approx(0.1, abs=1e-5)
    with pytest.raises(SegaeError, match="prediction must have shape"):
        pseudo_mask_loss(prediction[:, 1:], target, boundary)
