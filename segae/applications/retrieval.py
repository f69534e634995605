"""Find images like a query image, by the cosine of their features."""

from pathlib import Path
from typing import Any, Self

import lazy_loader
import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from segae._io import check_range, require_package
from segae.applications.features import Features, collect_features, list_images, open_encoder
from segae.applications.selection import unit_vectors
from segae.errors import SegaeError
from segae.models.checkpoint import PathLike

faiss = lazy_loader.load("faiss")  # an extra
_LARGE = 100_000  # images, above which faiss is needed


class ImageIndex:
    """Features (N, C) of images, searched with those of queries from the same encoder; above 100,000 with faiss.

    The mean of all features is subtracted first. ``**how`` are settings as in ``compute_features``.

    Example:
        >>> index = ImageIndex.build("photos", "imagenet")  # doctest: +SKIP
        >>> index.search("cat.jpg", k=3)["image"]  # doctest: +SKIP
    """

    def __init__(self, features: Features, encoder: Any, **how: Any) -> None:
        self.features, self.encoder, self._how = features, open_encoder(encoder), how
        self._mean = np.asarray(features.values).mean(axis=0, dtype=np.float64)
        self._vectors = unit_vectors(features.values, self._mean)

    @classmethod
    def build(cls, images: Any, encoder: Any = "imagenet", **how: Any) -> Self:
        """Compute the features of images: files, folders or arrays uint8 (H, W, 3)."""
        opened = open_encoder(encoder)
        return cls(collect_features(opened, list_images(images), **how), opened, **how)

    def save(self, path: PathLike) -> Path:
        """Write the features and names, as ``segae features`` does."""
        return self.features.save(path)

    @classmethod
    def load(cls, path: PathLike, encoder: Any, **how: Any) -> Self:
        """Read what ``save`` or ``segae features`` wrote with this encoder."""
        return cls(Features.load(path), encoder, **how)

    def search(self, query: Any, k: int = 10) -> pd.DataFrame:
        """Find the k nearest images of each query image, of one or several: query, rank, image, distance.

        The distance is one minus the cosine, from 0 to 2. SegaeError: ``k`` is not between 1 and the number of images,
        no query can be read, or the encoder is not that of the index.
        """
        check_range("k", k, low=1, high=len(self.features), integer=True)
        found = collect_features(self.encoder, list_images(query), **self._how)
        if found.values.shape[1:] != self._mean.shape:
            raise SegaeError(f"encoder must give the {self._mean.shape} of the index, got {found.values.shape[1:]}")
        asked = unit_vectors(found.values, self._mean)
        if len(self.features) > _LARGE:
            require_package("faiss", "search")
            cosines, places = faiss.knn(asked, self._vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
            distances = 1 - cosines
        else:
            distances, places = NearestNeighbors(n_neighbors=k, metric="cosine").fit(self._vectors).kneighbors(asked)
        rows = pd.DataFrame({"query": np.repeat(found.names, k), "rank": np.tile(np.arange(1, k + 1), len(found))})
        return rows.assign(image=np.array(self.features.names)[places.ravel()], distance=distances.ravel())
