"""What `segae.data.transforms` does, by torchvision.transforms.v2: for machines without albumentations.

Arguments and results are the same, resized and normalized images equal. Augmented ones have the same changes with other
random numbers, but a zoom is equal along both axes. There is no augmentation of one's own.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from segae.data.augmentation import FINETUNING_CHANGES, Change, pretraining_changes, refuse_augmentation
from segae.data.gpu import LEAST_BLUR, MOST_BLUR, CropAndFlip, MildChange, StrongChange
from segae.data.image_io import IGNORE_INDEX, resize_mask

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # image uint8 (C, H, W) and mask uint8 (H, W)


class TorchvisionTransform:
    """Resize, change and normalize an image, and its mask in step; called as a Compose of albumentations is."""

    def __init__(self, change: Change, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._steps, self._size = list(_steps(change, size, mean)), size
        self._mean, self._std = list(mean), list(std)
        self._random = random.Random()

    def set_random_state(self, generator: np.random.Generator, python: random.Random) -> None:  # noqa: ARG002
        """Set what the next calls draw from: the second, as torchvision draws from a generator of torch."""
        self._random = python

    def __call__(self, *, image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Tensor]:
        """Return `image` float32 (C, S, S) and, where it is given, `mask` uint8 (S, S)."""
        square = (self._size, self._size)
        if image.shape[:2] != square:  # as albumentations does, to the bit; torchvision averages otherwise
            image = cv2.resize(image, square, interpolation=cv2.INTER_AREA).reshape(*square, -1)
        resized = torch.from_numpy(image).permute(2, 0, 1)
        labels = np.zeros(square, np.uint8) if mask is None else resize_mask(mask, self._size)
        pair: tuple[Any, Any] = tv_tensors.Image(resized), tv_tensors.Mask(torch.from_numpy(labels))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(self._random.getrandbits(63))
            for step in self._steps:
                pair = step(*pair)
        values = functional.rgb_to_grayscale(pair[0]) if len(self._mean) == 1 < len(resized) else pair[0]
        values = functional.normalize(functional.to_dtype(values, torch.float32, scale=True), self._mean, self._std)
        result = {"image": values.as_subclass(Tensor)}
        return result if mask is None else result | {"mask": pair[1].as_subclass(Tensor)}


def pretrain_transform(
    size: int, mean: Sequence[float], std: Sequence[float], *, crop: bool = True, augment: Any = "default"
) -> TorchvisionTransform:
    """Random resized crop and horizontal flip; `augment` is none, light, default or strong."""
    return _transform(augment, pretraining_changes(crop=crop), size, mean, std)


def train_transform(
    size: int, mean: Sequence[float], std: Sequence[float], *, augment: Any = "default"
) -> TorchvisionTransform:
    """Flip, affine change, brightness and contrast, the mask in step; `augment` is none, light, default or strong."""
    return _transform(augment, FINETUNING_CHANGES, size, mean, std)


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> TorchvisionTransform:
    """Resize and normalize; nothing random."""
    return TorchvisionTransform(None, size, mean, std)


def load_augmentation(given: Any) -> str:
    """Return the name of an augmentation; SegaeError for one's own, which needs albumentations."""
    if isinstance(given, str) and given in FINETUNING_CHANGES:
        return given
    raise refuse_augmentation(given, "one's own needs albumentations, which cannot be imported here")


def describe_augmentation(augment: str) -> str:
    """The name of an augmentation."""
    return augment


def _transform(
    augment: Any, named: dict[str, Change], size: int, mean: Sequence[float], std: Sequence[float]
) -> TorchvisionTransform:
    return TorchvisionTransform(named[load_augmentation(augment)], size, mean, std)


def _steps(change: Change, size: int, mean: Sequence[float]) -> Iterator[Step]:
    if isinstance(change, StrongChange):
        yield from _steps(change.place, size, mean)
        if change.blur:
            kernel, sigma = 2 * math.ceil(3 * MOST_BLUR * size) + 1, (LEAST_BLUR * size, MOST_BLUR * size)
            yield v2.RandomApply([v2.GaussianBlur(kernel, sigma)], change.blur)
        if len(mean) in (1, 3):
            yield v2.RandomApply([v2.ColorJitter(saturation=change.saturation)], change.color)
            yield v2.RandomApply([partial(_tint, change.tint)], change.color)
        if change.hole:
            yield v2.RandomApply([partial(_punch, change.hole_side, mean)], change.hole)
    elif isinstance(change, CropAndFlip):
        if change.scale != (1, 1):
            yield v2.RandomResizedCrop((size, size), change.scale, change.ratio, antialias=False)
        yield v2.RandomHorizontalFlip(change.flip)
    elif change is not None:
        yield v2.RandomHorizontalFlip(change.flip)
        yield v2.RandomApply(_affine(change, size), change.probability)
        yield v2.RandomApply([partial(_light, change)], change.probability)


def _affine(change: MildChange, size: int) -> list[Step]:
    """Move a reflected, larger image and cut out its middle, so that the border is reflected, too."""
    angle = math.radians(change.rotate)
    reach = ((math.cos(angle) + math.sin(angle)) / 2 + change.translate) / change.scale[0] - 0.5
    margin = min(math.ceil(reach * size) + 1, size - 1)
    shift = change.translate * size / (size + 2 * margin)
    how = {"interpolation": v2.InterpolationMode.BILINEAR}
    affine = v2.RandomAffine(change.rotate, translate=(shift, shift), scale=change.scale, **how)
    return [v2.Pad(margin, padding_mode="reflect"), affine, v2.CenterCrop(size)]


def _light(change: MildChange, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    factor, shift = 1 + _uniform(change.contrast), 255 * _uniform(change.brightness)
    return _as_bytes(image.float() * factor + shift), mask


def _tint(most: float, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return _as_bytes(image.float() * (1 + _uniform(most, len(image), 1, 1))), mask


def _punch(side: tuple[float, float], mean: Sequence[float], image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    height, width = mask.shape
    tall, wide = (int(length * (side[0] + (side[1] - side[0]) * torch.rand(()))) for length in (height, width))
    top, left = (int(torch.randint(length + 1, ())) for length in (height - tall, width - wide))
    image, mask, hole = image.clone(), mask.clone(), (..., slice(top, top + tall), slice(left, left + wide))
    image[hole] = (255 * torch.tensor(mean)).round().to(image.dtype)[:, None, None]
    mask[hole] = IGNORE_INDEX
    return image, mask


def _uniform(most: float, *shape: int) -> Tensor:
    return most * (2 * torch.rand(shape) - 1)


def _as_bytes(values: Tensor) -> Tensor:
    return tv_tensors.Image(values.as_subclass(Tensor).round().clamp(0, 255).to(torch.uint8))
