"""Image and mask transforms; the only module that imports albumentations.

Every pipeline takes the cached uint8 arrays, `image` (S, S, 3) and, where there is one, `mask` (S, S), and
gives `image` as float32 tensor (3, S, S), normalised as (x / 255 - mean) / std, and `mask` as uint8 tensor
(S, S). Masks are only ever resampled by taking the nearest pixel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import cv2

# albumentations asks a server for its latest version when it is imported, unless told not to before
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations
from albumentations.pytorch import ToTensorV2

_NEAREST = cv2.INTER_NEAREST_EXACT


def pretrain_transform(
    size: int, mean: Sequence[float], std: Sequence[float], *, crop: bool = True
) -> albumentations.Compose:
    """Random crop of half to the whole area, resized back, and a horizontal flip.

    Crop and flip only, as in masked autoencoding: the corruption is the objective's business.

    Args:
        size: side S of the result in pixels.
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].
        crop: False leaves the image whole, for an objective that crops by itself.
    """
    cut = albumentations.RandomResizedCrop(
        (size, size), scale=(0.5, 1.0), interpolation=cv2.INTER_LINEAR, mask_interpolation=_NEAREST
    )
    return _compose([cut if crop else _resize(size), albumentations.HorizontalFlip(p=0.5)], mean, std)


def train_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> albumentations.Compose:
    """Horizontal flip, mild affine change, mild brightness and contrast; image and mask in step.

    The border is reflected in both, so that no undefined class appears where the image was moved away.

    Args:
        size: side S of the result in pixels.
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].
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
    steps = [_resize(size), albumentations.HorizontalFlip(p=0.5), affine, light]
    return _compose(steps, mean, std)


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> albumentations.Compose:
    """Nothing random: normalise only (and resize, if the input has another size).

    Args:
        size: side S of the result in pixels.
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].
    """
    return _compose([_resize(size)], mean, std)


def _resize(size: int) -> albumentations.BasicTransform:
    return albumentations.Resize(size, size, interpolation=cv2.INTER_AREA, mask_interpolation=_NEAREST)


def _compose(
    steps: list[albumentations.BasicTransform], mean: Sequence[float], std: Sequence[float]
) -> albumentations.Compose:
    normalise = albumentations.Normalize(tuple(mean), tuple(std), max_pixel_value=255.0)
    return albumentations.Compose([*steps, normalise, ToTensorV2()])
