"""Augmentation of images that are no squares of 8-bit RGB: by albumentations, by torchvision, and on the GPU's way."""

from typing import Any

import albumentations
import numpy as np
import pytest
import torch

from segae import data
from segae.data import torchvision_transforms
from segae.data.augmentation import FINETUNING_CHANGES
from segae.data.gpu import MildChange
from segae.errors import SegaeError
from segae.image_format import ImageFormat

FORMATS = {
    "wide RGB": ImageFormat((32, 64)),
    "five channels": ImageFormat((64, 32), 5),
    "16-bit gray": ImageFormat(32, 1, ((0.0, 1.0),)),
    "16-bit RGB": ImageFormat((32, 64), 3, ((0.0, 1.0),) * 3),
    "16-bit in five": ImageFormat((32, 64), 5, ((0.0, 1.0),) * 5),
}
PATHS = ("albumentations", "torchvision", "device")


def draw(path: str, form: ImageFormat, augment: str, image: np.ndarray, mask: np.ndarray, count: int) -> Any:
    """Many augmentations of one image, float32 (N, C, H, W), with their masks."""
    look = [0.5] * form.channels, [0.25] * form.channels
    if path == "device":
        change = FINETUNING_CHANGES[augment]
        kept = data.GPUImageDataset(image[None], mask[None], change, *look, device=torch.device("cpu"), repeats=count)
        return kept.__getitems__(range(count))
    make = data.train_transform if path == "albumentations" else torchvision_transforms.train_transform
    drawn = data.CachedPairDataset(image[None], mask[None], make(form, *look, augment=augment), 0, count)
    images, masks = zip(*drawn, strict=True)
    return torch.stack(images), torch.stack(masks)


def bright(form: ImageFormat, value: float) -> np.ndarray:
    """An image of one value in [0, 1]."""
    return np.full((*form.shape, form.stored_channels), value * np.iinfo(form.dtype).max).round().astype(form.dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_change_keeps_shape_and_range(kind: str, path: str) -> None:
    form = FORMATS[kind]
    image, mask = bright(form, 0.6), np.ones(form.shape, np.uint8)
    for augment in FINETUNING_CHANGES:
        images, masks = draw(path, form, augment, image, mask, 12)
        assert images.shape == (12, form.channels, *form.shape)
        assert masks.shape == (12, *form.shape)
        values = images * 0.25 + 0.5
        assert values.min() >= -1e-4
        assert values.max() <= 1.0001
        if augment in ("none", "light"):
            assert torch.allclose(values, torch.tensor(0.6), atol=0.003)
        else:  # the brightness changes, and not by the factor 255 between the two scales
            level = values.mean(dim=(1, 2, 3))
            assert level.std() > 0.02
            assert 0.3 < level.mean() < 0.9
    holes = masks == data.IGNORE_INDEX  # of the last, strong one
    assert holes.any()
    assert images.movedim(1, -1)[holes].abs().max() < 0.01  # the mean


@pytest.mark.parametrize("path", PATHS)
def test_angles_are_those_of_pixels_where_sides_differ(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = MildChange(flip=0, probability=1, scale=(1, 1), translate=0, rotate=30, contrast=0, brightness=0)
    monkeypatch.setitem(FINETUNING_CHANGES, "default", turn)
    form = ImageFormat((64, 128))
    image = bright(form, 0)
    rows, columns = np.mgrid[:64, :128]
    inside = (np.abs(rows - 31.5) < 2) & (np.abs(columns - 63.5) < 20)  # a bar of 40 x 4 pixels
    image[inside] = 255
    turned, _ = draw(path, form, "default", image, np.zeros(form.shape, np.uint8), 30)
    lengths = []
    for picture in turned[:, 0]:
        weight = (picture * 0.25 + 0.5).numpy()
        y, x = ((weight * place).sum() / weight.sum() for place in (rows, columns))
        spread = (weight * ((rows - y) ** 2 + (columns - x) ** 2)).sum() / weight.sum()
        lengths.append(float(np.sqrt(12 * spread)))
    assert np.ptp(lengths) < 2  # a shear would make it longer at one angle than at another


def test_random_crops_are_cut_by_every_augmentation() -> None:
    form = ImageFormat((16, 32), resize="crop")
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    mask = (image[..., 0] > 127).astype(np.uint8)
    look = (0.5,) * 3, (0.25,) * 3
    own = albumentations.Compose([albumentations.VerticalFlip(p=0.5)])
    for augment in ("light", "default", "strong", own):
        made = [data.train_transform(form, *look, augment=augment, random_crop=True)]
        made += [data.pretrain_transform(form, *look, crop=crop, augment=augment, random_crop=True) for crop in (0, 1)]
        if isinstance(augment, str):
            made.append(torchvision_transforms.train_transform(form, *look, augment=augment, random_crop=True))
            made.append(torchvision_transforms.pretrain_transform(form, *look, augment=augment, random_crop=True))
        for transform in made:
            drawn = [*data.CachedPairDataset(image[None], mask[None], transform, 0, 6)]
            assert {tuple(one.shape) for one, _ in drawn} == {(3, 16, 32)}
            assert {tuple(one.shape) for _, one in drawn} == {(16, 32)}
            assert len({one.numpy().tobytes() for one, _ in drawn}) > 3
    again = [*data.CachedPairDataset(image[None], mask[None], made[0], 0, 6)]
    first = [*data.CachedPairDataset(image[None], mask[None], made[0], 0, 6)]
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(first, again, strict=True))


def test_ones_own_gets_floats_of_16_bit_images_or_is_refused() -> None:
    form = FORMATS["16-bit in five"]
    look = (0.5,) * 5, (0.25,) * 5
    seen = []

    def halve(image: np.ndarray, **_: Any) -> np.ndarray:
        seen.append((image.dtype, image.shape))
        return image / np.float32(2)

    own = albumentations.Lambda(image=halve, name="halve")
    transform = data.train_transform(form, *look, augment=own)
    (drawn, _), *_ = data.CachedPairDataset(bright(form, 0.6)[None], np.zeros((1, *form.shape), np.uint8), transform, 0)
    assert set(seen) == {(np.dtype(np.float32), (32, 64, 5))}
    assert torch.allclose(drawn * 0.25 + 0.5, torch.tensor(0.3), atol=1e-4)
    for refused in (albumentations.CLAHE(p=1), albumentations.ToGray(p=1), albumentations.Resize(16, 16)):
        with pytest.raises(SegaeError, match="augment must"):
            data.train_transform(form, *look, augment=refused)
