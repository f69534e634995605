"""BatchNorm whose statistics are those of the images of all processes, on any device.

torch's SyncBatchNorm needs CUDA, replaces the layers, and cannot leave out an image; this changes what the layers
compute while a training step runs, and nothing else: parameters, buffers, hooks and names stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, distributed, nn
from torch.nn import functional

from segae.errors import SegaeError


class Meeting:
    """Says to all synchronised layers of a model whether they meet now.

    Attributes:
        open: whether layers in training mode exchange their statistics; only while a training step runs in all
            processes. At other times (validation, a probe in one process) they are ordinary layers.
        counts: whether this process's images count in them.
    """

    def __init__(self) -> None:
        self.open, self.counts = False, True


class _Synchronised2d(nn.BatchNorm2d):
    meeting: Meeting

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.meeting.open:
            return _normalise(self, input)
        return super().forward(input)


class _SynchronisedAct2d(BatchNormAct2d):
    meeting: Meeting

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.meeting.open:
            return self.act(self.drop(_normalise(self, x)))
        return super().forward(x)


_SYNCHRONISED: dict[type, type] = {nn.BatchNorm2d: _Synchronised2d, BatchNormAct2d: _SynchronisedAct2d}


@contextmanager
def synchronised_batchnorm(model: nn.Module) -> Iterator[Meeting]:
    """Inside, the BatchNorm layers of a model can meet those of the other processes; outside they are as before.

    Args:
        model: its layers change their class, in place, and get it back.

    Yields:
        What opens and closes the meeting.

    Raises:
        SegaeError: a layer is a BatchNorm of another kind.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        if type(layer) not in _SYNCHRONISED:
            raise SegaeError(
                f"a layer of the model is a {type(layer).__name__}, which several processes cannot synchronise; "
                f"{' and '.join(kind.__name__ for kind in _SYNCHRONISED)} can be. Use one process, or another encoder."
            )
    before: list[tuple[Any, type]] = [(layer, type(layer)) for layer in layers]
    meeting = Meeting()
    for layer, kind in before:
        layer.__class__ = _SYNCHRONISED[kind]
        layer.meeting = meeting
    try:
        yield meeting
    finally:
        for layer, kind in before:
            del layer.meeting
            layer.__class__ = kind


def _normalise(layer: Any, image_bchw: Tensor) -> Tensor:
    """What BatchNorm does in training mode, with the statistics of all processes."""
    output_bchw, mean_c, variance_c, count = _AllProcesses.apply(
        image_bchw, layer.weight, layer.bias, layer.eps, layer.meeting.counts
    )
    if layer.track_running_stats:
        layer.num_batches_tracked.add_(1)
        momentum = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
        unbiased_c = variance_c * (count / (count - 1).clamp(min=1))
        layer.running_mean.lerp_(mean_c, momentum)
        layer.running_var.lerp_(unbiased_c.to(variance_c.dtype), momentum)
    return output_bchw


class _AllProcesses(torch.autograd.Function):
    """Normalise by the mean and variance over the positions of all processes; both are differentiated through."""

    @staticmethod
    def forward(
        ctx: Any, image_bchw: Tensor, weight_c: Tensor | None, bias_c: Tensor | None, eps: float, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # var_mean of bfloat16 would round its result to bfloat16
        exact_bchw = image_bchw.float() if image_bchw.dtype in (torch.bfloat16, torch.float16) else image_bchw
        variance_c, mean_c = torch.var_mean(exact_bchw, dim=(0, 2, 3), correction=0)
        mean, square = mean_c.double(), variance_c.double() + mean_c.double().square()
        count = image_bchw.numel() // image_bchw.shape[1]
        # in float64: a small variance beside a large mean would drown in float32
        sums = torch.cat([mean, square, torch.ones_like(mean[:1])]) * (count if counts else 0)
        distributed.all_reduce(sums)
        total = sums[-1].clone()
        mean, square = (sums[:-1] / total).chunk(2)
        variance_c = (square - mean.square()).clamp(min=0).to(variance_c.dtype)
        mean_c = mean.to(mean_c.dtype)
        ctx.save_for_backward(image_bchw, weight_c, mean_c, variance_c, total.to(mean_c.dtype))
        ctx.eps, ctx.counts = eps, counts
        output_bchw = functional.batch_norm(image_bchw, mean_c, variance_c, weight_c, bias_c, eps=eps)
        ctx.mark_non_differentiable(mean_c, variance_c, total)
        return output_bchw, mean_c, variance_c, total

    @staticmethod
    def backward(ctx: Any, gradient_bchw: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        image_bchw, weight_c, mean_c, variance_c, count = ctx.saved_tensors
        scale_c = (variance_c + ctx.eps).rsqrt()
        # first as if mean and variance were constants
        through_bchw, weight_gradient_c, bias_gradient_c = torch.ops.aten.native_batch_norm_backward(
            gradient_bchw, image_bchw, weight_c, mean_c, variance_c, mean_c, scale_c, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([weight_gradient_c, bias_gradient_c]).to(mean_c.dtype)
        distributed.all_reduce(sums)
        by_variance_c, by_mean_c = (sums / count).chunk(2)
        outer_c = scale_c if weight_c is None else scale_c * weight_c.to(scale_c.dtype)
        if ctx.counts:  # an image that is in no statistic gets nothing through them
            slope_c = -outer_c * scale_c * by_variance_c
            shift_c = -outer_c * by_mean_c - slope_c * mean_c
            shape = (1, -1, 1, 1)
            dtype = through_bchw.dtype
            through_bchw = through_bchw + (image_bchw * slope_c.view(shape) + shift_c.view(shape)).to(dtype)
        if weight_c is None:
            return through_bchw, None, None, None, None
        return through_bchw, weight_gradient_c, bias_gradient_c, None, None
