"""Grids of square patches: from pixels to one value for each patch, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class VisiblePatches:
    """What a mask of whole patches leaves of every image of a batch.

    Attributes:
        side: Side of a patch in pixels; both sides of the image are multiples of it.
        count: Patches that every image shows, 1 or more.
    """

    side: int
    count: int


def grid_size(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches; where the image is no multiple of the patch, the last ones are smaller."""
    return -(-height // patch), -(-width // patch)


def average_patches(image_bchw: Tensor, patch: int) -> Tensor:
    """Mean of each patch of (B, C, H, W), smaller ones at the edge included: (B, C, rows, columns)."""
    return functional.avg_pool2d(image_bchw, patch, ceil_mode=True)


def spread_patches(grid_bcrc: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Give every pixel its patch's value: (B, C, rows, columns) to (B, C, height, width)."""
    spread_bchw = grid_bcrc.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return spread_bchw[:, :, :height, :width]
