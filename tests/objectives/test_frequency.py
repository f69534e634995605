"""The frequency loss is the published one, and its gradient exists where prediction and truth are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.frequency import FrequencyError, focal_frequency


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 3, 12, 16, generator=source)
    hidden = (torch.rand(2, 1, 12, 16, generator=source) < 0.5).float()
    return prediction, target, hidden


def textbook(first: np.ndarray, second: np.ndarray) -> float:
    """Focal frequency loss with exponent 1, written down from its formula, spectrum by spectrum."""
    losses = []
    for ours, theirs in zip(first.reshape(-1, *first.shape[2:]), second.reshape(-1, *second.shape[2:]), strict=True):
        distance = np.abs(np.fft.fft2(ours) - np.fft.fft2(theirs)) / np.sqrt(ours.size)
        losses.append((distance / distance.max() * distance**2).mean())
    return float(np.mean(losses))


def test_over_all_pixels_it_is_the_textbooks(batch) -> None:
    prediction, target, hidden = batch
    value = FrequencyError(weight=2.0, where="all")(prediction, target, hidden)
    expected = (prediction - target).abs().mean().item() + 2 * textbook(prediction.numpy(), target.numpy())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(FrequencyError(weight=2.0, where="all")(prediction, target, None), value)


def test_over_hidden_pixels_the_prediction_stands_in_the_holes(batch) -> None:
    prediction, target, hidden = batch
    completed = torch.where(hidden > 0, prediction, target)
    where = hidden.bool().expand_as(target)
    expected = (prediction - target)[where].abs().mean().item() + 0.5 * textbook(completed.numpy(), target.numpy())
    assert FrequencyError()(prediction, target, hidden).item() == pytest.approx(expected, rel=1e-5)


def test_it_is_zero_exactly_where_equal_and_its_gradient_is_finite(batch) -> None:
    prediction, target, hidden = batch
    same = torch.where(hidden > 0, target, prediction).requires_grad_()
    loss = FrequencyError()(same, target, hidden)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(same.grad).all()
    place = hidden[0, 0].nonzero()[0]
    other = same.detach().clone()
    other[0, 0, place[0], place[1]] += 0.01
    assert FrequencyError()(other, target, hidden) > 0
    assert FrequencyError(where="all")(same, target, hidden) > 0


def test_visible_pixels_have_no_influence(batch) -> None:
    prediction, target, hidden = batch
    prediction.requires_grad_()
    loss = FrequencyError()(prediction, target, hidden)
    loss.backward()
    visible = (hidden == 0).expand_as(target)
    assert prediction.grad[visible].abs().max() == 0
    assert prediction.grad[~visible].abs().min() > 0
    assert torch.equal(FrequencyError()(torch.where(visible, torch.inf, prediction), target, hidden), loss)


def test_the_weights_of_the_spectrum_are_not_learned(batch) -> None:
    difference = batch[0].clone().requires_grad_()
    focal_frequency(difference).backward()
    spectrum = torch.fft.fft2(difference.detach(), norm="ortho")
    weight = spectrum.abs() / spectrum.abs().amax(dim=(2, 3), keepdim=True)
    expected = 2 * torch.fft.ifft2(weight * spectrum, norm="ortho").real / difference.numel()
    assert torch.allclose(difference.grad, expected, atol=1e-7)


def test_a_missing_frequency_costs_more_than_the_same_error_spread_over_all() -> None:
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    noise *= wave.square().mean().sqrt() / noise.square().mean().sqrt()
    assert focal_frequency(wave) > 1.5 * focal_frequency(noise)


def test_autocast_and_half_precision_are_compared_in_single(batch) -> None:
    prediction, target, hidden = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = FrequencyError()(prediction, target, hidden)
    assert torch.equal(value, FrequencyError()(prediction, target, hidden))
    half = FrequencyError()((1000 * prediction).half(), target, hidden)
    assert half.dtype == torch.float32
    assert torch.isfinite(half)


def test_wrong_values_are_refused(batch) -> None:
    prediction, target, hidden = batch
    with pytest.raises(SegaeError, match="weight of the frequency term is -1"):
        FrequencyError(weight=-1)
    with pytest.raises(SegaeError, match='"visible"'):
        FrequencyError(where="visible")
    with pytest.raises(SegaeError, match="the corruption hides none"):
        FrequencyError()(prediction, target, None)
    with pytest.raises(SegaeError, match=r"shape \(2, 1, 12, 16\); \(2, 3, 12, 16\) is wanted"):
        FrequencyError()(prediction[:, :1], target, hidden)
