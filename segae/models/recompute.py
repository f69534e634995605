"""Activation checkpointing: forget what is inside a stage and compute it again in the backward pass (1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from segae.errors import SegaeError


class _Recomputed:
    """Comes before a module's own class: its forward keeps the input alone while gradients are wanted."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        contexts = partial(_contexts, cast(nn.Module, self))
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


def recompute_activations(model: nn.Module) -> int:
    """Make the stages of encoder and decoder keep only their inputs for the backward pass.

    Costs a second forward pass of them, about a third of a step, and saves most of the activations' memory. Weights,
    names, gradients and BatchNorm statistics stay what they would be.

    Args:
        model: has an ``encoder`` and, where it can be, a ``decoder``; changed in place.

    Returns:
        How many stages were changed.

    Raises:
        SegaeError: the model has no encoder.
    """
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        raise SegaeError(
            f"{type(model).__name__} has no encoder whose activations could be recomputed. Use a model of "
            "create_segmenter or create_pretrainer, or leave --activation-checkpointing out."
        )
    stages = [stage for part in ("encoder", "decoder") for stage in _stages(getattr(model, part, None))]
    for stage in stages:
        kind = type(stage)
        # a class in front, not another forward: copies of the model then call their own stages
        stage.__class__ = type(kind.__name__, (_Recomputed, kind), {})
    return len(stages)


def _stages(part: nn.Module | None) -> Iterator[nn.Module]:
    """The blocks below a part: the outermost modules with several layers that are no mere containers of such."""
    if part is None:
        return
    for child in part.children():
        if isinstance(child, _Recomputed) or _layers(child) < 2:
            continue
        if _only_holds(child):
            yield from _stages(child)
        else:
            yield child


def _only_holds(module: nn.Module) -> bool:
    """Whether it is a list of blocks, or a model or stage that has one: its own forward may never be called."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return True
    if type(module) is nn.Sequential:
        return any(_layers(child) > 1 for child in module)
    return any(isinstance(child, nn.ModuleList | nn.ModuleDict) or _holds_blocks(child) for child in module.children())


def _holds_blocks(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and _only_holds(module)


def _layers(module: nn.Module) -> int:
    return sum(1 for part in module.modules() if next(part.parameters(recurse=False), None) is not None)


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _resting_statistics(stage)


@contextmanager
def _resting_statistics(stage: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch but does not count it a second time."""
    layers = [layer for layer in stage.modules() if isinstance(layer, _BatchNorm)]
    before = [
        (layer, layer.momentum, None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone())
        for layer in layers
    ]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in before:
            layer.momentum = momentum
            if layer.num_batches_tracked is not None and count is not None:
                layer.num_batches_tracked.copy_(count)
