"""The visible positions of masked feature maps: taken out as a list, put back among zeros."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from segae.errors import SegaeError


class VisiblePositions:
    """Where a batch of images is visible, at every resolution of one forward pass.

    A feature map (B, C, H, W) and the list of its visible positions (B, C, n, 1) are turned into each other.
    The lists are ordered block by block, as the deepest map is: all maps of one resolution agree. Both have the
    channels innermost in memory (channels_last), so a row of a block is one contiguous run of numbers.

    Args:
        hidden_b1hw: 1 = hidden, 0 = visible; constant on blocks of `stride` pixels, as many hidden ones in every
            image, and at least one visible.
        stride: Pixels of the image per pixel of the encoder's deepest map.
        count: Visible blocks of every image, from whoever drew the mask and vouches for it: nothing is checked but the
            shape then. None counts and checks them, for which the host waits for a GPU.

    Raises:
        SegaeError: The mask is not of that kind.
    """

    def __init__(self, hidden_b1hw: Tensor, stride: int, count: int | None = None) -> None:
        batch, channels, height, width = hidden_b1hw.shape
        if channels != 1 or height % stride or width % stride:
            raise SegaeError(
                f"a hidden mask of shape {tuple(hidden_b1hw.shape)} does not fit an encoder of stride {stride}: "
                f"(B, 1, H, W) is wanted, with sides that are multiples of {stride}."
            )
        self.size = (height, width)
        self.rows, self.columns = height // stride, width // stride
        blocks = (hidden_b1hw > 0).view(batch, self.rows, stride, self.columns, stride)
        hidden_bn = blocks.any(4).any(2).flatten(1)
        self.count = _counted(blocks, hidden_bn, stride) if count is None else count
        # a stable sort puts the visible blocks first and keeps their order
        self.blocks_bn = hidden_bn.byte().argsort(dim=1, stable=True)[:, : self.count]
        self._runs: dict[int, Tensor] = {}

    def gather(self, map_bchw: Tensor) -> Tensor:
        """Take the visible positions out of a map: (B, C, H, W) to (B, C, n, 1).

        Raises:
            SegaeError: The map's sides are not the same multiple of the mask's blocks.
        """
        batch, channels, height, width = map_bchw.shape
        side = height // self.rows
        if side == 0 or (height, width) != (self.rows * side, self.columns * side):
            raise SegaeError(
                f"a layer of the encoder makes a map of {height} x {width} from images of {self.size[0]} x "
                f"{self.size[1]}, on which a mask of {self.rows} x {self.columns} blocks has no place. "
                "Use another encoder, such as tf_efficientnet_lite0, or objective mask or a2mim."
            )
        runs = map_bchw.permute(0, 2, 3, 1).reshape(-1, side * channels)
        visible = _Take.apply(runs, self._runs_of(side))
        return visible.view(batch, -1, 1, channels).permute(0, 3, 1, 2)

    def scatter(self, list_bcn1: Tensor) -> Tensor:
        """Put a list of visible positions back into a map of zeros: (B, C, n, 1) to (B, C, H, W).

        Raises:
            SegaeError: It is not the list of a whole map.
        """
        batch, channels, positions, one = list_bcn1.shape
        side = math.isqrt(positions // self.count)
        if one != 1 or side == 0 or side**2 * self.count != positions:
            raise SegaeError(
                f"a layer of the encoder was given a tensor of shape {tuple(list_bcn1.shape)}, which is not a list "
                f"of the visible positions of {self.count} blocks. "
                "Use another encoder, such as tf_efficientnet_lite0, or objective mask or a2mim."
            )
        runs = list_bcn1.permute(0, 2, 3, 1).reshape(-1, side * channels)
        total = batch * self.rows * side * self.columns
        map_runs = _Put.apply(runs, self._runs_of(side), total)
        return map_runs.view(batch, self.rows * side, self.columns * side, channels).permute(0, 3, 1, 2)

    def _runs_of(self, side: int) -> Tensor:
        """Indices of the visible runs where a block is `side` pixels wide; a run is one row of one block."""
        if side not in self._runs:
            device = self.blocks_bn.device
            image_b11 = torch.arange(len(self.blocks_bn), device=device).view(-1, 1, 1)
            row_bn1 = (self.blocks_bn // self.columns).unsqueeze(2) * side
            inside_11s = torch.arange(side, device=device).view(1, 1, -1)
            row_bns = image_b11 * self.rows * side + row_bn1 + inside_11s
            self._runs[side] = (row_bns * self.columns + (self.blocks_bn % self.columns).unsqueeze(2)).flatten()
        return self._runs[side]


def _counted(blocks: Tensor, hidden_bn: Tensor, stride: int) -> int:
    """Visible blocks of every image, of a mask that shows as many in each and hides or shows them whole."""
    counts_b = (~hidden_bn).sum(1)
    split = hidden_bn.sum() * stride**2 - blocks.sum()
    fewest, most, off_blocks = torch.stack([counts_b.min(), counts_b.max(), split]).tolist()
    if off_blocks:
        raise SegaeError(
            f"the hidden mask is not made of blocks of {stride} px, the stride of the encoder: sparse masking "
            f"needs a patch that is a multiple of it. Use --patch {stride}."
        )
    if fewest != most:
        raise SegaeError(
            f"one image shows {fewest} blocks of {stride} px and another {most}; as many in every image are wanted. "
            "Draw the mask with PatchMask."
        )
    if most == 0:
        raise SegaeError("the hidden mask hides every pixel; at least one block must be visible. Lower --mask-ratio.")
    return most


class _Take(torch.autograd.Function):
    """Rows of a matrix; the gradient is written back without the atomic sums of index_select's own."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.total = len(matrix)
        return matrix.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _put(gradient, index, ctx.total), None


class _Put(torch.autograd.Function):
    """Rows written into a matrix of zeros at an index without repeats."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(index)
        return _put(rows, index, total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


def _put(rows: Tensor, index: Tensor, total: int) -> Tensor:
    zeros = rows.new_zeros(total, rows.shape[1])
    # the same result: on a CPU adding is twice as fast as copying, on a GPU it would be atomic
    return zeros.index_copy_(0, index, rows) if rows.is_cuda else zeros.index_add_(0, index, rows)
