"""How well a segmentation agrees with the truth: one confusion matrix, and the scores that follow from it.

Scores of the whole set come from sums over all pixels of all images, so they do not depend on the batch size;
per-image scores are kept beside them, one per image, for paired tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segae.errors import SegaeError

BOUNDARY_WIDTH = 0.02  # of the image diagonal; the value of the Boundary IoU paper


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count the pixels of each (true class, predicted class).

    Args:
        prediction: class indices in ``[0, classes)``, any shape.
        truth: class indices in ``[0, classes)``, the same shape.
        classes: how many classes there are.

    Returns:
        int64 ``(classes, classes)``; rows are the truth, columns the prediction.

    Raises:
        SegaeError: the shapes differ, the values are not integers, or one is outside the classes.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    if prediction.shape != truth.shape:
        raise SegaeError(
            f"The prediction has the shape {tuple(prediction.shape)} and the truth {tuple(truth.shape)}. Wanted one "
            "shape: resize the prediction to the truth first."
        )
    return _confusion_per_image(prediction.reshape(1, -1), truth.reshape(1, -1), classes)[0]


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """The scores of one segmenter on one set of images, each in [0, 1].

    A class that is in neither truth nor prediction of the whole set has the score NaN and no part in a mean.

    Attributes:
        classes: names, in the order of the class indices.
        miou: mean of ``iou``.
        dice: mean over the classes of the Dice score (F1).
        pixel_accuracy: share of the pixels whose class is right.
        per_image_miou: mean of ``per_image``.
        boundary_iou: mean over the classes of the Boundary IoU (arXiv 2103.16562).
        iou: intersection over union of each class.
        confusion: int64 (K, K) pixel counts, rows truth, columns prediction.
        per_image: float64 (N,), for each image the mean IoU over the classes in its truth or its prediction.
        per_image_intersection: int64 (N, K), for each image and class the pixels that truth and prediction share;
            their sums over images, over those of ``per_image_union``, are ``iou``.
        per_image_union: int64 (N, K), for each image and class the pixels in its truth or its prediction.
    """

    classes: tuple[str, ...]
    miou: float
    dice: float
    pixel_accuracy: float
    per_image_miou: float
    boundary_iou: float
    iou: tuple[float, ...]
    confusion: NDArray[np.int64]
    per_image: NDArray[np.float64]
    per_image_intersection: NDArray[np.int64]
    per_image_union: NDArray[np.int64]

    def as_row(self) -> dict[str, float]:
        """The scores under the column names of a results table, one ``iou_<class>`` per class."""
        row = {
            "miou": self.miou,
            "dice": self.dice,
            "pixel_accuracy": self.pixel_accuracy,
            "per_image_miou": self.per_image_miou,
            "boundary_iou": self.boundary_iou,
        }
        return row | {f"iou_{name}": value for name, value in zip(self.classes, self.iou, strict=True)}


class SegmentationMetrics:
    """Collects predictions batch by batch, then computes :class:`SegmentationScores`.

    Batches may have different image sizes.

    Example:
        >>> metrics = SegmentationMetrics(("pet", "background"))
        >>> metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
        >>> metrics.compute().pixel_accuracy
        0.5
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        count = len(self.classes)
        self._confusion = np.zeros((count, count), np.int64)
        self._boundary_intersection = np.zeros(count, np.int64)
        self._boundary_union = np.zeros(count, np.int64)
        self._per_image: list[float] = []
        self._intersections_nk: list[NDArray[np.int64]] = []  # one array per batch
        self._unions_nk: list[NDArray[np.int64]] = []

    def update(self, prediction_bhw: Tensor, truth_bhw: Tensor) -> None:
        """Add a batch of class indices, (B, H, W) each, on any device.

        Raises:
            SegaeError: the shapes differ or are not (B, H, W), or a value is no class index.
        """
        if truth_bhw.ndim != 3:
            raise SegaeError(
                f"A batch of masks has the shape {tuple(truth_bhw.shape)}, but (images, height, width) is "
                "wanted: add a leading axis with mask[None] to score one image."
            )
        count = len(self.classes)
        confusion_bkk = _confusion_per_image(prediction_bhw, truth_bhw, count).cpu().numpy()
        self._confusion += confusion_bkk.sum(axis=0)
        intersection_bk, union_bk = _overlap(confusion_bkk)
        self._intersections_nk.append(intersection_bk)
        self._unions_nk.append(union_bk)
        self._per_image += _mean_present(_ratio(intersection_bk, union_bk)).tolist()
        predictions = prediction_bhw.to(torch.int32).cpu().numpy()
        for prediction_hw, truth_hw in zip(predictions, truth_bhw.to(torch.int32).cpu().numpy(), strict=True):
            self._add_boundaries(prediction_hw, truth_hw)

    def _add_boundaries(self, prediction_hw: NDArray[np.int32], truth_hw: NDArray[np.int32]) -> None:
        width = boundary_width(*truth_hw.shape)
        for index in range(len(self.classes)):
            predicted = boundary_region(prediction_hw == index, width)
            true = boundary_region(truth_hw == index, width)
            self._boundary_intersection[index] += np.count_nonzero(predicted & true)
            self._boundary_union[index] += np.count_nonzero(predicted | true)

    def compute(self) -> SegmentationScores:
        """The scores of everything added so far.

        Raises:
            SegaeError: nothing was added.
        """
        if not self._per_image:
            raise SegaeError("There are 0 images to score, at least 1 is wanted: choose a split that has images.")
        confusion = self._confusion
        iou = _ratio(*_overlap(confusion))
        return SegmentationScores(
            classes=self.classes,
            miou=float(_mean_present(iou)),
            # Dice = 2 IoU / (1 + IoU), class by class; NaN stays NaN
            dice=float(_mean_present(2 * iou / (1 + iou))),
            pixel_accuracy=float(np.trace(confusion) / confusion.sum()),
            per_image_miou=float(np.mean(self._per_image)),
            boundary_iou=float(_mean_present(_ratio(self._boundary_intersection, self._boundary_union))),
            iou=tuple(iou.tolist()),
            confusion=confusion.copy(),
            per_image=np.array(self._per_image),
            per_image_intersection=np.concatenate(self._intersections_nk),
            per_image_union=np.concatenate(self._unions_nk),
        )


def boundary_width(height: int, width: int) -> int:
    """How deep a boundary region is, in pixels: 2 % of the image diagonal, at least 1 (arXiv 2103.16562)."""
    return max(1, round(BOUNDARY_WIDTH * float(np.hypot(height, width))))


def boundary_region(mask_hw: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels of a mask that lie within ``width`` pixels of its contour (arXiv 2103.16562).

    The image's edge counts as contour and distance is chessboard distance, as in the authors' code.
    """
    # Without the frame of zeros OpenCV would treat the mask as going on beyond the image's edge.
    framed = cv2.copyMakeBorder(mask_hw.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask_hw & (inner == 0)


def _confusion_per_image(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 (B, K, K) from two tensors of the same shape (B, ...)."""
    if prediction.shape != truth.shape:
        raise SegaeError(
            f"The prediction has the shape {tuple(prediction.shape)} and the truth {tuple(truth.shape)}, but "
            "they must be equal: resize the logits to the mask's size, then take the argmax over the classes."
        )
    _require_class_indices("prediction", prediction, classes)
    _require_class_indices("truth", truth, classes)
    images = truth.shape[0]
    image = torch.arange(images, device=truth.device).reshape(-1, *[1] * (truth.ndim - 1))
    cell = (image * classes + truth.long()) * classes + prediction.to(truth.device).long()
    counts = torch.bincount(cell.flatten(), minlength=images * classes * classes)
    return counts.reshape(images, classes, classes)


def _require_class_indices(name: str, values: Tensor, classes: int) -> None:
    if values.is_floating_point() or values.is_complex():
        raise SegaeError(
            f"The {name} holds {values.dtype} values, but class indices are integers: "
            "take logits.argmax(dim=1) before scoring."
        )
    if values.numel() == 0:
        return
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or largest >= classes:
        raise SegaeError(
            f"The {name} holds values from {smallest} to {largest}, but with {classes} classes they must lie "
            f"from 0 to {classes - 1}: map raw mask values to class indices, or name all classes of the data."
        )


def _overlap(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels per class in both and in either of truth and prediction, (..., K) each, from (..., K, K)."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1)
    return both, confusion.sum(axis=-1) + confusion.sum(axis=-2) - both


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Quotient, NaN where there is nothing to divide by: a class in neither truth nor prediction has no score."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean_present(per_class: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN. Any scored pixel makes at least one class present."""
    return np.asarray(np.nanmean(per_class, axis=-1))
