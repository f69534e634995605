"""How a model is called while it is pretrained or looked at: with or without the mask, and in which modes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def takes_hidden(model: nn.Module) -> bool:
    """Whether the model's forward takes (image, hidden); ``segae.Autoencoder`` takes the image alone."""
    return "hidden_b1hw" in inspect.signature(model.forward).parameters


def model_inputs(
    image_bchw: Tensor, hidden_b1hw: Tensor | None, *, with_hidden: bool, cut_b: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """What the model is called with: (image,), or (image, hidden) where its forward takes both, or with cut skips.

    Args:
        image_bchw: corrupted images in normalised image space.
        hidden_b1hw: 1 = hidden from the model, 0 = visible; None where nothing is hidden as a whole.
        with_hidden: what ``takes_hidden`` said of the model.
        cut_b: true where an image's skip connections are cut, for a ``segae.Pretrainer``; None cuts none.
    """
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
