"""What a segmentation is trained by, against the formula written out."""

from __future__ import annotations

import pytest
import torch

from segae.errors import SegaeError
from segae.training.losses import segmentation_loss


def by_hand(logits_bkhw: torch.Tensor, mask_bhw: torch.Tensor) -> float:
    probability_bkhw, losses = logits_bkhw.softmax(dim=1), []
    for index in range(logits_bkhw.shape[1]):
        true_bhw = (mask_bhw == index).float()
        both = (probability_bkhw[:, index] * true_bhw).sum()
        score = 2 * both / (probability_bkhw[:, index].sum() + true_bhw.sum())
        losses += [1 - float(score)] if true_bhw.any() else []
    return sum(losses) / len(losses)


@pytest.mark.parametrize("highest", [2, 3])
def test_dice_is_over_all_pixels_of_the_batch(highest):
    generator = torch.Generator().manual_seed(0)
    logits_bkhw = torch.randn(4, 3, 9, 7, generator=generator)
    mask_bhw = torch.randint(highest, (4, 9, 7), generator=generator)  # with 2 the third class is nowhere
    dice = segmentation_loss("dice")
    assert float(dice(logits_bkhw, mask_bhw)) == pytest.approx(by_hand(logits_bkhw, mask_bhw), abs=1e-6)


def test_dice_of_bfloat16_logits_is_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits_bkhw = torch.randn(4, 3, 64, 64, generator=generator).bfloat16()
    mask_bhw = torch.randint(3, (4, 64, 64), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = segmentation_loss("dice")(logits_bkhw, mask_bhw)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(by_hand(logits_bkhw.float(), mask_bhw), abs=1e-5)


def test_each_loss_falls_along_its_gradient_to_nothing():
    mask_bhw = torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    for name in ("cross_entropy", "dice"):
        logits_bkhw = torch.zeros(2, 3, 8, 8, requires_grad=True)
        loss = segmentation_loss(name)
        for _ in range(60):
            (gradient,) = torch.autograd.grad(loss(logits_bkhw, mask_bhw), logits_bkhw)
            logits_bkhw = (logits_bkhw - 100 * gradient).detach().requires_grad_()
        assert float(loss(logits_bkhw, mask_bhw).detach()) < 0.05
        assert torch.equal(logits_bkhw.argmax(dim=1), mask_bhw)


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(SegaeError, match="the loss is 'focal'; it must be one of cross_entropy, dice"):
        segmentation_loss("focal")
