"""Which images to label next: those with features like many others, and unlike those of labeled images."""

import numpy as np
from numpy.typing import NDArray

from segae._io import check_range
from segae.errors import SegaeError

_REFERENCES = 4096  # pool images that are to be covered; more are drawn from, which keeps 100,000 images at 2 GB
_ROWS = 4096


def select_images(
    pool: NDArray[np.floating],
    labeled: NDArray[np.floating] | None = None,
    *,
    count: int,
    uncertainty: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> NDArray[np.intp]:
    """Choose pool images that cover the pool best, greedily: facility location (arXiv 1407.5144).

    The coverage of an image is its largest cosine similarity, above 0, to a labeled or chosen image, after the mean of
    the pool is subtracted. Each step takes the image that adds most to the sum. Unlike a choice of the most distant
    images it is not drawn to outliers. Returned are places in the pool, the best first. SegaeError: shapes that do not
    fit, or a count out of its range.

    Args:
        pool: features (N, C).
        labeled: features (M, C) of images that have a mask.
        count: how many to choose, 1 to N.
        uncertainty: (N,), at least 0: how much the coverage of each pool image counts.
        seed: of the draw where N is over 4,096.
    """
    check_range("count", count, low=1, high=len(pool), integer=True)
    if labeled is not None and labeled.shape[1:] != pool.shape[1:]:
        raise SegaeError(f"labeled must have features of {pool.shape[1:]} numbers like pool, got {labeled.shape[1:]}")
    if uncertainty is not None and (uncertainty.shape != (len(pool),) or not (uncertainty >= 0).all()):
        raise SegaeError(f"uncertainty must be {len(pool)} numbers of at least 0, got {uncertainty.shape}")
    mean = np.asarray(pool).mean(axis=0, dtype=np.float64)
    vectors, known = (unit_vectors(part, mean) for part in (pool, pool[:0] if labeled is None else labeled))
    drawn = np.random.default_rng(seed).permutation(len(pool))[:_REFERENCES]
    weight = np.ones(len(drawn), np.float32) if uncertainty is None else uncertainty[drawn].astype(np.float32)
    similar, covered = vectors @ vectors[drawn].T, np.zeros(len(drawn), np.float32)
    for start in range(0, len(known), _ROWS):
        np.maximum(covered, (known[start : start + _ROWS] @ vectors[drawn].T).max(axis=0), out=covered)
    chosen: list[int] = []
    for _ in range(count):
        blocks = (similar[start : start + _ROWS] for start in range(0, len(similar), _ROWS))
        gain = np.concatenate([np.maximum(block - covered, 0) @ weight for block in blocks])
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        np.maximum(covered, similar[chosen[-1]], out=covered)
    return np.array(chosen)


def unit_vectors(features: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.float32]:
    """Subtract the mean and bring each row to length 1."""
    centered = features.astype(np.float32) - mean.astype(np.float32)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
