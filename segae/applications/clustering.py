"""Group images by their features, and reduce features to two numbers for a map."""

import lazy_loader
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from segae._io import check_range, require_choice, require_package
from segae.applications.selection import unit_vectors
from segae.errors import SegaeError

umap = lazy_loader.load("umap")  # an extra

_COMPONENTS = 50  # principal ones, before neighbors are compared: for speed
_FEWEST = 5  # images, in a cluster that HDBSCAN finds


def cluster(features: NDArray[np.floating], *, k: int | None = None, seed: int = 0) -> NDArray[np.intp]:
    """Return the cluster, from 0 on, of each row of features (N, C): by k-means, without ``k`` by HDBSCAN.

    HDBSCAN (10.1007/978-3-642-37456-2_14) gives -1 to rows in none. Rows are centered and scaled to length 1.
    SegaeError: ``k`` is not between 1 and N, or features are not finite (N, C), N >= 5.

    Example:
        >>> cluster(np.eye(6)[[0, 0, 0, 1, 1, 1]], k=2).tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
        True
    """
    if k is None:
        return HDBSCAN(_FEWEST, copy=True).fit_predict(_components(features, _COMPONENTS, seed))
    check_range("k", k, low=1, high=len(features), integer=True)
    return KMeans(k, n_init=10, random_state=seed).fit_predict(_components(features, None, seed))


def project(features: NDArray[np.floating], *, how: str = "pca", seed: int = 0) -> NDArray[np.float32]:
    """Reduce features (N, C) to (N, 2): by ``pca``, ``tsne``, or ``umap`` (arXiv 1802.03426), which is an extra.

    SegaeError: another way, or features that are not finite (N, C), N >= 5.

    Example:
        >>> project(np.random.default_rng(0).normal(size=(20, 8)), how="tsne").shape
        (20, 2)
    """
    require_choice("how", how, ("pca", "tsne", "umap"))
    rows = _components(features, 2 if how == "pca" else _COMPONENTS, seed)
    if how == "tsne":
        return TSNE(perplexity=min(30, (len(rows) - 1) / 3), random_state=seed).fit_transform(rows)
    if how == "umap":
        require_package("umap", "map")
        return umap.UMAP(min(15, len(rows) - 1), n_jobs=1, init="pca", random_state=seed).fit_transform(rows)
    return rows


def _components(features: NDArray[np.floating], count: int | None, seed: int) -> NDArray[np.float32]:
    """Principal components of the unit vectors, at most ``count``; None keeps all of them."""
    if features.ndim != 2 or min(features.shape) < 2 or len(features) < _FEWEST or not np.isfinite(features).all():
        raise SegaeError(f"features must be finite (N, C), N >= {_FEWEST} and C >= 2, got {features.shape}")
    rows = unit_vectors(features, features.mean(axis=0, dtype=np.float64))
    return PCA(min(count or 10**9, *rows.shape), random_state=seed).fit_transform(rows)
