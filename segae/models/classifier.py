"""Classifiers: an encoder, a pooling and one fully connected layer; they know their classes and image size."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segae._io import check_range
from segae._notebook import ShownInNotebooks, list_names
from segae.data.image_io import as_image
from segae.image_format import ImageFormat, Size, resize_image
from segae.models.checkpoint import Info, PathLike, load_model, save_described
from segae.models.encoder import (
    Encoder,
    EncoderInfo,
    count_parameters,
    encoder_facts,
    evaluation_mode,
    require_image_size,
)
from segae.models.inference import pooled_features, predict_probabilities


@dataclass(frozen=True)
class ClassifierInfo(Info):
    """What a classifier is, stored in the header of its file; the fields mean what those of `SegmenterInfo` do."""

    encoder: EncoderInfo
    classes: tuple[str, ...]
    image_size: Size
    training: dict[str, Any] = field(default_factory=dict, hash=False)
    resize: str = "squash"

    @property
    def format(self) -> ImageFormat:
        """The images that it takes."""
        return replace(self.encoder.format, size=self.image_size, resize=self.resize)

    def build(self) -> "Classifier":
        """Build the classifier that this describes, with random weights."""
        return Classifier(self.encoder.build(), self)


class Classifier(ShownInNotebooks, nn.Module):
    """An encoder, the mean of its deepest map (of small encoders all values), and a fully connected layer."""

    def __init__(self, encoder: Encoder, info: ClassifierInfo) -> None:
        super().__init__()
        check_range("num_classes", len(info.classes), low=2, integer=True)
        require_image_size(info.image_size, encoder.output_stride)
        self.encoder, self.info, self.num_classes = encoder, info, len(info.classes)
        with evaluation_mode(encoder), torch.no_grad():
            black = next(encoder.parameters()).new_zeros(1, info.encoder.in_channels, *info.format.shape)
            self.head = nn.Linear(pooled_features(encoder, black).shape[1], self.num_classes)

    def _facts(self) -> dict[str, Any]:
        facts = {"encoder": self.info.encoder.architecture, "classes": list_names(self.info.classes)}
        facts |= {"parameters": count_parameters(self)} | encoder_facts(self.info.encoder)
        return facts | {"image size": self.info.image_size}

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (B, C, H, W) to logits (B, K)."""
        return self.head(pooled_features(self.encoder, images))

    def predict(self, images: Any, *, return_probabilities: bool = False, batch_size: int = 64) -> Any:
        """Name the class of an image, or of each in a list: files, arrays uint8 (H, W, 3) or PIL images.

        With ``return_probabilities`` softmax values instead, float32 (K,), or (N, K). The model stays on its device.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images], return_probabilities=return_probabilities)[0]
        form = self.info.format
        squares = np.array([resize_image(as_image(one, form), form) for one in images])
        found = predict_probabilities(self, squares, batch_size=batch_size)
        return found.numpy() if return_probabilities else [self.info.classes[best] for best in found.argmax(dim=1)]


def create_classifier(
    encoder: Encoder,
    *,
    num_classes: int | Sequence[str],
    image_size: Size | None = None,
    resize: str | None = None,
) -> Classifier:
    """Build a classifier on a copy of an encoder; its classes are a number, 2 or more, or names.

    Example:
        >>> model = create_classifier(make_encoder("test_resnet", 3), num_classes=["cat", "dog"], image_size=64)
        >>> model.predict(np.zeros((48, 80, 3), np.uint8)) in ("cat", "dog")
        True
    """
    classes = [f"class_{place}" for place in range(num_classes)] if isinstance(num_classes, int) else num_classes
    size, fitted = image_size or encoder.info.image_size, resize or encoder.info.resize
    info = ClassifierInfo(encoder.info, tuple(classes), size, resize=fitted)
    return Classifier(copy.deepcopy(encoder), info)


def save_classifier(model: Classifier, path: PathLike) -> Path:
    """Write a classifier with its info as `segae.models.save_encoder` does."""
    return save_described(path, "classifier", model.state_dict(), model.info)


def load_classifier(path: PathLike) -> Classifier:
    """Rebuild a classifier from its file alone, every tensor checked; errors as in `segae.models.load_encoder`."""
    return load_model(path, "classifier", ClassifierInfo)
