"""Segmentation metrics from a confusion matrix: IoU, Dice, pixel accuracy, and the Boundary IoU.

Scores of a set come from sums over all its pixels, so none depends on the batch size; per-image scores are kept too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from segae._notebook import ShownInNotebooks, html_frame
from segae.errors import SegaeError
from segae.image_format import IGNORE_INDEX

BOUNDARY_WIDTH = 0.02  # of the image diagonal; the value of the Boundary IoU paper


def confusion_matrix(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each pair (true class, predicted class): int64 (K, K), rows truth, columns prediction.

    Both arguments are class indices in [0, K), of one shape. Pixels whose truth is 255 do not count.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), num_classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    return _confusion_per_image(prediction[None], truth[None], num_classes)[0]


def mean_iou(confusion: Tensor | NDArray[np.integer]) -> float:
    """Compute the mean over the classes of the intersection over union, in [0, 1], from pixel counts (K, K).

    A class in neither truth nor prediction is left out; NaN for a matrix of zeros.

    Example:
        >>> round(mean_iou(torch.tensor([[3, 1], [0, 4]])), 3)
        0.775
    """
    counts = confusion.cpu().numpy() if isinstance(confusion, Tensor) else np.asarray(confusion)
    return float(_mean(_ratio(*_overlap(counts))))


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationScores(ShownInNotebooks):
    """Scores of a segmenter on a set of images, each in [0, 1].

    A class in neither truth nor prediction of the whole set has the score NaN and no part in a mean. Pixels whose truth
    is 255 do not count; for the Boundary IoU they are in no class, of truth and prediction.

    Attributes:
        classes: names, in the order of the class indices.
        miou: mean of ``iou``.
        dice: mean over the classes of the Dice score (F1).
        pixel_accuracy: share of the pixels whose class is right.
        per_image_miou: mean of the column ``miou`` of ``per_image``.
        boundary_iou: mean over the classes of the Boundary IoU (arXiv 2103.16562).
        iou: intersection over union by class name.
        confusion: int64 (K, K) pixel counts, rows truth, columns prediction.
        per_image: one row per image: ``name`` (may be empty), ``miou`` over the classes in its truth or prediction,
            and the pixel counts ``intersection_<class>`` and ``union_<class>``, whose sums over images give ``iou``.
    """

    classes: tuple[str, ...]
    miou: float
    dice: float
    pixel_accuracy: float
    per_image_miou: float
    boundary_iou: float
    iou: dict[str, float]
    confusion: NDArray[np.int64]
    per_image: pd.DataFrame

    def _facts(self) -> dict[str, Any]:
        means = (item for item in self.as_row().items() if not item[0].startswith("iou_"))
        return {name: f"{value:.3f}" for name, value in means} | {"images": len(self.per_image)}

    def _pictures(self) -> dict[str, Any]:
        pixels = self.confusion.sum(axis=1) / max(1, self.confusion.sum())
        rows = (
            (name, f"{self.iou[name]:.3f}", f"{share:.1%}") for name, share in zip(self.classes, pixels, strict=True)
        )
        return {"classes": html_frame(("class", "IoU", "share of pixels"), rows)}

    def as_row(self) -> dict[str, float]:
        """Return the scores under the column names of a results table, one ``iou_<class>`` per class."""
        names = ("miou", "dice", "pixel_accuracy", "per_image_miou", "boundary_iou")
        return {name: getattr(self, name) for name in names} | {f"iou_{name}": iou for name, iou in self.iou.items()}


class SegmentationMetrics:
    """Accumulates predictions batch by batch and computes :class:`SegmentationScores`.

    Batches may have different image sizes. ``classes`` are 1 to 255 distinct names, in the order of the class indices.

    Example:
        >>> metrics = SegmentationMetrics(("pet", "background"))
        >>> metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
        >>> metrics.compute().pixel_accuracy
        0.5
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        count = len(self.classes)
        if not 0 < count <= IGNORE_INDEX or len(set(self.classes)) < count:
            raise SegaeError(f"classes must be 1 to {IGNORE_INDEX} distinct names, got {self.classes}")
        self._boundary_2k = np.zeros((2, count), np.int64)  # intersection and union
        self._confusion = np.zeros((count, count), np.int64)
        self._overlaps: list[tuple[NDArray[np.integer], NDArray[np.integer]]] = []  # (B, K) twice per batch
        self._names: list[str] = []

    def update(self, prediction: Tensor, truth: Tensor, names: Sequence[str] | None = None) -> None:
        """Add a batch of class indices (B, H, W), any integer types, on any device, and maybe the images' names.

        Pixels whose truth is 255 do not count.
        """
        if truth.ndim != 3:
            raise SegaeError(f"truth must be (B, H, W), got the shape {tuple(truth.shape)}: add a first axis")
        if names is not None and len(names) != len(truth):
            raise SegaeError(f"names must be one per image ({len(truth)}), got {len(names)}")
        confusion_bkk = _confusion_per_image(prediction, truth, len(self.classes)).cpu().numpy()
        self._confusion += confusion_bkk.sum(axis=0)
        self._overlaps.append(_overlap(confusion_bkk))
        self._names += [""] * len(truth) if names is None else list(names)
        predictions, truths = (mask.cpu().numpy().astype(np.int32) for mask in (prediction, truth))  # copies
        for predicted_hw, true_hw, union_k in zip(predictions, truths, self._overlaps[-1][1], strict=True):
            width = boundary_width(*true_hw.shape)
            predicted_hw[true_hw == IGNORE_INDEX] = IGNORE_INDEX  # what is right wherever it counts has the score 1
            for index in np.flatnonzero(union_k):
                predicted, true = (boundary_region(mask == index, width) for mask in (predicted_hw, true_hw))
                self._boundary_2k[:, index] += np.count_nonzero(predicted & true), np.count_nonzero(predicted | true)

    def compute(self) -> SegmentationScores:
        """Return the scores of everything added so far; nothing is a SegaeError."""
        if not self._names:
            raise SegaeError("images must be one or more, got 0")
        intersection_nk, union_nk = (np.concatenate(parts) for parts in zip(*self._overlaps, strict=True))
        per_image_n = _mean(_ratio(intersection_nk, union_nk))
        iou_k = _ratio(*_overlap(self._confusion))
        columns = {"name": self._names, "miou": per_image_n}
        for kind, counts_nk in (("intersection", intersection_nk), ("union", union_nk)):
            columns |= {f"{kind}_{name}": counts_nk[:, index] for index, name in enumerate(self.classes)}
        return SegmentationScores(
            classes=self.classes,
            miou=float(_mean(iou_k)),
            dice=float(_mean(2 * iou_k / (1 + iou_k))),  # class by class; NaN stays NaN
            pixel_accuracy=float(_ratio(np.trace(self._confusion), self._confusion.sum())),
            per_image_miou=float(_mean(per_image_n)),
            boundary_iou=float(_mean(_ratio(*self._boundary_2k))),
            iou=dict(zip(self.classes, iou_k.tolist(), strict=True)),
            confusion=self._confusion.copy(),
            per_image=pd.DataFrame(columns),
        )


def boundary_width(height: int, width: int) -> int:
    """Return the depth of a boundary region in pixels: 2 % of the image diagonal, at least 1 (arXiv 2103.16562)."""
    return max(1, round(BOUNDARY_WIDTH * float(np.hypot(height, width))))


def boundary_region(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Select the pixels of a mask (H, W) within ``width`` pixels of its contour or the image's edge (arXiv 2103.16562).

    Distance is chessboard distance, as in the authors' code.
    """
    # without the frame of zeros OpenCV continues the mask beyond the image's edge
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (inner == 0)


def _confusion_per_image(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """int64 (B, K, K) from two tensors of the same shape (B, ...).

    One bincount and not ``smp.metrics.get_stats``: that one has no off-diagonal counts, is a loop over images (1.3 to
    7 times slower on one core for 16 masks of 128 to 512 pixels), and counts in float32, inexact above 2^24 pixels.
    """
    if prediction.shape != truth.shape:
        shapes = f"{tuple(truth.shape)}, got {tuple(prediction.shape)}"
        raise SegaeError(f"prediction must have the shape of truth, {shapes}: resize the logits to the mask first")
    for argument, values in (("prediction", prediction), ("truth", truth)):
        if values.is_floating_point() or values.is_complex():
            raise SegaeError(f"{argument} must be integer class indices, got {values.dtype}: take the argmax of logits")
        counted = values[truth != IGNORE_INDEX]
        low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
        if low < 0 or high >= num_classes:
            raise SegaeError(f"{argument} must be class indices in [0, {num_classes}), got {low} to {high}")
    images = truth.shape[0]
    image = torch.arange(images, device=truth.device).reshape(-1, *[1] * (truth.ndim - 1))
    cell = (image * num_classes + truth.long()) * num_classes + prediction.to(truth.device).long()
    counts = torch.bincount(cell[truth != IGNORE_INDEX], minlength=images * num_classes * num_classes)
    return counts.reshape(images, num_classes, num_classes)


def _overlap(confusion: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Intersection and union in pixels per class, (..., K) each, from (..., K, K)."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1).copy()  # a view would keep the whole matrix
    return both, confusion.sum(axis=-1) + confusion.sum(axis=-2) - both


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Quotient; NaN where the denominator is 0, for classes that are in neither mask."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of the values that are not NaN; NaN where there are none, as in an ignored image."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1))
