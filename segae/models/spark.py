"""Sparse masked encoding of any convolutional network (SparK, arXiv 2301.03580): it sees visible positions only."""

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segae.errors import SegaeError

_OTHERS = "use a masking other than sparse, or an encoder such as tf_efficientnet_lite0, resnet18 or convnext_atto"


def encode_visible(
    encoder: Any, spatial: Sequence[str], images: Tensor, mask: Tensor, visible: int | None = None
) -> list[Tensor]:
    """Run a dense encoder on the visible positions of masked images, without changing it.

    Between spatial operations a feature map is the list of its visible positions, (B, C, n, 1). Activations, 1x1
    convolutions, sums and normalizations work on such a list as they do on a map, and take their statistics over
    visible positions because there are no others. A convolution or pooling gets the map back for its own run, with
    zeros at hidden positions. So nothing hidden can reach anything, and 1x1 convolutions cost only what is visible.
    The hooks that do this exist during the call; before and after, the encoder is a plain dense one.

    Args:
        encoder: has an ``output_stride``; its features, zero at hidden positions, are returned.
        spatial: names of the modules that need a map, from `find_spatial_modules`.
        images: normalized (B, C, H, W); hidden pixels may hold anything, NaN too.
        mask: (B, 1, H, W), 1 = hidden, 0 = visible, in blocks of the encoder's stride, as many in every image; anything
            else is a SegaeError.
        visible: how many blocks every image shows; None counts and checks them, for which the host waits for a GPU.
    """
    if mask.shape != (len(images), 1, *images.shape[-2:]):
        raise SegaeError(f"mask must be (B, 1, H, W) as images {tuple(images.shape)}, got {tuple(mask.shape)}")
    positions = VisiblePositions(mask, encoder.output_stride, visible)
    with ExitStack() as hooks:
        for name in spatial:
            module = encoder.get_submodule(name)
            hooks.enter_context(
                module.register_forward_pre_hook(lambda _, given: (positions.scatter(given[0]), *given[1:]))
            )
            hooks.enter_context(module.register_forward_hook(lambda _, _given, output: positions.gather(output)))
        lists = encoder(positions.gather(images))
    height, width = mask.shape[-2:]
    return [
        # smp gives no channels for a stage that the network does not have
        positions.scatter(one) if one.shape[1] else one.new_empty(len(one), 0, height >> index, width >> index)
        for index, one in enumerate(lists)
    ]


def make_trial(encoder: nn.Module) -> tuple[nn.Module, Tensor]:
    """Copy an encoder so that every branch of it counts, with random images (2, C, 3 strides, 2 strides) to try it.

    Layer scales and the last normalization of a branch often start near zero, which would hide what the branch does:
    the copy has other values there. BatchNorm uses statistics of the batch, so that numbers keep their size through a
    deep network; dropout is off.
    """
    # on the CPU in full precision: what is compared must not differ by rounding
    copied = copy.deepcopy(encoder).to("cpu", torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    channels: int = copied._in_channels  # type: ignore[assignment]  # a first convolution may see folded pixels
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    side: int = copied.output_stride  # type: ignore[assignment]
    return copied, torch.randn(2, channels, 3 * side, 2 * side, generator=generator)


@torch.no_grad()
def find_spatial_modules(encoder: nn.Module) -> tuple[str, ...]:
    """Name the modules of an encoder to which it matters which positions are neighbors.

    Convolutions tell by their attributes; any other module without children must give the same for a map and its list.
    With nothing hidden the result must then be the dense one; else the encoder mixes positions elsewhere than in its
    modules and cannot be made sparse, a SegaeError.
    """
    copied, images = make_trial(encoder)
    found: dict[str, None] = {}
    with ExitStack() as hooks:
        for name, module in copied.named_modules():
            if not [*module.children()]:
                hooks.enter_context(module.register_forward_hook(partial(_record_spatial, found, name)))
        copied(images)
    expected = copied(images)  # once more: the hooks may have run layers in place
    try:
        seen = encode_visible(copied, tuple(found), images, torch.zeros_like(images[:, :1]))
        wrong = [stage for stage, (one, other) in enumerate(zip(seen, expected, strict=True)) if not _equal(one, other)]
        if wrong:
            raise ValueError(f"with nothing hidden its feature map {wrong[0]} is not the dense one")
    except Exception as error:  # whatever a layer raises for a map of an unexpected shape
        raise SegaeError(f"encoder must mix positions inside of its layers only ({error!r}): {_OTHERS}") from error
    return tuple(found)


def _record_spatial(found: dict[str, None], name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    list_and_axis = _as_list(inputs[0]) if inputs else None
    if list_and_axis is None or not isinstance(output, Tensor):
        return
    listed, axis = list_and_axis
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        spatial = any(size != 1 for size in (*module.kernel_size, *module.stride))
    else:
        expected = output.flatten(axis, axis + 1).unsqueeze(axis + 1)
        try:  # forward and not __call__, which would record again
            spatial = not _equal(module.forward(listed, *inputs[1:]), expected)
        except (RuntimeError, ValueError, AssertionError):
            spatial = True
    if spatial:
        found[name] = None


def _as_list(value: Any) -> tuple[Tensor, int] | None:
    """Flatten the rows and columns of a trial map, whichever axes they are; sides of 3 to 2 give them away."""
    if isinstance(value, Tensor) and value.ndim == 4:
        for axis in (2, 1):
            height, width = value.shape[axis : axis + 2]
            if height > 1 and 2 * height == 3 * width:
                return value.flatten(axis, axis + 1).unsqueeze(axis + 1), axis
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = other.abs().max() if other.numel() else 0
    return torch.allclose(one, other, rtol=1e-3, atol=float(1e-4 * scale))


class VisiblePositions:
    """Where a batch of images is visible, at every resolution of one forward pass.

    A feature map (B, C, H, W) and the list of its visible positions (B, C, n, 1) are turned into each other. The lists
    are ordered block by block, as the deepest map is: all maps of one resolution agree. Both have the channels
    innermost in memory (channels_last), so a row of a block is one contiguous run. Arguments as in `encode_visible`.
    """

    def __init__(self, mask: Tensor, stride: int, visible: int | None = None) -> None:
        self.rows, self.columns = (side // stride for side in mask.shape[-2:])
        pixels = (mask > 0).view(len(mask), self.rows, stride, self.columns, stride)
        hidden = pixels.any(4).any(2).flatten(1)
        self.count = _count_visible(pixels, hidden, stride) if visible is None else visible
        # a stable sort puts the visible blocks first and keeps their order
        self.blocks = hidden.byte().argsort(dim=1, stable=True)[:, : self.count]
        self._runs: dict[int, Tensor] = {}

    def gather(self, feature: Tensor) -> Tensor:
        """Take the visible positions out of a map: (B, C, H, W) to (B, C, n, 1)."""
        batch, channels, height, width = feature.shape
        side = height // self.rows
        if side == 0 or (height, width) != (self.rows * side, self.columns * side):
            blocks = f"{self.rows} x {self.columns} blocks"
            raise SegaeError(f"encoder must make maps of {blocks}, got {tuple(feature.shape)}: {_OTHERS}")
        runs = feature.permute(0, 2, 3, 1).reshape(-1, side * channels)
        listed = _Move.apply(runs, self._runs_of(side), None)
        return listed.view(batch, -1, 1, channels).permute(0, 3, 1, 2)

    def scatter(self, listed: Tensor) -> Tensor:
        """Put a list of visible positions back into a map of zeros: (B, C, n, 1) to (B, C, H, W)."""
        batch, channels, positions, one = listed.shape
        side = math.isqrt(positions // self.count)
        if one != 1 or side == 0 or side**2 * self.count != positions:
            raise SegaeError(f"encoder must keep lists of visible positions, got {tuple(listed.shape)}: {_OTHERS}")
        runs = listed.permute(0, 2, 3, 1).reshape(-1, side * channels)
        put = _Move.apply(runs, self._runs_of(side), batch * self.rows * side * self.columns)
        return put.view(batch, self.rows * side, self.columns * side, channels).permute(0, 3, 1, 2)

    def _runs_of(self, side: int) -> Tensor:
        """Indices of the visible runs where a block is `side` pixels wide; a run is one row of one block."""
        if side not in self._runs:
            device = self.blocks.device
            images = torch.arange(len(self.blocks), device=device).view(-1, 1, 1)
            inside = torch.arange(side, device=device).view(1, 1, -1)
            rows = (images * self.rows + (self.blocks // self.columns).unsqueeze(2)) * side + inside
            self._runs[side] = (rows * self.columns + (self.blocks % self.columns).unsqueeze(2)).flatten()
        return self._runs[side]


def _count_visible(pixels: Tensor, hidden: Tensor, stride: int) -> int:
    """Visible blocks of every image, of a mask that shows as many in each and hides or shows them whole."""
    counts = (~hidden).sum(1)
    split = hidden.sum() * stride**2 - pixels.sum()
    fewest, most, off_blocks = torch.stack([counts.min(), counts.max(), split]).tolist()
    if off_blocks:
        raise SegaeError(f"patch_size must be a multiple of {stride}, the encoder's stride, for masking sparse")
    if fewest != most or most == 0:
        raise SegaeError(f"mask must show as many blocks in every image, and at least one, got {fewest} to {most}")
    return most


class _Move(torch.autograd.Function):
    """Take rows at an index without repeats, or put them there among ``total`` rows of zeros.

    Each is the gradient of the other. torch's own taking has a gradient with atomic sums, and its own putting keeps the
    rows for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, total: int | None) -> Tensor:
        ctx.save_for_backward(index)
        ctx.total = len(rows) if total is None else None
        return _move(rows, index, total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return _move(gradient, index, ctx.total), None, None


def _move(rows: Tensor, index: Tensor, total: int | None) -> Tensor:
    if total is None:
        return rows.index_select(0, index)
    zeros = rows.new_zeros(total, rows.shape[1])
    # the same result: on a CPU adding is twice as fast as copying, on a GPU it would be atomic
    return zeros.index_copy_(0, index, rows) if rows.is_cuda else zeros.index_add_(0, index, rows)
