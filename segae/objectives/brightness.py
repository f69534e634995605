"""Object and ground of an image told apart by brightness alone, wherever they are: Otsu's threshold."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 64


@torch.no_grad()
def split_brightness(image_bchw: Tensor) -> Tensor:
    """The bright or the dark pixels of each image, whichever are fewer.

    The threshold parts the brightness into two classes whose means lie as far apart as their sizes allow (Otsu, IEEE
    Transactions on Systems, Man, and Cybernetics 1979, doi 10.1109/TSMC.1979.4310076), after a square root, which
    evens out how faintly fluorescent things differ from the ground. Nothing is assumed about places; it is assumed
    that the objects take up less than half of the image.

    Args:
        image_bchw: (B, C, H, W) of any C and any scale; brightness is the mean over channels.

    Returns:
        float32 (B, 1, H, W): 1 for object and 0 for ground, which is all there is in an image of one brightness.
    """
    height, width = image_bchw.shape[2:]
    with torch.autocast(image_bchw.device.type, enabled=False):
        grey_bn = image_bchw.float().mean(dim=1).flatten(1)
        low_b1, high_b1 = grey_bn.amin(dim=1, keepdim=True), grey_bn.amax(dim=1, keepdim=True)
        range_b1 = high_b1 - low_b1
        share_bn = torch.where(range_b1 > 1e-6, (grey_bn - low_b1) / range_b1.clamp(min=1e-6), 0.0)
        level_bn = (share_bn.sqrt() * _LEVELS).long().clamp(max=_LEVELS - 1)
        bright_bn = level_bn > _threshold(level_bn)
        few_b1 = bright_bn.float().mean(dim=1, keepdim=True) <= 0.5
        return (bright_bn == few_b1).float().view(-1, 1, height, width)


def _threshold(level_bn: Tensor) -> Tensor:
    """The last level (B, 1) of the darker class: the variance between the two classes is the largest there."""
    index_k = torch.arange(_LEVELS, device=level_bn.device)
    count_bk = torch.stack([(level_bn == level).sum(dim=1) for level in index_k], dim=1).double()
    below_bk, sum_bk = count_bk.cumsum(dim=1), (count_bk * index_k).cumsum(dim=1)
    all_b1, total_b1 = below_bk[:, -1:], sum_bk[:, -1:]
    difference_bk = sum_bk * all_b1 - below_bk * total_b1
    between_bk = difference_bk.square() / (below_bk * (all_b1 - below_bk)).clamp(min=1)
    return between_bk.argmax(dim=1, keepdim=True)
