"""Image and mask augmentation on the CPU; the only module that imports albumentations.

Transforms take uint8 arrays, `image` (H, W, 3) and optionally `mask` (H, W), and return `image` as float32 tensor
(C, S, S), normalized to (x / 255 - mean) / std, and `mask` as uint8 tensor (S, S), resampled by nearest pixel. `size`
is the side S in pixels; `mean` and `std` are per channel, for values in [0, 1]; one channel makes the image gray.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import cv2

# albumentations asks a server for its latest version when it is imported, unless this is set before
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations
from albumentations.pytorch import ToTensorV2

_NEAREST = cv2.INTER_NEAREST_EXACT


def pretrain_transform(
    size: int, mean: Sequence[float], std: Sequence[float], *, crop: bool = True
) -> albumentations.Compose:
    """Random resized crop and horizontal flip, as in masked autoencoders (2111.06377).

    The crop has half to the whole of the area. With `crop=False` there is none, for methods that crop by themselves.
    """
    resized_crop = albumentations.RandomResizedCrop(
        (size, size), scale=(0.5, 1.0), interpolation=cv2.INTER_LINEAR, mask_interpolation=_NEAREST
    )
    return _compose([resized_crop if crop else _resize(size), albumentations.HorizontalFlip(p=0.5)], mean, std)


def train_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> albumentations.Compose:
    """Horizontal flip, mild affine change, mild brightness and contrast, with the mask in step.

    The border is reflected in image and mask, so that no undefined class appears at the edges.
    """
    affine = albumentations.Affine(
        scale=(0.9, 1.1),
        translate_percent=(-0.06, 0.06),
        rotate=(-10, 10),
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        border_mode=cv2.BORDER_REFLECT_101,
        p=0.5,
    )
    light = albumentations.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5)
    return _compose([_resize(size), albumentations.HorizontalFlip(p=0.5), affine, light], mean, std)


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> albumentations.Compose:
    """Resize and normalize; nothing random."""
    return _compose([_resize(size)], mean, std)


def _resize(size: int) -> albumentations.BasicTransform:
    return albumentations.Resize(size, size, interpolation=cv2.INTER_AREA, mask_interpolation=_NEAREST)


def _compose(
    steps: list[albumentations.BasicTransform], mean: Sequence[float], std: Sequence[float]
) -> albumentations.Compose:
    if len(mean) == 1:
        steps = [*steps, albumentations.ToGray(num_output_channels=1, p=1.0)]
    normalize = albumentations.Normalize(tuple(mean), tuple(std), max_pixel_value=255.0)
    return albumentations.Compose([*steps, normalize, ToTensorV2()])
