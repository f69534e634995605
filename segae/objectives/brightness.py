"""Objects and ground of an image told apart by brightness alone, wherever and however many they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from segae.objectives.layers import blur

_LEVELS = 64
_EVEN = 1 / 8  # sigma, in sides of the image, of what counts as uneven light
_WINDOW = 1 / 16  # half side of the neighbourhood, in sides of the image
_SMOOTH = 1 / 160  # sigma of the blur against noise, in sides of the image
_CONTRAST = 0.7  # of a neighbourhood with a boundary, in differences between the image's objects and ground


@torch.no_grad()
def split_brightness(image_bchw: Tensor) -> Tensor:
    """The bright or the dark pixels of each image, whichever are fewer, with uneven light taken away.

    The threshold parts the brightness into two classes whose means lie as far apart as their sizes allow (Otsu, IEEE
    Transactions on Systems, Man, and Cybernetics 1979, doi 10.1109/TSMC.1979.4310076), after a square root, which
    evens out how faintly fluorescent things differ from the ground. Nothing is assumed about places; it is assumed
    that the objects take up less than half of the image.

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


@torch.no_grad()
def threshold_locally(image_bchw: Tensor) -> Tensor:
    """The objects that `split_brightness` finds, their boundaries put by thresholds of their own surroundings.

    Where the brightness of a neighbourhood differs as object and ground do, a pixel is the object's if it is nearer to
    the end of that range that objects have (Bernsen, ICPR 1986); so a boundary is halfway up its slope, however bright
    the object. Elsewhere, far from boundaries and in large objects, `split_brightness` decides.

    Args:
        image_bchw: (B, C, H, W) of any C and any scale; brightness is the mean over channels.

    Returns:
        float32 (B, 1, H, W): 1 for object and 0 for ground.
    """
    side = image_bchw.shape[3]
    with torch.autocast(image_bchw.device.type, enabled=False):
        rough_b1hw = split_brightness(image_bchw)
        light_b1hw = _to_unit(image_bchw.float().mean(dim=1, keepdim=True))
        bright_b111 = _difference(light_b1hw, rough_b1hw) > 0
        light_b1hw = torch.where(bright_b111, light_b1hw, 1 - light_b1hw).sqrt()
        contrast_b111 = _difference(light_b1hw, rough_b1hw)
        reach = max(1, round(_WINDOW * side))
        smooth_b1hw = blur(light_b1hw, _SMOOTH * side)
        ends_b2hw = torch.cat([smooth_b1hw, -smooth_b1hw], dim=1)
        ends_b2hw = blur(_highest(ends_b2hw, reach), reach / 2)
        high_b1hw, low_b1hw = ends_b2hw[:, :1], -ends_b2hw[:, 1:]
        differs_b1hw = high_b1hw - low_b1hw > _CONTRAST * contrast_b111
        above_b1hw = light_b1hw > (high_b1hw + low_b1hw) / 2
        return torch.where(differs_b1hw & (contrast_b111 > 0), above_b1hw.float(), rough_b1hw)


def _to_unit(map_b1hw: Tensor) -> Tensor:
    """Every image from its own lowest value, 0, to its own highest, 1; 0 where there is one value."""
    low_b111 = map_b1hw.amin(dim=(1, 2, 3), keepdim=True)
    range_b111 = map_b1hw.amax(dim=(1, 2, 3), keepdim=True) - low_b111
    return torch.where(range_b111 > 1e-6, (map_b1hw - low_b111) / range_b111.clamp(min=1e-6), 0.0)


def _highest(map_bchw: Tensor, reach: int) -> Tensor:
    """The highest value of each square neighbourhood; rows first, then columns, which is less work."""
    rows_bchw = functional.max_pool2d(map_bchw, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return functional.max_pool2d(rows_bchw, (2 * reach + 1, 1), stride=1, padding=(reach, 0))


def _difference(light_b1hw: Tensor, object_b1hw: Tensor) -> Tensor:
    """How much brighter the object is than the ground, on average (B, 1, 1, 1)."""
    inside_b111, outside_b111 = (
        (light_b1hw * weight_b1hw).sum(dim=(2, 3), keepdim=True)
        / weight_b1hw.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        for weight_b1hw in (object_b1hw, 1 - object_b1hw)
    )
    return inside_b111 - outside_b111


def _threshold(level_bn: Tensor) -> Tensor:
    """The last level (B, 1) of the darker class: the variance between the two classes is the largest there."""
    index_k = torch.arange(_LEVELS, device=level_bn.device)
    count_bk = torch.stack([(level_bn == level).sum(dim=1) for level in index_k], dim=1).double()
    below_bk, sum_bk = count_bk.cumsum(dim=1), (count_bk * index_k).cumsum(dim=1)
    all_b1, total_b1 = below_bk[:, -1:], sum_bk[:, -1:]
    difference_bk = sum_bk * all_b1 - below_bk * total_b1
    between_bk = difference_bk.square() / (below_bk * (all_b1 - below_bk)).clamp(min=1)
    return between_bk.argmax(dim=1, keepdim=True)
