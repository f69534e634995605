"""Run a segmenter over arrays of images and score its masks; plain arrays in, so training can use it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from segae._io import check_range
from segae.errors import SegaeError
from segae.evaluation.metrics import SegmentationMetrics, SegmentationScores
from segae.models.encoder import evaluation_mode


def normalize(
    images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> Tensor:
    """Compute ``(x / 255 - mean) / std`` on the device, which is sent bytes, a quarter of the traffic of floats.

    From uint8 (B, H, W, C), RGB, to float32 (B, C, H, W); channels_last in memory on a CPU, where convolutions are
    faster so. ``mean`` and ``std`` of each channel are on the scale 0-1.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise SegaeError(f"images must be a uint8 array (N, H, W, C), got {images.dtype} {images.shape}")
    if len(mean) != images.shape[-1]:
        raise SegaeError(f"images must have {len(mean)} channels as the model's mean, got {images.shape[-1]}")
    device = torch.device(device)
    image_bchw = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 255
    mean_1c11, std_1c11 = (torch.tensor(part, device=device).reshape(1, -1, 1, 1) for part in (mean, std))
    normalized_bchw = (image_bchw - mean_1c11) / std_1c11
    return normalized_bchw if device.type == "cpu" else normalized_bchw.contiguous()


def input_settings(
    model: nn.Module,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    device: torch.device | str | None = None,
) -> tuple[Sequence[float], Sequence[float], torch.device]:
    """Return mean, std and device, each that of the model (its ``info``, its parameters) where it is None."""
    info = getattr(model, "info", None)
    info = getattr(info, "encoder", info)  # that of a whole model holds its encoder's
    mean = getattr(info, "mean", None) if mean is None else mean
    std = getattr(info, "std", None) if std is None else std
    if mean is None or std is None:
        raise SegaeError(f"mean and std must be given for a model without info, got a {type(model).__name__}")
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), "cpu")
    return mean, std, torch.device(device)


def predict_logits(
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Yield the logits (B, K, H, W) of images batch by batch, on the device.

    The model is moved to the device and runs in evaluation mode without gradients; its modes are restored.

    Args:
        model: from normalized images to logits.
        images: uint8 (N, H, W, C), RGB; may be a memory map.
        mean: of each channel, on the scale 0-1; None takes that of ``model.info``, as for ``std``.
        std: of each channel, on the scale 0-1.
        batch_size: images per forward pass, 1 or more.
        device: where to compute; None is where the model is.

    Raises:
        SegaeError: ``images`` is no uint8 (N, H, W, C), or a number is out of range.
    """
    check_range("batch_size", batch_size, low=1, integer=True)
    mean, std, device = input_settings(model, mean, std, device)
    model.to(device)
    for start in range(0, len(images), batch_size):
        batch_bchw = normalize(images[start : start + batch_size], mean, std, device)
        with evaluation_mode(model), torch.inference_mode():
            logits_bkhw = model(batch_bchw).float()
        yield logits_bkhw


def predict_masks(
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> NDArray[np.uint8]:
    """Predict the most probable class of each pixel, uint8 (N, H, W); arguments as in :func:`predict_logits`."""
    batches = predict_logits(model, images, mean=mean, std=std, batch_size=batch_size, device=device)
    masks = [argmax_classes(logits_bkhw).to(torch.uint8).cpu().numpy() for logits_bkhw in batches]
    return np.concatenate(masks) if masks else np.zeros(images.shape[:3], np.uint8)


def evaluate_model(
    model: nn.Module,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    names: Sequence[str] | None = None,
) -> SegmentationScores:
    """Score a segmenter at the resolution of its input; no score depends on the batch size.

    Args:
        model: from normalized images to logits (B, K, H, W).
        images: uint8 (N, H, W, C), RGB; may be a memory map.
        masks: true class indices (N, H, W).
        classes: K names; None takes those of ``model.info``.
        mean: of each channel, on the scale 0-1; None takes that of ``model.info``, as for ``std``.
        std: of each channel, on the scale 0-1.
        batch_size: images per forward pass.
        device: where to compute; None is where the model is.
        names: of the N images, for the per-image scores.

    Raises:
        SegaeError: no images, masks of another size, or a value that is no class index.

    Example:
        >>> evaluate_model(load_segmenter("model.safetensors"), images, masks).miou  # doctest: +SKIP
    """
    if len(masks) != len(images):
        raise SegaeError(f"masks must be one per image ({len(images)}), got {len(masks)}")
    metrics = SegmentationMetrics(_model_classes(model, classes))
    batches = predict_logits(model, images, mean=mean, std=std, batch_size=batch_size, device=device)
    for index, logits_bkhw in enumerate(batches):
        batch = slice(index * batch_size, (index + 1) * batch_size)
        truth_bhw = torch.from_numpy(np.array(masks[batch])).to(logits_bkhw.device)
        metrics.update(argmax_classes(logits_bkhw), truth_bhw, None if names is None else names[batch])
    return metrics.compute()


def evaluate_at_mask_size(
    model: nn.Module,
    images: NDArray[np.uint8],
    masks: Iterable[NDArray[np.integer]],
    *,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> SegmentationScores:
    """Score a segmenter at the size of each mask, to which its logits are resized.

    Args:
        model: from normalized images to logits (B, K, S, S).
        images: uint8 (N, S, S, C), RGB, at the model's input size.
        masks: true class indices (H, W), one per image, of any sizes; read one at a time.
        classes: K names; None takes those of ``model.info``.
        names: of the N images, for the per-image scores.
        **options: ``mean``, ``std``, ``batch_size`` and ``device`` as in :func:`predict_logits`.
    """
    metrics = SegmentationMetrics(_model_classes(model, classes))
    batches = predict_logits(model, images, **options)
    logits = (logits_khw for logits_bkhw in batches for logits_khw in logits_bkhw)
    names = [""] * len(images) if names is None else names
    for name, logits_khw, mask_hw in zip(names, logits, masks, strict=True):
        prediction_hw = argmax_classes(resize_logits(logits_khw, *mask_hw.shape))
        truth_hw = torch.from_numpy(mask_hw.astype(np.int64)).to(prediction_hw.device)
        metrics.update(prediction_hw[None], truth_hw[None], [name])
    return metrics.compute()


def resize_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize logits (K, H, W) bilinearly to (K, height, width); contours come out smoother than those of labels."""
    return functional.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def argmax_classes(logits: Tensor) -> Tensor:
    """Return the most probable class: logits (..., K, H, W) to int64 class indices (..., H, W)."""
    return logits.max(dim=-3).indices  # argmax over this axis is twelve times slower on a CPU


def _model_classes(model: nn.Module, classes: Sequence[str] | None) -> Sequence[str]:
    found = getattr(getattr(model, "info", None), "classes", None) if classes is None else classes
    if found is None:
        raise SegaeError(f"classes must be given for a model without info, got a {type(model).__name__}")
    return found
