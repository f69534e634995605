"""Images augmented on the device: the same pictures as albumentations gives, the same at each repetition."""

from __future__ import annotations

import math

import albumentations
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from segae.data.gpu import CropAndFlip, GPUImageDataset, MildChange, change_images
from segae.data.torch_datasets import CachedPairDataset
from segae.data.transforms import eval_transform
from segae.errors import SegaeError

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
ZERO, ONE = (0.0,) * 3, (1.0,) * 3
RAW = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)


def smooth_images(count: int = 3, size: int = 48) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(count, size, size, 3))
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in noise])
    return (128 + 90 * blurred / np.abs(blurred).max()).astype(np.uint8)


def masks_of(count: int = 3, size: int = 48) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, (count, size, size), dtype=np.uint8)


def as_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_unchanged_images_equal_the_cpu_path(device: str) -> None:
    images, masks = smooth_images(), masks_of()
    other = CachedPairDataset(images, masks, eval_transform(48, MEAN, STD), seed=0)
    data = GPUImageDataset(images, masks, MildChange(), MEAN, STD, device=torch.device(device), repeats=4)
    clean = data.unchanged()
    assert (len(data), len(clean), clean.device.type) == (12, 3, device)
    found, labels = clean.__getitems__([2, 0])
    for place, index in enumerate([2, 0]):
        torch.testing.assert_close(found[place].cpu(), other[index][0], atol=1e-5, rtol=0)
        assert torch.equal(labels[place].cpu(), other[index][1])
    assert not torch.equal(data.__getitems__([2, 0])[0], found)


@pytest.mark.parametrize(("angle", "scale", "shift"), [(10.0, 1.0, 0.0), (0.0, 1.1, 0.06), (-7, 0.9, 0.05)])
def test_an_affine_change_equals_albumentations(angle: float, scale: float, shift: float) -> None:
    image = smooth_images(1)
    pixels = round(shift * 48)
    turn, offset = math.radians(angle), torch.full((2, 1), 2 * pixels / 48)
    back = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    changes = torch.cat([back, -back @ offset], dim=1).flatten()[None]
    ours = change_images(as_batch(image), changes, *RAW)[0]
    # its positive angles turn the other way; both draw from an interval around 0
    border = cv2.BORDER_REFLECT
    library = albumentations.Affine(scale=scale, rotate=-angle, translate_px=pixels, border_mode=border, p=1.0)
    theirs = torch.from_numpy(library(image=image[0])["image"]).permute(2, 0, 1).float()
    inside = slice(8, -8)
    assert (ours - theirs)[:, inside, inside].abs().mean() < 1.0
    assert (as_batch(image)[0] - theirs)[:, inside, inside].abs().mean() > 1.5  # the change is one that shows


def test_mask_and_image_stay_in_step() -> None:
    masks = np.kron(masks_of(4, 6), np.ones((1, 8, 8), dtype=np.uint8))
    images = np.repeat(masks[..., None] * 80, 3, axis=3)
    moved = MildChange(probability=1, contrast=0, brightness=0)
    found, labels = GPUImageDataset(images, masks, moved, ZERO, ONE, device=CPU).__getitems__(range(4))
    level = found[:, 0] * 255 / 80
    certain = (level - level.round()).abs() < 1e-3  # not between two areas
    assert certain.float().mean() > 0.5
    assert (level.round() == labels)[certain].float().mean() > 0.97  # 0 and 2 mixed half and half look like 1


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    def batch(indices: list[int], *, seed: int = 0, epoch: int = 0) -> torch.Tensor:
        data = GPUImageDataset(smooth_images(), None, CropAndFlip(), MEAN, STD, device=CPU, seed=seed, repeats=2)
        data.set_epoch(epoch)
        return data.__getitems__(indices)[0]

    together = batch([0, 1, 2, 3])
    assert torch.equal(together[2], batch([2])[0])
    assert torch.equal(together[[3, 1]], batch([3, 1]))
    assert not torch.equal(together[0], together[3])  # the first image again, changed differently
    assert not torch.equal(together, batch([0, 1, 2, 3], seed=1))
    assert not torch.equal(together, batch([0, 1, 2, 3], epoch=1))
    data = GPUImageDataset(smooth_images(), None, CropAndFlip(), MEAN, STD, device=CPU, repeats=2)
    data.set_epoch(1)
    data.__getitems__([0])  # the numbers of epoch 1 are drawn; going back must draw those of epoch 0 again
    data.set_epoch(0)
    assert torch.equal(data.__getitems__([1])[0], together[[1]])


def test_the_numbers_drawn_are_those_of_version_0_1() -> None:
    expected = torch.tensor([[0.7684, 0, 0.0392, 0, 0.9737, -0.0190], [-0.8782, 0, -0.1137, 0, 0.9293, -0.0364]])
    torch.testing.assert_close(CropAndFlip()(2, torch.Generator().manual_seed(0)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_never_leaves_the_image(seed: int) -> None:
    matrix = CropAndFlip()(2000, torch.Generator().manual_seed(seed)).view(-1, 2, 3)
    for axis in (0, 1):
        assert (matrix[:, axis, axis].abs() + matrix[:, axis, 2].abs()).max() <= 1 + 1e-6
    assert (matrix[:, 0, 0] * matrix[:, 1, 1]).abs().min() >= 0.5 - 1e-6


def test_a_loader_asks_for_whole_batches_and_iteration_for_items() -> None:
    data = GPUImageDataset(smooth_images(5), masks_of(5), MildChange(), MEAN, STD, device=CPU)
    batches = list(DataLoader(data, batch_size=2, collate_fn=lambda batch: batch))
    shapes = [(tuple(images.shape), tuple(masks.shape)) for images, masks in batches]
    assert shapes == [((2, 3, 48, 48), (2, 48, 48))] * 2 + [((1, 3, 48, 48), (1, 48, 48))]
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert batches[0][1].dtype == torch.int64
    assert torch.equal(data[-1][0], data.__getitems__([4])[0][0])
    assert len(list(data)) == 5


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(SegaeError, match="repeats.*0"):
        GPUImageDataset(smooth_images(3), None, None, MEAN, STD, device=CPU, repeats=0)
    with pytest.raises(ValueError, match="masks"):
        GPUImageDataset(smooth_images(3), masks_of(2), None, MEAN, STD, device=CPU)
