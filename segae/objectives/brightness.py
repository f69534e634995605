"""Objects and ground of an image told apart by brightness alone, wherever and however many they are."""

from __future__ import annotations

import torch
from torch import Tensor

from segae.objectives.layers import blur

_LEVELS = 64
_EVEN = 1 / 8  # sigma, in sides of the image, of what counts as uneven light


@torch.no_grad()
def split_brightness(image_bchw: Tensor) -> Tensor:
    """The bright or the dark pixels of each image, whichever are fewer; uneven light is taken away before.

    The threshold parts the brightness into two classes whose means lie as far apart as their sizes allow (Otsu, IEEE
    Transactions on Systems, Man, and Cybernetics 1979, doi 10.1109/TSMC.1979.4310076), after a square root, which
    evens out how faintly fluorescent things differ from the ground, and after what a wide blur gives was taken away.
    Nothing is assumed about places; it is assumed that the objects take up less than half of the image, and that each
    is small: below a quarter of its side.

    Args:
        image_bchw: (B, C, H, W) of any C and any scale; brightness is the mean over channels.

    Returns:
        float32 (B, 1, H, W): 1 for object and 0 for ground, which is all there is in an image of one brightness.
    """
    with torch.autocast(image_bchw.device.type, enabled=False):
        light_b1hw = _to_unit(image_bchw.float().mean(dim=1, keepdim=True)).sqrt()
        even_b1hw = _to_unit(light_b1hw - blur(light_b1hw, _EVEN * image_bchw.shape[3]))
        level_bn = (even_b1hw.flatten(1) * _LEVELS).long().clamp(max=_LEVELS - 1)
        bright_bn = level_bn > _threshold(level_bn)
        few_b1 = bright_bn.float().mean(dim=1, keepdim=True) <= 0.5
        return (bright_bn == few_b1).float().view_as(light_b1hw)


def _to_unit(map_b1hw: Tensor) -> Tensor:
    """Every image from its own lowest value, 0, to its own highest, 1; 0 where there is one value."""
    low_b111 = map_b1hw.amin(dim=(1, 2, 3), keepdim=True)
    range_b111 = map_b1hw.amax(dim=(1, 2, 3), keepdim=True) - low_b111
    return torch.where(range_b111 > 1e-6, (map_b1hw - low_b111) / range_b111.clamp(min=1e-6), 0.0)


def _threshold(level_bn: Tensor) -> Tensor:
    """The last level (B, 1) of the darker class: the variance between the two classes is the largest there."""
    index_k = torch.arange(_LEVELS, device=level_bn.device)
    count_bk = torch.stack([(level_bn == level).sum(dim=1) for level in index_k], dim=1).double()
    below_bk, sum_bk = count_bk.cumsum(dim=1), (count_bk * index_k).cumsum(dim=1)
    all_b1, total_b1 = below_bk[:, -1:], sum_bk[:, -1:]
    difference_bk = sum_bk * all_b1 - below_bk * total_b1
    between_bk = difference_bk.square() / (below_bk * (all_b1 - below_bk)).clamp(min=1)
    return between_bk.argmax(dim=1, keepdim=True)
