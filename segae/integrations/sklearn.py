"""A frozen encoder as a scikit-learn transformer: images in, feature vectors out."""

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from segae.applications import collect_features, open_encoder, require_layer
from segae.data import SkippedFiles
from segae.errors import DataError, SegaeError
from segae.models import Encoder
from segae.training import choose_device


class EncoderFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn images into the features of a frozen encoder, for any classifier or pipeline of scikit-learn.

    Args:
        encoder: as in ``extract_features``: an encoder, a file, a published name, ``imagenet`` or ``timm:NAME``.
        layer: which feature map, 1 (stride 2) to 5 (stride 32), or -1 for the deepest.
        pool: avg, max or gem.
        image_size: side in pixels to which images are resized; None takes the encoder's.
        batch_size: images per forward pass.
        device: auto, cpu, cuda, cuda:1 or mps.

    Example:
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> from sklearn.pipeline import make_pipeline
        >>> model = make_pipeline(EncoderFeatures("pets_pseudo_masks"), KNeighborsClassifier())
        >>> model.fit(train_files, breeds).score(test_files, test_breeds)  # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Encoder | str | os.PathLike[str] = "imagenet",
        *,
        layer: int = -1,
        pool: str = "avg",
        image_size: int | None = None,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        self.encoder, self.layer, self.pool = encoder, layer, pool
        self.image_size, self.batch_size, self.device = image_size, batch_size, device

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 - scikit-learn's names
        """Load the encoder; nothing is trained, and ``X`` and ``y`` are not used."""
        if self.pool == "none":
            raise SegaeError("pool must be avg, max or gem, got none")
        self.encoder_ = open_encoder(self.encoder)
        self._n_features_out = require_layer(self.encoder_, self.layer)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Compute features (N, C) of N image files, or of arrays uint8 (H, W, 3).

        DataError: a file cannot be read; leaving it out would shift the rows against the labels.
        """
        check_is_fitted(self)
        images: Any = [image if isinstance(image, np.ndarray) else Path(image) for image in X]
        lost, how = SkippedFiles(), self.get_params(deep=False)
        how.update(encoder=self.encoder_, device=choose_device(self.device))
        found = collect_features(images=images, skipped=lost, **how)
        if len(lost):
            path, reason = lost.files[0]
            raise DataError(f"X must hold images that can be read, got {path} ({reason}) and {len(lost) - 1} more")
        return found.values

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.no_validation = True  # images are checked when they are read
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags
