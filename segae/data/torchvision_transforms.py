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
from segae.image_format import IGNORE_INDEX, ImageFormat, Size, resize_mask

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # image, uint8 or in [0, 1], (C, H, W), mask uint8 (H, W)


class TorchvisionTransform:
    """Resize, change and normalize an image, and its mask in step; called as a Compose of albumentations is."""

    def __init__(
        self,
        change: Change,
        size: Size | ImageFormat,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        random_crop: bool = False,
    ) -> None:
        form = ImageFormat.of(size, len(mean))
        cut: list[Step] = [v2.RandomCrop(form.shape)] if random_crop and not _crops(change) else []
        self._steps, self._shape, self._whole = [*cut, *_steps(change, form, mean)], form.shape, random_crop
        self._mean, self._std = list(mean), list(std)
        self._random = random.Random()

    def set_random_state(self, generator: np.random.Generator, python: random.Random) -> None:  # noqa: ARG002
        """Set what the next calls draw from: the second, as torchvision draws from a generator of torch."""
        self._random = python

    def __call__(self, *, image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Tensor]:
        """Return `image` float32 (C, S, S) and, where it is given, `mask` uint8 (S, S)."""
        if image.shape[:2] != self._shape and not self._whole:  # as albumentations does, torchvision averages otherwise
            image = _resize(image, self._shape)
            mask = None if mask is None else resize_mask(mask, self._shape)
        resized = torch.from_numpy(image).permute(2, 0, 1)
        labels = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
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
    size: Size | ImageFormat,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop: bool = True,
    augment: Any = "default",
    random_crop: bool = False,
) -> TorchvisionTransform:
    """Random resized crop and horizontal flip; `augment` is none, light, default or strong."""
    return _transform(augment, pretraining_changes(crop=crop), size, mean, std, random_crop)


def train_transform(
    size: Size | ImageFormat,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    augment: Any = "default",
    random_crop: bool = False,
) -> TorchvisionTransform:
    """Flip, affine change, brightness and contrast, the mask in step; `augment` is none, light, default or strong."""
    return _transform(augment, FINETUNING_CHANGES, size, mean, std, random_crop)


def eval_transform(size: Size | ImageFormat, mean: Sequence[float], std: Sequence[float]) -> TorchvisionTransform:
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
    augment: Any,
    named: dict[str, Change],
    size: Size | ImageFormat,
    mean: Sequence[float],
    std: Sequence[float],
    random_crop: bool = False,
) -> TorchvisionTransform:
    return TorchvisionTransform(named[load_augmentation(augment)], size, mean, std, random_crop=random_crop)


def _resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, C) as albumentations does, to the bit: it gives OpenCV four channels at a time."""
    parts = (image[..., start : start + 4] for start in range(0, image.shape[2], 4))
    resized = (cv2.resize(np.ascontiguousarray(part), shape[::-1], interpolation=cv2.INTER_AREA) for part in parts)
    return np.dstack([*resized])


def _crops(change: Change) -> bool:
    """Whether a change takes a part of the image anyway."""
    place = change.place if isinstance(change, StrongChange) else change
    return isinstance(place, CropAndFlip) and place.scale != (1, 1)


def _steps(change: Change, form: ImageFormat, mean: Sequence[float]) -> Iterator[Step]:
    (height, width), side = form.shape, min(form.shape)
    if isinstance(change, StrongChange):
        yield from _steps(change.place, form, mean)
        if change.blur:
            kernel, sigma = 2 * math.ceil(3 * MOST_BLUR * side) + 1, (LEAST_BLUR * side, MOST_BLUR * side)
            yield v2.RandomApply([v2.GaussianBlur(kernel, sigma)], change.blur)
        if form.stored_channels == 3:
            yield v2.RandomApply([v2.ColorJitter(saturation=change.saturation)], change.color)
        if form.stored_channels in (1, 3):
            yield v2.RandomApply([partial(_tint, change.tint)], change.color)
        if change.hole:
            yield v2.RandomApply([partial(_punch, change.hole_side, mean)], change.hole)
    elif isinstance(change, CropAndFlip):
        if _crops(change):
            ratio = change.ratio[0] * width / height, change.ratio[1] * width / height
            yield v2.RandomResizedCrop(form.shape, change.scale, ratio, antialias=False)
        yield v2.RandomHorizontalFlip(change.flip)
    elif change is not None:
        yield v2.RandomHorizontalFlip(change.flip)
        yield v2.RandomApply(_affine(change, form.shape), change.probability)
        yield v2.RandomApply([partial(_light, change)], change.probability)


def _affine(change: MildChange, shape: tuple[int, int]) -> list[Step]:
    """Move a reflected, larger image and cut out its middle, so that the border is reflected, too."""
    cos, sin = math.cos(math.radians(change.rotate)), math.sin(math.radians(change.rotate))
    margins, shifts = [], []
    for side, other in (shape[::-1], shape):  # along x, then along y
        reach = ((cos * side + sin * other) / 2 + change.translate * side) / change.scale[0] - 0.5 * side
        margins.append(min(math.ceil(reach) + 1, side - 1))
        shifts.append(change.translate * side / (side + 2 * margins[-1]))
    how = {"interpolation": v2.InterpolationMode.BILINEAR}
    affine = v2.RandomAffine(change.rotate, translate=tuple(shifts), scale=change.scale, **how)
    return [v2.Pad(margins, padding_mode="reflect"), affine, v2.CenterCrop(shape)]


def _light(change: MildChange, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    factor, shift = 1 + _uniform(change.contrast), _white(image) * _uniform(change.brightness)
    return _as_kind(image, image.float() * factor + shift), mask


def _tint(most: float, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return _as_kind(image, image.float() * (1 + _uniform(most, len(image), 1, 1))), mask


def _punch(side: tuple[float, float], mean: Sequence[float], image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    height, width = mask.shape
    tall, wide = (int(length * (side[0] + (side[1] - side[0]) * torch.rand(()))) for length in (height, width))
    top, left = (int(torch.randint(length + 1, ())) for length in (height - tall, width - wide))
    image, mask, hole = image.clone(), mask.clone(), (..., slice(top, top + tall), slice(left, left + wide))
    image[hole] = _as_kind(image, _white(image) * torch.tensor(mean)[:, None, None])
    mask[hole] = IGNORE_INDEX
    return image, mask


def _uniform(most: float, *shape: int) -> Tensor:
    return most * (2 * torch.rand(shape) - 1)


def _white(image: Tensor) -> int:
    """The largest value of an image."""
    return 255 if image.dtype == torch.uint8 else 1


def _as_kind(image: Tensor, values: Tensor) -> Tensor:
    """Values of an image as values of its type."""
    values = values.as_subclass(Tensor).clamp(0, _white(image))
    return tv_tensors.Image(values.round().to(torch.uint8) if image.dtype == torch.uint8 else values)
