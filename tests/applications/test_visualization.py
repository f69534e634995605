"""``pca_colors``: positions with similar features get similar colors."""

from __future__ import annotations

import numpy as np
import pytest

import segae
from segae.applications import pca_colors


def test_equal_features_have_equal_colors_across_images() -> None:
    generator = np.random.default_rng(0)
    kinds = generator.normal(0, 1, (4, 16)).astype(np.float32)
    places = generator.integers(0, 4, (3, 8, 6))
    maps = (kinds[places] + generator.normal(0, 0.01, (3, 8, 6, 16))).transpose(0, 3, 1, 2).astype(np.float16)
    pictures = pca_colors(maps)
    assert pictures.shape == (3, 8, 6, 3)
    assert pictures.dtype == np.uint8
    colors = np.array([pictures[places == kind].mean(axis=0) for kind in range(4)])
    assert max(pictures[places == kind].std(axis=0).max() for kind in range(4)) < 5
    assert min(np.abs(one - other).max() for n, one in enumerate(colors) for other in colors[:n]) > 40


@pytest.mark.parametrize("shape", [(3, 16), (3, 2, 8, 8), (0, 16, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(segae.SegaeError, match="maps must be"):
        pca_colors(np.zeros(shape, np.float32))
