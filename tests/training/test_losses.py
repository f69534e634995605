"""Losses by name equal those of smp and torch, also with ignored pixels, and what does not fit is refused."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from segae.errors import SegaeError
from segae.training.losses import LOSSES, SupervisedLoss, balanced_weights


def example(ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator, requires_grad=True)
    mask = torch.randint(3, (2, 8, 8), generator=generator)
    return logits, mask.masked_fill(torch.rand(mask.shape, generator=generator) < ignored, 255)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_pixels_that_count(name):
    logits, mask = example()
    counted = mask != 255
    alone, labels = logits.movedim(1, -1)[counted].T[None, :, :, None], mask[counted][None, :, None]
    loss = SupervisedLoss(name, num_classes=3)(logits, mask)
    theirs = {
        "cross_entropy": functional.cross_entropy,
        "dice": smp.losses.DiceLoss("multiclass"),
        "jaccard": smp.losses.JaccardLoss("multiclass"),
        "focal": smp.losses.FocalLoss("multiclass"),
        "lovasz": smp.losses.LovaszLoss("multiclass"),
    }[name]
    assert float(loss.detach()) == pytest.approx(float(theirs(alone, labels)), rel=1e-5)
    loss.backward()
    assert (logits.grad.abs().sum(dim=1)[~counted] == 0).all()
    assert (logits.grad.abs().sum(dim=1)[counted] > 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_where_nothing_counts_the_loss_and_its_gradient_are_zero(name):
    logits, mask = example(ignored=1.1)
    loss = SupervisedLoss(name, num_classes=3)(logits, mask)
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


def test_a_sum_has_its_factors_weights_and_smoothing():
    logits, mask = example()
    settings = {"weight": torch.tensor([1.0, 2.0, 0.0]), "label_smoothing": 0.1}
    expected = functional.cross_entropy(logits, mask, ignore_index=255, **settings)
    expected = expected + 0.5 * SupervisedLoss("dice", num_classes=3)(logits, mask)
    loss = SupervisedLoss("cross_entropy + 0.5*dice", num_classes=3, class_weights=(1, 2, 0), label_smoothing=0.1)
    assert float(loss(logits, mask)) == pytest.approx(float(expected), rel=1e-6)


def test_balanced_weights_are_the_inverse_of_the_shares():
    masks = torch.tensor([[0, 0, 0, 255], [0, 2, 2, 255]])
    weights = balanced_weights(masks, 4)
    assert weights == pytest.approx((0.75, 0, 1.5, 0))
    shares = torch.bincount(masks[masks != 255], minlength=4) / 6
    assert float((shares * torch.tensor(weights)).sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("hinge", {}, "loss must be one of cross_entropy, dice.*got 'hinge'"),
        ("dice+", {}, "loss must be one of"),
        ("x*dice", {}, "loss must have numbers.*'x\\*dice'"),
        ("0*dice", {}, "loss must have factors above 0"),
        (7, {}, "loss must be a text or a function, got 7"),
        ("dice", {"class_weights": (1, 1, 1)}, "loss must have cross_entropy for class_weights"),
        ("dice", {"label_smoothing": 0.1}, "loss must have cross_entropy"),
        ("cross_entropy", {"class_weights": (1, 1)}, "class_weights must be 3 numbers"),
    ],
)
def test_what_does_not_fit_is_refused(text, settings, message):
    with pytest.raises(SegaeError, match=message):
        SupervisedLoss(text, num_classes=3, **settings)
