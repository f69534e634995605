"""Losses agree with the textbook, and hidden ones look at hidden pixels only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.objectives.reconstruction import (
    MeanAbsoluteError,
    MeanSquaredError,
    PatchNormalisedError,
    normalise_patches,
)

PAIRS = [(MeanSquaredError, functional.mse_loss), (MeanAbsoluteError, functional.l1_loss)]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 4, 3, 16, 16, generator=source)
    hidden = (torch.rand(4, 1, 16, 16, generator=source) < 0.4).float()
    return prediction, target, hidden


@pytest.mark.parametrize(("loss", "reference"), PAIRS)
def test_over_all_pixels_it_is_torchs_loss(batch, loss, reference) -> None:
    prediction, target, hidden = batch
    assert torch.allclose(loss()(prediction, target, hidden), reference(prediction, target))
    assert torch.allclose(loss()(prediction, target, None), reference(prediction, target))


@pytest.mark.parametrize(("loss", "reference"), PAIRS)
def test_over_hidden_pixels_it_is_torchs_loss_there(batch, loss, reference) -> None:
    prediction, target, hidden = batch
    where = hidden.bool().expand_as(target)
    value = loss(where="hidden")(prediction, target, hidden)
    assert torch.allclose(value, reference(prediction[where], target[where]))


@pytest.mark.parametrize(("loss", "_reference"), PAIRS)
def test_visible_pixels_have_no_influence(batch, loss, _reference) -> None:
    prediction, target, hidden = batch
    score = loss(where="hidden")
    prediction.requires_grad_()
    expected = score(prediction, target, hidden)
    expected.backward()
    visible = (hidden == 0).expand_as(target)
    assert prediction.grad[visible].abs().max() == 0
    assert prediction.grad[~visible].abs().min() > 0
    assert torch.equal(score(torch.where(visible, torch.inf, prediction), target, hidden), expected)


@pytest.mark.parametrize("score", [MeanSquaredError(), MeanAbsoluteError(), PatchNormalisedError(8)], ids=repr)
def test_the_decoder_gives_the_images_channels_and_no_others(batch, score) -> None:
    prediction, target, hidden = batch
    assert score.out_channels(3) == 3
    assert score.out_channels(5) == 5
    with pytest.raises(SegaeError, match=r"shape \(4, 1, 16, 16\); \(4, 3, 16, 16\) is wanted"):
        score(prediction[:, :1], target, hidden)  # would be broadcast


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 27)])
def test_a_normalised_patch_has_mean_0_and_variance_1(height: int, width: int) -> None:
    image = 7 + 3 * torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    normalised = normalise_patches(image, 8)
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            window = (slice(None), slice(None), slice(top, top + 8), slice(left, left + 8))
            patch, before = normalised[window].flatten(1), image[window].flatten(1)
            assert torch.allclose(patch.mean(1), torch.zeros(2), atol=1e-5)
            assert torch.allclose(patch.var(1, unbiased=False), torch.ones(2), atol=1e-4)
            deviation = before.std(1, unbiased=False, keepdim=True)
            assert torch.allclose(patch, (before - before.mean(1, keepdim=True)) / deviation, atol=1e-4)


def test_an_even_patch_becomes_zero() -> None:
    assert normalise_patches(torch.full((1, 3, 16, 16), 2.0), 8).abs().max() == 0


def test_patches_are_compared_after_brightness_and_contrast_are_taken_away(batch) -> None:
    prediction, target, hidden = batch
    score = PatchNormalisedError(8)
    normalised = normalise_patches(target, 8)
    assert score(normalised, target, hidden) == 0
    assert score(target, target, hidden) > 0
    assert torch.allclose(score(normalised, 5 * target - 3, hidden), torch.tensor(0.0), atol=1e-6)
    where = hidden.bool().expand_as(target)
    expected = functional.mse_loss(prediction[where], normalised[where])
    assert torch.allclose(score(prediction, target, hidden), expected)
    everywhere = PatchNormalisedError(8, "all")(prediction, target, None)
    assert torch.allclose(everywhere, functional.mse_loss(prediction, normalised))


def test_autocast_changes_no_loss(batch) -> None:
    prediction, target, hidden = batch
    for score in (MeanSquaredError(), MeanAbsoluteError("hidden"), PatchNormalisedError(8)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = score(prediction, target, hidden)
        assert torch.equal(value, score(prediction, target, hidden))


def test_half_precision_is_compared_in_single(batch) -> None:
    prediction, target, _ = batch
    value = MeanSquaredError()((1000 * prediction).half(), target, None)  # a square of 1e6 has no half
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


def test_hidden_needs_a_mask(batch) -> None:
    prediction, target, _ = batch
    with pytest.raises(SegaeError, match="over hidden pixels, but the corruption hides none"):
        MeanSquaredError(where="hidden")(prediction, target, None)


@pytest.mark.parametrize("loss", [MeanSquaredError, MeanAbsoluteError])
def test_an_unknown_place_is_refused(loss) -> None:
    with pytest.raises(SegaeError, match='"visible"'):
        loss(where="visible")


def test_normalised_patches_are_checked(batch) -> None:
    prediction, target, _ = batch
    with pytest.raises(SegaeError, match="patch of the target is 0 px"):
        PatchNormalisedError(0)
    with pytest.raises(SegaeError, match='"visible"'):
        PatchNormalisedError(8, "visible")
    with pytest.raises(SegaeError, match="the corruption hides none"):
        PatchNormalisedError(8)(prediction, target, None)
