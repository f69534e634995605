"""Run a segmenter over images and score what it says. Takes plain arrays, so that training can use it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.training.forward import evaluating
from segae.training.memory import prediction_memory
from segae.training.metrics import SegmentationMetrics, SegmentationScores

CPU = torch.device("cpu")


def normalise(
    images_bhwc: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """``(x / 255 - mean) / std`` on the device.

    Args:
        images_bhwc: uint8 (B, H, W, 3), RGB.
        mean: of each channel, on the scale 0-1.
        std: of each channel, on the scale 0-1.
        device: bytes travel there, not floats: a quarter of the traffic.

    Returns:
        float32 (B, 3, H, W); channels_last in memory on a CPU, where convolutions are faster so.

    Raises:
        SegaeError: the images have another number of channels than the model.
    """
    if len(mean) != images_bhwc.shape[-1]:
        raise SegaeError(
            f"The images have {images_bhwc.shape[-1]} channels and the model takes {len(mean)}. Wanted as many: "
            "images are read as RGB, so predict with such a model in Python, by model(images_bchw)."
        )
    image_bchw = torch.from_numpy(np.array(images_bhwc)).to(device).permute(0, 3, 1, 2).float() / 255
    shape = (1, -1, 1, 1)
    mean_1c11 = torch.tensor(mean, device=device).reshape(shape)
    std_1c11 = torch.tensor(std, device=device).reshape(shape)
    normal = (image_bchw - mean_1c11) / std_1c11
    return normal if device.type == "cpu" else normal.contiguous()


def predict_logits(
    model: nn.Module,
    images: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 16,
    device: torch.device = CPU,
) -> Iterator[Tensor]:
    """Yield the logits (B, K, H, W) of the images, batch by batch, on the device.

    The model is moved to the device, runs in evaluation mode without gradients, and is left in the modes it
    was found in.

    Args:
        model: from normalised images to logits.
        images: uint8 (N, H, W, 3), RGB; may be a memory map.
        mean: what the model's images are normalised with.
        std: the same.
        batch_size: images per forward pass.
        device: where to compute.

    Raises:
        SegaeError: the batch size is below 1, or the memory is too small for it.
    """
    require_batch_size(batch_size)
    model.to(device)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        with prediction_memory(len(batch)), evaluating(model), torch.inference_mode():
            logits_bkhw = model(normalise(batch, mean, std, device)).float()
        yield logits_bkhw


def predict_masks(
    model: nn.Module,
    images: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 16,
    device: torch.device = CPU,
) -> NDArray[np.uint8]:
    """The most probable class of each pixel, uint8 (N, H, W); arguments as in :func:`predict_logits`."""
    batches = predict_logits(model, images, mean, std, batch_size=batch_size, device=device)
    masks = [softmax_winner(logits_bkhw).to(torch.uint8).cpu().numpy() for logits_bkhw in batches]
    return np.concatenate(masks) if masks else np.zeros(images.shape[:3], np.uint8)


def evaluate_model(
    model: nn.Module,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 16,
    device: torch.device = CPU,
) -> SegmentationScores:
    """Score a segmenter at the resolution of its input.

    Args:
        model: from normalised images to logits (B, K, H, W).
        images: uint8 (N, H, W, 3), RGB; may be a memory map.
        masks: true class indices (N, H, W).
        classes: K names.
        mean: what the model's images are normalised with.
        std: the same.
        batch_size: images per forward pass; no score depends on it.
        device: where to compute.

    Raises:
        SegaeError: no images, masks of another size, or a value that is no class index.
    """
    metrics = SegmentationMetrics(classes)
    batches = predict_logits(model, images, mean, std, batch_size=batch_size, device=device)
    for index, logits_bkhw in enumerate(batches):
        truth_bhw = np.array(masks[index * batch_size : (index + 1) * batch_size])
        metrics.update(softmax_winner(logits_bkhw), torch.from_numpy(truth_bhw).to(device))
    return metrics.compute()


def evaluate_at_mask_size(
    model: nn.Module,
    images: NDArray[np.uint8],
    masks: Iterable[NDArray[np.integer]],
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 16,
    device: torch.device = CPU,
) -> SegmentationScores:
    """Score a segmenter at the size of each mask, to which its logits are resized.

    Args:
        model: from normalised images to logits (B, K, S, S).
        images: uint8 (N, S, S, 3), RGB, at the model's input size.
        masks: true class indices (H, W), one per image, of any sizes; read one at a time.
        classes: K names.
        mean: what the model's images are normalised with.
        std: the same.
        batch_size: images per forward pass; no score depends on it.
        device: where to compute.

    Raises:
        SegaeError: no images, or a value that is no class index.
    """
    metrics = SegmentationMetrics(classes)
    batches = predict_logits(model, images, mean, std, batch_size=batch_size, device=device)
    logits = (logits_khw for logits_bkhw in batches for logits_khw in logits_bkhw)
    for logits_khw, mask_hw in zip(logits, masks, strict=True):
        prediction_hw = softmax_winner(resize_logits(logits_khw, *mask_hw.shape))
        truth_hw = torch.from_numpy(mask_hw.astype(np.int64)).to(device)
        metrics.update(prediction_hw[None], truth_hw[None])
    return metrics.compute()


def resize_logits(logits_khw: Tensor, height: int, width: int) -> Tensor:
    """Bilinear (K, H, W) to (K, height, width).

    Logits and not labels are resized: contours come out smooth, and probabilities stay probabilities.
    """
    size = (height, width)
    with prediction_memory(1):
        return functional.interpolate(logits_khw[None], size=size, mode="bilinear", align_corners=False)[0]


def softmax_winner(logits: Tensor) -> Tensor:
    """The most probable class: logits (..., K, H, W) to int64 class indices (..., H, W).

    Softmax keeps the order, so it need not be computed. ``max`` and not ``argmax``, which over this axis is
    twelve times slower on a CPU.
    """
    return logits.max(dim=-3).indices


def require_batch_size(batch_size: int) -> None:
    """Raise SegaeError unless ``batch_size`` is at least 1."""
    if batch_size < 1:
        raise SegaeError(f"The batch size is {batch_size}, at least 1 is wanted: type --batch-size 16.")
