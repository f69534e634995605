"""Losses agree with the textbook, and hidden ones look at hidden pixels only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.objectives.reconstruction import MeanAbsoluteError, MeanSquaredError

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
