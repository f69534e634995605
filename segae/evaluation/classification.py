"""Score a classifier on arrays of images: accuracy, also of each class, and the confusion matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from segae._notebook import ShownInNotebooks
from segae.evaluation.metrics import confusion_matrix
from segae.models import Classifier
from segae.models.inference import predict_probabilities


@dataclass(frozen=True, eq=False, repr=False)
class ClassificationScores(ShownInNotebooks):
    """Image counts ``confusion`` (K, K), rows truth, columns prediction, of ``classes``; ``per_image`` has the rows."""

    classes: tuple[str, ...]
    confusion: np.ndarray
    per_image: pd.DataFrame

    def _facts(self) -> dict[str, Any]:
        return {name: f"{value:.3f}" for name, value in self.as_row().items()} | {"images": len(self.per_image)}

    def as_row(self) -> dict[str, float]:
        """Return ``accuracy``, and ``accuracy_<class>`` of each class, NaN where it has no image."""
        shares = pd.Series(self.confusion.diagonal(), self.classes) / self.confusion.sum(axis=1)
        accuracy = float(self.confusion.trace() / self.confusion.sum())
        return {"accuracy": accuracy, **shares.add_prefix("accuracy_").to_dict()}


def evaluate_classifier(
    model: Classifier, images: np.ndarray, labels: np.ndarray, *, names: Any = None, **how: Any
) -> ClassificationScores:
    """Score a classifier on images uint8 (N, S, S, 3) with class indices (N,); ``how`` is as in `predict_logits`."""
    found = predict_probabilities(model, images, **how).max(dim=1)
    confusion = confusion_matrix(found.indices, torch.from_numpy(labels), model.num_classes).numpy()
    rows = pd.DataFrame({"name": names or "", "truth": labels, "class": found.indices, "probability": found.values})
    rows[["truth", "class"]] = np.array(model.info.classes)[rows[["truth", "class"]]]
    return ClassificationScores(model.info.classes, confusion, rows)
