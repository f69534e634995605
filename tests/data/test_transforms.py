"""Image and mask move together, masks keep their classes, and values are normalized as documented."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from segae.data.transforms import eval_transform, pretrain_transform, train_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ZERO, ONE = (0.0,) * 3, (1.0,) * 3
SIZE = 64


def blobs() -> np.ndarray:
    """A mask of four regions, laid out one-sidedly, so that a flip shows."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[(rows - 20) ** 2 + (columns - 18) ** 2 < 150] = 1
    mask[(rows > 40) & (columns > 10) & (columns < 38)] = 2
    mask[(rows < 30) & (columns > 48)] = 3
    return mask


@pytest.mark.parametrize("make", [pretrain_transform, train_transform, eval_transform])
def test_results_are_normalized_float_tensors(make: Callable) -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    result = make(SIZE, MEAN, STD)(image=image, mask=blobs())
    assert (result["image"].shape, result["image"].dtype) == ((3, SIZE, SIZE), torch.float32)
    assert result["mask"].shape == (SIZE, SIZE)
    if make is eval_transform:
        assert np.allclose(result["image"].permute(1, 2, 0), (image / 255 - MEAN) / STD, atol=1e-5)
        assert make(SIZE, MEAN, STD)(image=image[:40])["image"].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("make", [pretrain_transform, train_transform])
def test_image_and_mask_stay_in_step(make: Callable) -> None:
    mask = blobs()
    image = np.repeat(mask[..., None] * 60 + 30, 3, 2)
    transform, changed = make(SIZE, ZERO, ONE), 0
    for seed in range(100):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = transform(image=image, mask=mask)
        gray, moved = result["image"][0], result["mask"]
        assert set(moved.unique().tolist()) <= {0, 1, 2, 3}
        # brightness and contrast keep the order of the grays, so each class keeps a gray of its own
        levels = [gray[moved == value].median() for value in moved.unique()]
        assert all(low < high for low, high in pairwise(levels))
        nearest = torch.stack([(gray - level).abs() for level in levels]).argmin(0)
        agreement = (moved.unique()[nearest] == moved).float().mean()
        assert agreement > 0.93  # the rest are interpolated edge pixels; unflipped masks reach 0.6
        changed += not np.array_equal(moved, mask)
    assert changed > 40


def test_pretraining_crops_half_to_all_of_the_area_or_nothing() -> None:
    ramp = np.repeat(np.tile(np.arange(SIZE, dtype=np.uint8) * 4, (SIZE, 1))[..., None], 3, 2)
    spans: dict[bool, list[float]] = {True: [], False: []}
    for crop, found in spans.items():
        transform = pretrain_transform(SIZE, ZERO, ONE, crop=crop)
        for seed in range(60):
            transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
            image = transform(image=ramp)["image"]
            found.append(float(image.max() - image.min()) * 255 / (4 * (SIZE - 1)))
    assert 0.55 < min(spans[True]) < 0.8
    assert max(spans[True]) > 0.95
    assert min(spans[False]) > 0.99


@pytest.mark.slow
def test_importing_asks_no_server() -> None:
    code = (
        "import urllib.request\n"
        "def refuse(*args, **options): raise SystemExit('a server was asked')\n"
        "urllib.request.urlopen = urllib.request.OpenerDirector.open = refuse\n"
        "import segae.data.transforms\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
