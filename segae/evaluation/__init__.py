"""Evaluation on plain arrays: segmentation metrics, prediction, linear probe, figures."""

from segae.evaluation.classification import ClassificationScores, evaluate_classifier
from segae.evaluation.metrics import SegmentationMetrics, SegmentationScores, confusion_matrix, mean_iou
from segae.evaluation.plots import (
    confusion_figure,
    contact_sheet,
    denormalize,
    draw_curves,
    overlay,
    reconstruction_sheet,
    segmentation_sheet,
)
from segae.evaluation.probe import feature_std, linear_probe, rankme
from segae.evaluation.segmentation import evaluate_at_mask_size, evaluate_model, predict_masks
from segae.models.inference import normalize, pooled_features, predict_logits, resize_logits

__all__ = [
    "ClassificationScores", "SegmentationMetrics", "SegmentationScores", "confusion_figure", "confusion_matrix",
    "contact_sheet", "denormalize", "draw_curves", "evaluate_at_mask_size", "evaluate_classifier", "evaluate_model",
    "feature_std", "linear_probe", "mean_iou", "normalize", "overlay", "pooled_features", "predict_logits",
    "predict_masks", "rankme", "reconstruction_sheet", "resize_logits", "segmentation_sheet",
]  # fmt: skip
