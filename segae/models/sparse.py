"""Masked convolution made sparse (SparK, arXiv 2301.03580): a dense encoder that sees visible positions only."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.visible import VisiblePositions


class SparseEncoder(nn.Module):
    """Run a dense encoder on the visible positions of masked images, without changing it.

    Between spatial operations a feature map is the list of its visible positions, (B, C, n, 1). Activations,
    1x1 convolutions, sums and normalisations work on such a list as they do on a map, and take their statistics
    over visible positions because there are no others: BatchNorm with its own running averages, GroupNorm,
    squeeze-and-excitation, global response normalisation. A convolution or pooling gets the map back for its own
    run, with zeros at hidden positions. So nothing hidden can reach anything, and 1x1 convolutions cost only what is
    visible. The hooks that do this exist while `forward` runs; before and after, the encoder is a plain dense one.

    Args:
        encoder: A module of `segae.models.encoder.build_encoder`, of any convolutional family.
        spatial: Names of its modules that need a map; None finds them with a trial run. The names another
            `SparseEncoder` of this architecture found may be given.

    Raises:
        SegaeError: The encoder mixes positions elsewhere than in its modules, so it cannot be made sparse.

    Example:
        >>> features = SparseEncoder(encoder)(image_bchw, hidden_b1hw)
    """

    def __init__(self, encoder: nn.Module, spatial: Sequence[str] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.stride: int = encoder.output_stride  # type: ignore[assignment]
        if spatial is None:
            self.spatial = find_spatial_modules(encoder)
            _require_dense_result(encoder, self.spatial)
        else:
            self.spatial = tuple(spatial)

    def forward(self, image_bchw: Tensor, hidden_b1hw: Tensor, visible: int | None = None) -> list[Tensor]:
        """Map normalised images (B, C, H, W) to the encoder's features, zero at hidden positions.

        Args:
            image_bchw: Hidden pixels may hold anything, NaN too: they are never read.
            hidden_b1hw: 1 = hidden, 0 = visible; blocks of the encoder's stride (usually 32) or a multiple of it,
                as many in every image.
            visible: Blocks of the stride that every image shows, from whoever drew the mask; None counts them.

        Raises:
            SegaeError: The mask is not of that kind; only its shape is looked at where ``visible`` is given.
        """
        if hidden_b1hw.shape[-2:] != image_bchw.shape[-2:] or len(hidden_b1hw) != len(image_bchw):
            raise SegaeError(
                f"a mask of shape {tuple(hidden_b1hw.shape)} does not fit images of shape {tuple(image_bchw.shape)}. "
                "Give one mask (B, 1, H, W) of the images' own size."
            )
        positions = VisiblePositions(hidden_b1hw, self.stride, visible)
        with _hooked(self.encoder, self.spatial, positions):
            lists_bcn1 = self.encoder(positions.gather(image_bchw))
        return [_to_map(list_bcn1, positions, index) for index, list_bcn1 in enumerate(lists_bcn1)]


def make_trial(encoder: nn.Module) -> tuple[nn.Module, Tensor]:
    """Copy an encoder so that every branch of it counts, with random images (2, C, 3 strides, 2 strides) to try it.

    Layer scales and the last normalisation of a residual branch often start at zero or near it, which would hide
    what the branch does: the copy has other values there. Its BatchNorm uses statistics of the batch, so that
    numbers keep their size through a deep network; dropout is off.
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


def find_spatial_modules(encoder: nn.Module) -> tuple[str, ...]:
    """Name the modules of an encoder to which it matters which positions are neighbours.

    Convolutions tell by their attributes. Any other module without children is tried: does it give the same
    for a map and for the list of the map's positions?
    """
    copied, image_bchw = make_trial(encoder)
    found: dict[str, None] = {}
    for name, module in copied.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(_make_recorder(name, found))
    with torch.no_grad():
        copied(image_bchw)
    return tuple(found)


def _make_recorder(name: str, found: dict[str, None]) -> Any:
    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        list_and_axis = _as_list(inputs[0]) if inputs else None
        if list_and_axis is None or not isinstance(output, Tensor):
            return
        positions, axis = list_and_axis
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if any(size != 1 for size in (*module.kernel_size, *module.stride)):
                found[name] = None
        elif not _is_blind(module, positions, inputs[1:], output.flatten(axis, axis + 1).unsqueeze(axis + 1)):
            found[name] = None

    return record


def _as_list(map_or_other: Any) -> tuple[Tensor, int] | None:
    """Flatten the rows and columns of a trial map, whichever axes they are; sides of 3 to 2 give them away."""
    if isinstance(map_or_other, Tensor) and map_or_other.ndim == 4:
        for axis in (2, 1):
            height, width = map_or_other.shape[axis : axis + 2]
            if height > 1 and 2 * height == 3 * width:
                return map_or_other.flatten(axis, axis + 1).unsqueeze(axis + 1), axis
    return None


def _is_blind(module: nn.Module, positions: Tensor, others: tuple[Any, ...], expected: Tensor) -> bool:
    """Whether a module gives the same for a list as for a map: it does not know where a position is."""
    try:
        return _equal(module.forward(positions, *others), expected)  # not __call__: that would record again
    except (RuntimeError, ValueError, AssertionError):
        return False


@torch.no_grad()
def _require_dense_result(encoder: nn.Module, spatial: Sequence[str]) -> None:
    """With nothing hidden the result must be the dense one; else some operation was not seen."""
    copied, image_bchw = make_trial(encoder)
    expected = copied(image_bchw)
    try:
        seen = SparseEncoder(copied, spatial)(image_bchw, torch.zeros_like(image_bchw[:, :1]))
    except Exception as error:  # whatever a layer raises for a map of an unexpected shape
        raise _not_sparse(str(error) or repr(error)) from error
    for stage, (one_bchw, other_bchw) in enumerate(zip(seen, expected, strict=True)):
        if not _equal(one_bchw, other_bchw):
            raise _not_sparse(f"with nothing hidden its feature map {stage} is not the dense one")


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = other.abs().max() if other.numel() else 0
    return torch.allclose(one, other, rtol=1e-3, atol=float(1e-4 * scale))


@contextmanager
def _hooked(encoder: nn.Module, spatial: Sequence[str], visible: VisiblePositions) -> Iterator[None]:
    """Give the named modules maps while the rest of the encoder works on lists."""

    def to_map(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
        return (visible.scatter(inputs[0]), *inputs[1:])

    def to_list(module: nn.Module, inputs: tuple[Any, ...], output_bchw: Tensor) -> Tensor:  # noqa: ARG001
        return visible.gather(output_bchw)

    handles = []
    try:
        for name in spatial:
            module = encoder.get_submodule(name)
            handles.append(module.register_forward_pre_hook(to_map))
            handles.append(module.register_forward_hook(to_list))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _to_map(list_bcn1: Tensor, visible: VisiblePositions, index: int) -> Tensor:
    if list_bcn1.shape[1] == 0:  # what smp gives for a stage that the network does not have
        height, width = visible.size
        return list_bcn1.new_empty(len(list_bcn1), 0, height >> index, width >> index)
    return visible.scatter(list_bcn1)


def _not_sparse(reason: str) -> SegaeError:
    return SegaeError(
        f"this encoder cannot be trained with sparse masking: it mixes positions outside of its layers ({reason}). "
        "Use objective mask or a2mim, or another encoder such as tf_efficientnet_lite0, resnet18 or convnext_atto."
    )
