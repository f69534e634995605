"""Pictures of what an encoder sees: dense features in three colors."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from segae.errors import SegaeError

_POSITIONS = 20_000  # that the components are fitted to
_RANGE = (1, 99)  # percentiles that become black and full color


def pca_colors(maps: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Show dense features (N, C, H, W) as pictures (N, H, W, 3): the first three principal components as RGB.

    The components are those of all N images together, so equal colors mean similar features across images.
    SegaeError: no dense features of at least 3 channels.

    Example:
        >>> features = extract_features("photos", layer=4, pool="none")  # doctest: +SKIP
        >>> pictures = pca_colors(features.values)  # doctest: +SKIP
    """
    if maps.ndim != 4 or maps.shape[1] < 3 or maps[:, 0].size < 3:
        raise SegaeError(f"maps must be dense features (N, C, H, W) with C >= 3, got {maps.shape}")
    count, channels, height, width = maps.shape
    every = -(-count * height * width // _POSITIONS)
    sample = np.concatenate([one.reshape(channels, -1).T[::every] for one in maps]).astype(np.float32)
    fitted = PCA(3).fit(sample)
    low, high = np.percentile(fitted.transform(sample), _RANGE, axis=0)
    pictures = np.empty((count, height * width, 3), np.uint8)
    for picture, one in zip(pictures, maps, strict=True):
        colors = (fitted.transform(one.reshape(channels, -1).T.astype(np.float32)) - low) / np.maximum(high - low, 1e-9)
        picture[:] = (colors.clip(0, 1) * 255).round()
    return pictures.reshape(count, height, width, 3)
