"""Run a segmenter over arrays of images and score its masks; plain arrays in, so training can use it too."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segae.errors import SegaeError
from segae.evaluation.metrics import SegmentationMetrics, SegmentationScores
from segae.image_format import ImageFormat
from segae.models.inference import argmax_classes, predict_logits, restore_logits


def predict_masks(model: nn.Module, images: NDArray[np.uint8], **options: Any) -> NDArray[np.uint8]:
    """Predict the most probable class of each pixel, uint8 (N, H, W); options as in :func:`predict_logits`."""
    batches = predict_logits(model, images, **options)
    masks = [argmax_classes(logits_bkhw).to(torch.uint8).cpu().numpy() for logits_bkhw in batches]
    return np.concatenate(masks) if masks else np.zeros(images.shape[:3], np.uint8)


def evaluate_model(
    model: nn.Module,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    *,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> SegmentationScores:
    """Score a segmenter at the resolution of its input; no score depends on the batch size.

    Args:
        model: from normalized images to logits (B, K, H, W).
        images: uint8 (N, H, W, C), RGB; may be a memory map.
        masks: true class indices (N, H, W); pixels of 255 do not count.
        classes: K names; None takes those of ``model.info``. Some of the latter: the others are never predicted.
        names: of the N images, for the per-image scores.
        **options: ``mean``, ``std``, ``batch_size`` and ``device`` of :func:`predict_logits`.

    Raises:
        SegaeError: no images, masks of another size, or a value that is no class index.
    Example:
        >>> evaluate_model(load_segmenter("model.safetensors"), images, masks).miou  # doctest: +SKIP
    """
    if len(masks) != len(images):
        raise SegaeError(f"masks must be one per image ({len(images)}), got {len(masks)}")
    classes, places = _model_classes(model, classes)
    metrics, start = SegmentationMetrics(classes), 0
    for logits_bkhw in predict_logits(model, images, **options):
        batch = slice(start, start + len(logits_bkhw))
        start += len(logits_bkhw)
        truth_bhw = torch.from_numpy(np.array(masks[batch])).to(logits_bkhw.device)
        metrics.update(argmax_classes(logits_bkhw[:, places]), truth_bhw, None if names is None else names[batch])
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

    Masks (H, W) may have any sizes and are read one at a time; images have the model's input size. Of a model that
    crops, the part of a mask that it saw is scored. All arguments and the ``options`` are as in :func:`evaluate_model`.
    """
    classes, places = _model_classes(model, classes)
    metrics = SegmentationMetrics(classes)
    batches = predict_logits(model, images, **options)
    logits = (logits_khw[places] for logits_bkhw in batches for logits_khw in logits_bkhw)
    names = [""] * len(images) if names is None else names
    form = getattr(getattr(model, "info", None), "format", ImageFormat(tuple(images.shape[1:3])))
    for name, logits_khw, whole_hw in zip(names, logits, masks, strict=True):
        prediction_hw = argmax_classes(restore_logits(logits_khw, form, *whole_hw.shape))
        mask_hw = whole_hw[form.boxes(*whole_hw.shape)[0]]
        truth_hw = torch.from_numpy(mask_hw.astype(np.int64)).to(prediction_hw.device)
        metrics.update(prediction_hw[None], truth_hw[None], [name])
    return metrics.compute()


def _model_classes(model: nn.Module, classes: Sequence[str] | None) -> tuple[Sequence[str], Any]:
    """The names of the classes that are scored, and their places among the model's logits."""
    known = getattr(getattr(model, "info", None), "classes", None)
    found = known if classes is None else classes
    if found is None:
        raise SegaeError(f"classes must be given for a model without info, got a {type(model).__name__}")
    if known is None or len(found) == len(known) or not set(found) <= set(known):
        return found, slice(None)
    return found, [known.index(name) for name in found]
