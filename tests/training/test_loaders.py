"""Epochs of a given number of images, by every data path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segae.data.batch_transforms import MildChange
from segae.data.batches import LabelledImages
from segae.data.dataset import Pair
from segae.data.device_images import DeviceImages
from segae.data.live import LivePairs
from segae.data.transforms import train_transform
from segae.errors import SegaeError
from segae.training.loaders import make_loaders

CPU = torch.device("cpu")
SIZE, IMAGES = 32, 3
LOOK = (SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Every mask is all of one class, its image's number, and so tells which image a changed one was."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGES, 4, 4, 3), np.uint8)
    masks = np.broadcast_to(np.arange(IMAGES, dtype=np.uint8)[:, None, None], (IMAGES, SIZE, SIZE)).copy()
    return np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8)), masks


def labelled(path: str, folder: Path, repeats: int) -> LabelledImages | LivePairs | DeviceImages:
    images, masks = pictures()
    if path == "cache":
        return LabelledImages(images, masks, train_transform(*LOOK), 0, repeats)
    if path == "device":
        return DeviceImages(images, masks, MildChange(), *LOOK[1:], device=CPU, repeats=repeats)
    pairs = []
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        pairs.append(Pair(str(index), folder / f"{index}.png", folder / f"{index}-mask.png"))
        Image.fromarray(image).save(pairs[-1].image)
        Image.fromarray(mask).save(pairs[-1].mask)
    return LivePairs(pairs, SIZE, range(IMAGES), train_transform(*LOOK), 0, repeats)


@pytest.mark.parametrize("path", ["cache", "device", "live"])
def test_an_image_that_comes_again_comes_changed(tmp_path, path):
    items = labelled(path, tmp_path, repeats=4)
    assert (len(items), items.distinct) == (12, 3)
    loader = make_loaders(items, None, batch_size=4, device=CPU, epoch_images=11).train
    image_nchw, mask_nhw = (torch.cat(part) for part in zip(*loader, strict=True))
    assert len(image_nchw) == 11
    which = mask_nhw[:, SIZE // 2, SIZE // 2]
    assert sorted(torch.bincount(which, minlength=IMAGES).tolist()) == [3, 4, 4]
    for image in range(IMAGES):
        mine = image_nchw[which == image]
        different = {other.numpy().tobytes() for other in mine}
        assert len(different) == len(mine), "the same picture came twice"


def test_the_first_turn_is_the_epoch_as_it_was(tmp_path):
    few, many = labelled("cache", tmp_path, 1), labelled("cache", tmp_path, 2)
    plain = make_loaders(few, None, batch_size=3, device=CPU, seed=4).train
    twice = make_loaders(many, None, batch_size=3, device=CPU, seed=4, epoch_images=6).train
    for one, other in zip(next(iter(plain)), next(iter(twice)), strict=True):
        assert torch.equal(one, other)
    assert len(plain) * 2 == len(twice) == 2


def test_validation_images_come_once(tmp_path):
    valid = labelled("cache", tmp_path, 1)
    loaders = make_loaders(labelled("cache", tmp_path, 3), valid, batch_size=4, device=CPU, epoch_images=9)
    assert sum(len(mask) for _, mask in loaders.valid) == 3
    assert sum(len(mask) for _, mask in loaders.train) == 9 - 1  # a batch of one is left out


def test_too_few_repeats_are_refused(tmp_path):
    with pytest.raises(SegaeError, match="to have 10 images.*only 9 items, of 3 images.*repeats=4"):
        make_loaders(labelled("cache", tmp_path, 3), None, batch_size=4, device=CPU, epoch_images=10)
    with pytest.raises(SegaeError, match="repeats is 0"):
        labelled("live", tmp_path, 0)
