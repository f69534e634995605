"""How a model is called while it is pretrained or looked at: with or without the mask, and in which modes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from segae.objectives.patches import VisiblePatches


def takes_hidden(model: nn.Module) -> bool:
    """Whether the model's forward takes (image, hidden); ``segae.Autoencoder`` takes the image alone."""
    return "hidden_b1hw" in inspect.signature(model.forward).parameters


def sparse_stride(model: nn.Module) -> int | None:
    """Side in pixels of the blocks of which a sparse ``segae.Pretrainer`` sees some; None of every other model."""
    asks = "visible" in inspect.signature(model.forward).parameters
    return int(model.stride) if asks and model.masking == "sparse" else None  # type: ignore[arg-type]


def visible_blocks(visible: VisiblePatches | None, stride: int | None) -> int | None:
    """How many blocks of ``sparse_stride`` every image shows; None where that is not known from the mask's patches."""
    if visible is None or stride is None or visible.side % stride:
        return None
    return visible.count * (visible.side // stride) ** 2


def model_inputs(
    image_bchw: Tensor,
    hidden_b1hw: Tensor | None,
    *,
    with_hidden: bool,
    cut_b: Tensor | None = None,
    visible: int | None = None,
) -> tuple[Any, ...]:
    """What the model is called with: (image,), or (image, hidden) where its forward takes both, or more.

    Args:
        image_bchw: corrupted images in normalised image space.
        hidden_b1hw: 1 = hidden from the model, 0 = visible; None where nothing is hidden as a whole.
        with_hidden: what ``takes_hidden`` said of the model.
        cut_b: true where an image's skip connections are cut, for a ``segae.Pretrainer``; None cuts none.
        visible: what ``visible_blocks`` said of the batch.
    """
    if visible is not None:
        return image_bchw, hidden_b1hw, cut_b, visible
    if cut_b is not None:
        return image_bchw, hidden_b1hw, cut_b
    return (image_bchw, hidden_b1hw) if with_hidden else (image_bchw,)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; outside each module has its own mode again, frozen parts included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
