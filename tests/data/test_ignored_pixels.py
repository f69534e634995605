"""Pixels that do not count: recognized by their value or named, and left out of reading, training and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segae
from segae.data import SkippedFiles, cache_pairs, open_dataset, read_mask
from segae.data.image_io import read_pair
from segae.errors import DataError
from tests.fabricate import make_folder, make_pets

QUICK = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "device": "cpu"}


def ignore_some(root: Path, value: int = 255, share: float = 0.3) -> Path:
    """Give a share of the pixels of each mask another value."""
    generator = np.random.default_rng(0)
    for path in sorted((root / "masks").iterdir()):
        mask = np.array(Image.open(path))
        mask[generator.random(mask.shape) < share] = value
        Image.fromarray(mask).save(path)
    return root


@pytest.mark.parametrize(
    ("values", "classes", "expected", "ignored"),
    [
        ((0, 1, 2), (), (0, 1, 2), (255,)),
        ((1, 2, 3), (), (1, 2, 3), (255,)),
        ((0, 1), ("a", "b", "c", "d"), (0, 1, 2, 3), (255,)),  # classes that no image shows
        ((0,), (), (0, 255), ()),  # a binary mask
        ((0, 100), (), (0, 100, 255), ()),  # gray levels
    ],
)
def test_255_does_not_count_beside_the_values_of_the_classes(tmp_path, values, classes, expected, ignored):
    root = ignore_some(make_folder(tmp_path / "data", 4, 2, size=32, values=values, classes=classes))
    data = open_dataset(root)
    assert (data.mask_values, data.ignore_values) == (expected, ignored)
    pairs = data.splits["train"]
    cached = cache_pairs(pairs, 32, data.mask_values, SkippedFiles(), ignore_values=data.ignore_values)
    raw = np.stack([read_mask(pair.mask) for pair in pairs])
    indices = np.full(256, 255)
    indices[list(expected)] = range(len(expected))
    assert (cached.masks == indices[raw]).all()
    for pair, mask in zip(pairs, cached.masks, strict=True):
        decoded = read_pair(pair.image, pair.mask, 32, data.mask_values, ignore_values=data.ignore_values)[1]
        assert (decoded == mask).all()


def test_a_value_that_may_be_a_class_or_not_must_be_said(tmp_path):
    root = ignore_some(make_folder(tmp_path / "data", 4, 2, size=32, values=(0, 1), classes=("a", "b", "c")))
    with pytest.raises(DataError, match="255 may be c, or pixels that do not count. Set ignore to none or to 255"):
        open_dataset(root)
    assert open_dataset(root, ignore=["none"]).mask_values == (0, 1, 255)
    assert open_dataset(root, ignore=[255]).mask_values == (0, 1, 2)
    with pytest.raises(DataError, match="ignore must be numbers or classes of .*, a, b, c, got z"):
        open_dataset(root, ignore=["z", "255"])
    with pytest.raises(DataError, match="ignore must leave a class"):
        open_dataset(root, ignore=["a", "b", "c", "255"])


def test_a_class_that_is_ignored_is_none(tmp_path):
    root = make_pets(tmp_path / "pets", 3, 2)
    data = open_dataset(root, ignore=["border"])
    assert (data.classes, data.mask_values, data.ignore_values) == (("pet", "background"), (1, 2), (3,))
    assert open_dataset(root, ignore=["3"]).classes == data.classes
    merged = open_dataset(root, merge=["rest=background+border"], ignore=["rest"])
    assert (merged.classes, merged.ignore_values) == (("pet",), (2, 3))


@pytest.mark.parametrize("cache", ["disk", "gpu", "none"])
def test_what_ignored_pixels_hold_changes_nothing(tmp_path, cache):
    """Two data sets that differ below the ignored pixels only give the same model and the same scores, bit for bit."""
    models = []
    for value in (200, 201):
        root = ignore_some(make_folder(tmp_path / str(value), 6, 3, size=32, values=(0, 1, 2)), value)
        settings = {**QUICK, "lpft_head": True, "recalibrate": True, "ignore": [str(value)], "cache": cache}
        result = segae.finetune(root, out=tmp_path / f"run{value}", epochs=1, **settings)
        scores = segae.evaluate(result.path, root)
        models.append((result.model.state_dict(), scores.as_row()))
        truth = [read_mask(pair.mask) for pair in open_dataset(root, ignore=[value]).splits["test"]]
        assert scores.confusion.sum() == sum((mask != value).sum() for mask in truth)
        assert result.model.info.training["ignore"] == [str(value)]
    (first, one), (second, two) = models
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one == two


def test_a_model_of_all_classes_is_scored_without_one_of_them(tmp_path):
    root = make_pets(tmp_path / "pets", 6, 3, size=32)
    path = segae.finetune(root, out=tmp_path / "run", epochs=1, **QUICK).path
    for resolution in ("model", "original"):
        scores = segae.evaluate(path, root, ignore=["border"], resolution=resolution, out=tmp_path / resolution)
        assert scores.classes == ("pet", "background")
        assert not np.isnan(list(scores.as_row().values())).any()
        assert (tmp_path / resolution / "metrics.json").is_file()
    masks = [read_mask(pair.mask) for pair in open_dataset(root).splits["test"]]
    assert scores.confusion.sum() == sum((mask != 3).sum() for mask in masks)
    with pytest.raises(DataError, match="classes must be pet, background, border"):
        segae.evaluate(path, root, merge=["foreground=pet+border"])
