"""BatchNorm statistics measured again on clean images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segae.errors import SegaeError


def recalibrate_batchnorm(
    part: nn.Module, batches: Iterable[Tensor], device: torch.device, through: nn.Module | None = None
) -> int:
    """Replace the running statistics of every BatchNorm layer by the plain average over ``batches``.

    Pretraining on corrupted images leaves the statistics of corrupted images behind; a frozen encoder would
    normalise clean images with them.

    Args:
        part: its layers are changed in place; every training mode is restored.
        batches: clean, normalised image batches (B, C, H, W).
        device: where the model is.
        through: the model that ``part`` belongs to, called with the images; ``part`` itself when None.

    Returns:
        The number of images seen.
    """
    model = part if through is None else through
    layers = [layer for layer in part.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return 0
    images = 0
    with _averaging(model, layers), torch.no_grad():
        for image_bchw in batches:
            model(image_bchw.to(device))
            images += len(image_bchw)
    return images


@contextmanager
def batches_of_several() -> Iterator[None]:
    """Say what is wanted where a BatchNorm layer had a single value in training, which has no variance.

    Raises:
        SegaeError: in place of torch's ValueError.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SegaeError(
            f"BatchNorm saw a single value for a channel, which has no variance ({error}). Wanted two or more images "
            "at once, or larger ones: raise --batch-size or --micro-batch, --epoch-images, --labels or --image-size."
        ) from error


@contextmanager
def _averaging(model: nn.Module, layers: list[Any]) -> Any:
    """Only the BatchNorm layers in training mode, with a cumulative average (momentum None) started afresh."""
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
