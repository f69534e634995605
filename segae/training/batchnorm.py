"""BatchNorm statistics measured again on clean images."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def recalibrate_batchnorm(encoder: nn.Module, batches: Iterable[Tensor], device: torch.device) -> int:
    """Replace the running statistics of every BatchNorm layer by the plain average over ``batches``.

    Pretraining on corrupted images leaves the statistics of corrupted images behind; a frozen encoder would
    normalise clean images with them.

    Args:
        encoder: changed in place; its training mode is restored.
        batches: clean, normalised image batches (B, C, H, W).
        device: where the encoder is.

    Returns:
        The number of images seen.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return 0
    images = 0
    with _averaging(encoder, layers), torch.no_grad():
        for image_bchw in batches:
            encoder(image_bchw.to(device))
            images += len(image_bchw)
    return images


@contextmanager
def _averaging(encoder: nn.Module, layers: list[Any]) -> Any:
    """Only the BatchNorm layers in training mode, with a cumulative average (momentum None) started afresh."""
    modes = {module: module.training for module in encoder.modules()}
    momenta = [layer.momentum for layer in layers]
    encoder.eval()
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
