"""What a segmentation is trained by."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn

from segae.errors import SegaeError

LOSSES = ("cross_entropy", "dice")


class SoftDice(nn.Module):
    """One minus the Dice score of the softmax, mean over the classes that the batch has (arXiv 1606.04797).

    A class is counted over all pixels of the images that are on the device at once, so micro-batches and several
    processes take the mean of their parts' losses: near the loss of the whole batch, not equal to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(mode="multiclass", from_logits=True)

    def forward(self, logits_bkhw: Tensor, mask_bhw: Tensor) -> Tensor:
        """A number from logits (B, K, H, W) and class indices (B, H, W)."""
        # bfloat16 has eight bits, and a class is summed over a hundred thousand pixels
        mean_of_all = self.dice(logits_bkhw.float(), mask_bhw)
        count = logits_bkhw.shape[1]  # among them those that no pixel is of, with the loss 0
        present = torch.zeros(count, device=mask_bhw.device).index_fill_(0, mask_bhw.flatten().long(), 1).sum()
        return mean_of_all * count / present


def segmentation_loss(name: str) -> nn.Module:
    """The loss of that name, from logits (B, K, H, W) and class indices (B, H, W) to a number.

    Raises:
        SegaeError: there is none of that name.
    """
    if name not in LOSSES:
        raise SegaeError(f"the loss is {name!r}; it must be one of {', '.join(LOSSES)}.")
    return SoftDice() if name == "dice" else nn.CrossEntropyLoss()
