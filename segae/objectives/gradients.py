"""A loss that asks for edges besides pixels: histograms of oriented gradients (HOG)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.objectives.luminance import luminance
from segae.objectives.patches import average_patches
from segae.objectives.reconstruction import Where, check_shape, check_where, mean_where

# one to three grey levels of 255, by the encoder's normalisation: fainter gradients are quantisation, not edges
CONTRAST_FLOOR = 0.02


@dataclass(frozen=True)
class PixelsAndGradients:
    """Mean squared error of the pixels plus that of the target's histograms of oriented gradients.

    Locally contrast-normalised gradients are a better target than colours (MaskFeat, arXiv 2112.09133). The decoder
    gives `bins` channels after those of the image; their means over each cell are compared with its histogram by the
    squared distance of the two vectors, so that the term is about as large as that of the pixels.

    Attributes:
        cell: Side of a cell in pixels, 1 or more.
        bins: Orientations between 0 and 180 degrees, 2 or more.
        weight: Of the gradient term, 0 or more.
        where: `all`, or `hidden` pixels; a cell then counts by the share of it that is hidden.

    Raises:
        SegaeError: A value out of its range.
    """

    cell: int = 8
    bins: int = 9
    weight: float = 1.0
    where: Where = "all"

    def __post_init__(self) -> None:
        check_where(self.where)
        if self.cell < 1 or self.bins < 2:
            raise SegaeError(
                f"cell is {self.cell} px and bins is {self.bins}; 1 or more and 2 or more are wanted. Try 8 and 9."
            )
        if not 0 <= self.weight < float("inf"):
            raise SegaeError(f"weight of the gradient term is {self.weight}; 0 or more is wanted. Try 1.0.")

    def out_channels(self, image_channels: int) -> int:
        """Those of the image, then one for each bin."""
        return image_channels + self.bins

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Compare a prediction (B, C + bins, H, W) with images (B, C, H, W); hidden_b1hw is 1 where hidden."""
        check_shape(prediction_bchw, target_bchw, more_channels=self.bins)
        pixels_bchw, bins_bchw = prediction_bchw.float().split([target_bchw.shape[1], self.bins], dim=1)
        pixel_loss = mean_where((pixels_bchw - target_bchw.float()).square(), hidden_b1hw, self.where)
        histogram_bcrc = oriented_gradients(target_bchw, self.cell, self.bins)
        error_b1rc = (average_patches(bins_bchw, self.cell) - histogram_bcrc).square().sum(dim=1, keepdim=True)
        if self.where == "all" or hidden_b1hw is None:  # over hidden pixels, None was refused above
            return pixel_loss + self.weight * error_b1rc.mean()
        share_b1rc = average_patches(hidden_b1hw.float(), self.cell)
        hidden_loss = (error_b1rc * share_b1rc).sum() / share_b1rc.sum().clamp(min=1e-6)  # nothing hidden, no error
        return pixel_loss + self.weight * hidden_loss


@torch.no_grad()
def oriented_gradients(image_bchw: Tensor, cell: int, bins: int) -> Tensor:
    """Contrast-normalised histograms of the luminance's gradients (B, bins, rows, columns), in float32.

    Every pixel votes with the size of its gradient for the two orientations next to its own, bin k standing for
    180 k / bins degrees. A cell's histogram is divided by the root mean square length of the histograms of the up to
    3 x 3 cells around it, and so tells where an edge is besides where it points.
    """
    padded_b1hw = functional.pad(luminance(image_bchw.float()), (1, 1, 1, 1), mode="replicate")
    across_b1hw = padded_b1hw[:, :, 1:-1, 2:] - padded_b1hw[:, :, 1:-1, :-2]
    down_b1hw = padded_b1hw[:, :, 2:, 1:-1] - padded_b1hw[:, :, :-2, 1:-1]
    size_b1hw = torch.hypot(across_b1hw, down_b1hw)
    bin_b1hw = torch.atan2(down_b1hw, across_b1hw) * (bins / math.pi)  # of the orientation, as a broken number
    votes = []
    for index in range(bins):  # one after another: all at once would take `bins` times the memory
        away_b1hw = (bin_b1hw - index).remainder(bins)  # a turn of 180 degrees comes back to the same bin
        away_b1hw = torch.minimum(away_b1hw, bins - away_b1hw)
        votes.append(average_patches(size_b1hw * (1 - away_b1hw).clamp(min=0), cell))
    histogram_bcrc = torch.cat(votes, dim=1)
    length_b1rc = histogram_bcrc.square().sum(dim=1, keepdim=True)
    around_b1rc = functional.avg_pool2d(length_b1rc, 3, stride=1, padding=1, count_include_pad=False)
    return histogram_bcrc * (around_b1rc + CONTRAST_FLOOR**2).rsqrt()
