"""Images that are augmented on the device: the same pictures as the other path gives, the same at each repetition."""

from __future__ import annotations

import math

import albumentations
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from segae.data.batch_transforms import Changes, CropAndFlip, MildChange, change_images, change_masks
from segae.data.batches import LabelledImages, UnlabelledImages
from segae.data.device_images import DeviceImages
from segae.data.transforms import eval_transform, pretrain_transform, train_transform
from segae.errors import SegaeError

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RAW_MEAN, RAW_STD = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)


def smooth_images(count: int = 3, size: int = 48) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(count, size, size, 3))
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in noise])
    return (128 + 90 * blurred / np.abs(blurred).max()).astype(np.uint8)


def masks_of(count: int = 3, size: int = 48) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, (count, size, size), dtype=np.uint8)


def as_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_without_a_transform_it_equals_the_other_path():
    images, masks = smooth_images(), masks_of()
    other = LabelledImages(images, masks, eval_transform(48, MEAN, STD), seed=0)
    image_bchw, mask_bhw = DeviceImages(images, masks, None, MEAN, STD, device=CPU).__getitems__([2, 0])
    for place, index in enumerate([2, 0]):
        torch.testing.assert_close(image_bchw[place], other[index][0], atol=1e-5, rtol=0)
        assert torch.equal(mask_bhw[place], other[index][1])


def test_a_flip_mirrors_image_and_mask_exactly():
    images, masks = smooth_images(), masks_of()
    whole = CropAndFlip(scale=(1, 1), ratio=(1, 1), flip=1)
    changes = whole(3, torch.Generator().manual_seed(0))
    flipped = change_images(as_batch(images), changes, RAW_MEAN, RAW_STD)
    torch.testing.assert_close(flipped, as_batch(images[:, :, ::-1].copy()).float(), atol=1e-2, rtol=0)
    assert torch.equal(
        change_masks(torch.from_numpy(masks), changes), torch.from_numpy(masks[:, :, ::-1].copy()).long()
    )


def test_a_crop_equals_a_library_s_crop_and_resize():
    image = smooth_images(1)
    top, left, height, width, size = 6, 20, 36, 24, 48
    centre_x, centre_y = (2 * left + width) / size - 1, (2 * top + height) / size - 1
    matrix = torch.tensor([[[width / size, 0, centre_x], [0, height / size, centre_y]]])
    ours = change_images(as_batch(image), Changes(matrix), RAW_MEAN, RAW_STD)[0]
    crop = image[0, top : top + height, left : left + width]
    theirs = torch.from_numpy(cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)).permute(2, 0, 1)
    inside = slice(2, -2)  # at its edge a resized crop sees nothing beyond it, a resampled image does
    assert (ours - theirs)[:, inside, inside].abs().max() < 1.01


@pytest.mark.parametrize(
    ("angle", "scale", "shift"), [(10.0, 1.0, 0.0), (0.0, 1.1, 0.0), (0.0, 1.0, 0.06), (-7, 0.9, 0.05)]
)
def test_an_affine_change_equals_a_library_s(angle: float, scale: float, shift: float):
    image = smooth_images(1)
    pixels = round(shift * 48)
    turn, place = math.radians(angle), torch.full((2, 1), 2 * pixels / 48)
    back = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    changes = Changes(torch.cat([back, -back @ place], dim=1)[None])
    if angle == 0 and shift == 0:
        fixed = MildChange(0, 1, (scale, scale), translate=0, rotate=0, contrast=0, brightness=0)
        drawn = fixed(1, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn.matrix_n23, changes.matrix_n23)
    ours = change_images(as_batch(image), changes, RAW_MEAN, RAW_STD)[0]
    # its positive angles turn the other way; both draw from an interval around 0
    library = albumentations.Affine(
        scale=scale, rotate=-angle, translate_px=pixels, border_mode=cv2.BORDER_REFLECT, p=1.0
    )
    theirs = torch.from_numpy(library(image=image[0])["image"]).permute(2, 0, 1).float()
    inside = slice(8, -8)
    assert (ours - theirs)[:, inside, inside].abs().mean() < 1.0
    assert (as_batch(image)[0] - theirs)[:, inside, inside].abs().mean() > 1.5  # the change is one that shows


def test_mask_and_image_stay_in_step():
    masks = np.kron(masks_of(4, 6), np.ones((1, 8, 8), dtype=np.uint8))
    images = np.repeat(masks[..., None] * 80, 3, axis=3)
    dark = MildChange(probability=1, contrast=0, brightness=0)
    image_bchw, mask_bhw = DeviceImages(images, masks, dark, (0, 0, 0), (1, 1, 1), device=CPU).__getitems__(range(4))
    level_bhw = image_bchw[:, 0] * 255 / 80
    certain = (level_bhw - level_bhw.round()).abs() < 1e-3  # not between two areas
    agree = (level_bhw.round() == mask_bhw)[certain].float().mean()
    assert certain.float().mean() > 0.5
    assert agree > 0.97  # 0 and 2 mixed half and half look like 1


def test_what_happens_to_an_image_depends_on_seed_epoch_and_index_alone():
    def batch(indices: list[int], *, seed: int = 0, epoch: int = 0) -> torch.Tensor:
        data = DeviceImages(smooth_images(), None, CropAndFlip(), MEAN, STD, device=CPU, seed=seed, repeats=2)
        data.set_epoch(epoch)
        return data.__getitems__(indices)[0]

    together = batch([0, 1, 2, 3])
    assert torch.equal(together[2], batch([2])[0])
    assert torch.equal(together[[3, 1]], batch([3, 1]))
    assert not torch.equal(together[0], together[3])  # the first image again, augmented anew
    assert not torch.equal(together, batch([0, 1, 2, 3], seed=1))
    assert not torch.equal(together, batch([0, 1, 2, 3], epoch=1))
    data = DeviceImages(smooth_images(), None, CropAndFlip(), MEAN, STD, device=CPU, repeats=2)
    data.set_epoch(1)
    data.__getitems__([0])  # the numbers of epoch 1 are drawn; going back must draw those of epoch 0 again
    data.set_epoch(0)
    assert torch.equal(data.__getitems__([1])[0], together[[1]])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**62))
def test_a_crop_never_leaves_the_image(seed: int):
    matrix_n23 = CropAndFlip()(200, torch.Generator().manual_seed(seed)).matrix_n23
    for axis in (0, 1):
        reach_n = matrix_n23[:, axis, axis].abs() + matrix_n23[:, axis, 2].abs()
        assert reach_n.max() <= 1 + 1e-6
    area_n = (matrix_n23[:, 0, 0] * matrix_n23[:, 1, 1]).abs()
    assert area_n.min() >= 0.5 - 1e-6


def ramp(size: int = 48) -> np.ndarray:
    """Grey levels that say where a pixel was: columns in red, rows in green."""
    level = np.round(np.linspace(0, 255, size)).astype(np.uint8)
    red, green = np.meshgrid(level, level)
    return np.stack([red, green, np.full_like(red, 128)], axis=2)[None]


def test_crops_are_drawn_as_by_the_other_path():
    count = 600
    ours = DeviceImages(ramp(), None, CropAndFlip(), (0, 0, 0), (1, 1, 1), device=CPU, repeats=count)
    theirs = UnlabelledImages(ramp(), pretrain_transform(48, (0, 0, 0), (1, 1, 1)), seed=0, repeats=count)
    seen = [ours.__getitems__(range(count))[0], torch.stack([theirs[index] for index in range(count)])]
    for of in (
        lambda x: (x[:, 0, 24, -1] - x[:, 0, 24, 0]).abs(),
        lambda x: x[:, 1, 24, 24],
        lambda x: x[:, 2].mean((1, 2)),
    ):
        a, b = (of(images).double() for images in seen)
        error = math.sqrt((a.var() + b.var()) / count) + 1e-3
        assert abs(a.mean() - b.mean()) < 4 * error
        assert abs(a.std() - b.std()) < 4 * error
    mirrored = (seen[0][:, 0, 24, -1] < seen[0][:, 0, 24, 0]).float().mean()
    assert 0.4 < mirrored < 0.6


def test_light_is_drawn_as_by_the_other_path():
    count = 800
    grey = np.full((1, 16, 16, 3), 128, dtype=np.uint8)
    masks = np.zeros((1, 16, 16), dtype=np.uint8)
    ours = MildChange()(count, torch.Generator().manual_seed(0))
    batch = as_batch(grey).expand(count, -1, -1, -1)
    mine = change_images(batch, ours, RAW_MEAN, RAW_STD).mean((1, 2, 3)).double()
    data = LabelledImages(
        np.repeat(grey, count, 0), np.repeat(masks, count, 0), train_transform(16, (0, 0, 0), (1, 1, 1)), 0
    )
    other = torch.stack([data[index][0].mean() * 255 for index in range(count)]).double()
    error = math.sqrt((mine.var() + other.var()) / count)
    assert abs(mine.mean() - other.mean()) < 4 * error
    assert abs(mine.std() / other.std() - 1) < 0.15


def test_a_loader_asks_for_whole_batches():
    data = DeviceImages(smooth_images(5), masks_of(5), MildChange(), MEAN, STD, device=CPU)
    loader = DataLoader(data, batch_size=2, collate_fn=lambda batch: batch)
    shapes = [(tuple(image.shape), tuple(mask.shape)) for image, mask in loader]
    assert shapes == [((2, 3, 48, 48), (2, 48, 48))] * 2 + [((1, 3, 48, 48), (1, 48, 48))]
    image_bchw, mask_bhw = next(iter(loader))
    assert image_bchw.is_contiguous(memory_format=torch.channels_last)
    assert mask_bhw.dtype == torch.int64


def test_items_and_their_limits():
    data = DeviceImages(smooth_images(3), None, CropAndFlip(), MEAN, STD, device=CPU)
    assert torch.equal(data[-1][0], data.__getitems__([2])[0][0])
    with pytest.raises(IndexError):
        data[3]
    with pytest.raises(SegaeError, match="repeats is 0"):
        DeviceImages(smooth_images(3), None, None, MEAN, STD, device=CPU, repeats=0)
    with pytest.raises(ValueError, match="3 images and 2 masks"):
        DeviceImages(smooth_images(3), masks_of(2), None, MEAN, STD, device=CPU)


def test_the_unchanged_images_share_the_memory():
    data = DeviceImages(smooth_images(3), None, CropAndFlip(), MEAN, STD, device=CPU, repeats=4)
    clean = data.unchanged()
    assert (len(data), len(clean)) == (12, 3)
    expected = DeviceImages(smooth_images(3), None, None, MEAN, STD, device=CPU)
    assert torch.equal(clean.__getitems__([1, 2])[0], expected.__getitems__([1, 2])[0])
    assert not torch.equal(data.__getitems__([1])[0], clean.__getitems__([1])[0])
    assert clean._image_nhwc.data_ptr() == data._image_nhwc.data_ptr()


@pytest.mark.parametrize(("limit", "rows"), [(3 * 48 * 48 * 3 + 5, 3), (10, 1), (2**30, 7)])
def test_images_are_copied_to_the_device_in_parts(monkeypatch, limit: int, rows: int):
    class Mapped:
        """An array in a file, that notes how much of it is read at a time."""

        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape, self.read = array, array.shape, []

        def __len__(self) -> int:
            return len(self.array)

        def __getitem__(self, part: slice) -> np.ndarray:
            self.read.append(len(self.array[part]))
            return self.array[part]

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise AssertionError("all of it at once")

    monkeypatch.setattr("segae.data.device_images._UPLOAD_BYTES", limit)
    images, masks = smooth_images(7), masks_of(7)
    images.setflags(write=False)
    mapped, mapped_masks = Mapped(images), Mapped(masks)
    data = DeviceImages(mapped, mapped_masks, None, MEAN, STD, device=CPU)
    assert (sum(mapped.read), max(mapped.read)) == (7, rows)
    assert sum(mapped_masks.read) == 7
    assert torch.equal(data._image_nhwc, torch.from_numpy(images.copy()))
    assert torch.equal(data._mask_nhw, torch.from_numpy(masks))
