"""Image and mask move together; masks keep their classes; values are normalised as announced."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from segae.data.transforms import eval_transform, pretrain_transform, train_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 64


def blobs() -> np.ndarray:
    """A mask of four smooth regions, the classes 0 to 3, laid out one-sidedly, so that a flip shows."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[(rows - 20) ** 2 + (columns - 18) ** 2 < 150] = 1
    mask[(rows > 40) & (columns > 10) & (columns < 38)] = 2
    mask[(rows < 30) & (columns > 48)] = 3
    return mask


@pytest.mark.parametrize("make", [pretrain_transform, train_transform, eval_transform])
def test_results_are_normalised_float_tensors(make: object) -> None:
    image = np.zeros((SIZE, SIZE, 3), np.uint8) + np.uint8([10, 100, 200])
    result = make(SIZE, MEAN, STD)(image=image, mask=blobs())  # type: ignore[operator]
    assert result["image"].shape == (3, SIZE, SIZE)
    assert result["image"].dtype == torch.float32
    assert result["mask"].shape == (SIZE, SIZE)
    if make is eval_transform:
        expected = (torch.tensor([10.0, 100, 200]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        assert torch.allclose(result["image"].mean((1, 2)), expected, atol=1e-5)


def test_evaluation_is_not_random_and_resizes_other_sizes() -> None:
    transform = eval_transform(SIZE, MEAN, STD)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    expected = (image / 255 - MEAN) / STD
    for _ in range(5):
        assert np.allclose(transform(image=image)["image"].permute(1, 2, 0), expected, atol=1e-5)
    assert transform(image=image[:40])["image"].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("make", [pretrain_transform, train_transform])
def test_image_and_mask_stay_in_step(make: object) -> None:
    mask = blobs()
    image = np.repeat(mask[..., None] * 60 + 30, 3, 2)
    transform = make(SIZE, (0.0,) * 3, (1.0,) * 3)  # type: ignore[operator]
    changed = 0
    for seed in range(200):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = transform(image=image, mask=mask)
        assert set(result["mask"].unique().tolist()) <= {0, 1, 2, 3}
        # brightness and contrast keep the order of the greys, so each class keeps a grey of its own
        grey, moved = result["image"][0], result["mask"]
        levels = [grey[moved == value].median() for value in moved.unique()]
        assert all(low < high for low, high in pairwise(levels))
        nearest = torch.stack([(grey - level).abs() for level in levels]).argmin(0)
        agreement = (moved.unique()[nearest] == moved).float().mean()
        assert agreement > 0.93  # the rest are interpolated edge pixels; unflipped masks reach 0.6
        changed += not np.array_equal(moved, mask)
    assert changed > 80


def test_training_shows_each_change_and_stays_mild() -> None:
    mask = blobs()
    transform = train_transform(SIZE, MEAN, STD)
    overlaps = []
    for seed in range(100):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        moved = transform(image=np.zeros((SIZE, SIZE, 3), np.uint8), mask=mask)["mask"].numpy()
        overlaps.append(max((moved == mask).mean(), (moved == mask[:, ::-1]).mean()))
    assert min(overlaps) > 0.6
    assert 0.25 < np.mean(np.array(overlaps) < 1) < 0.75


def test_pretraining_crops_half_to_all() -> None:
    transform = pretrain_transform(SIZE, (0.0,) * 3, (1.0,) * 3)
    ramp = np.repeat(np.tile(np.arange(SIZE, dtype=np.uint8) * 4, (SIZE, 1))[..., None], 3, 2)
    spans = []
    for seed in range(100):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        image = transform(image=ramp)["image"]
        spans.append(float(image.max() - image.min()) * 255 / (4 * (SIZE - 1)))
    assert 0.55 < min(spans) < 0.8
    assert max(spans) > 0.95


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
