"""Image and mask augmentation on the CPU; the only module that imports albumentations.

Transforms take arrays, `image` (H, W, C), uint8 or float32 in [0, 1], and optionally `mask` (H, W), and return `image`
as float32 tensor (C, S, S), normalized to (x / 255 - mean) / std or (x - mean) / std, and `mask` as uint8 tensor
(S, S), resampled by nearest pixel. `size` is the side S in pixels, height and width, or a format; `mean` and `std` are
per channel, for values in [0, 1]; one channel makes RGB gray.
"""

import copy
import json
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# albumentations asks a server for its latest version when it is imported, unless this is set before
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations
from albumentations.core.composition import BaseCompose
from albumentations.pytorch import ToTensorV2

from segae.data.augmentation import FINETUNING_CHANGES, Change, pretraining_changes, refuse_augmentation
from segae.data.gpu import LEAST_BLUR, MOST_BLUR, CropAndFlip, StrongChange
from segae.errors import SegaeError
from segae.image_format import IGNORE_INDEX, ImageFormat, Size

_NEAREST = cv2.INTER_NEAREST_EXACT


class OwnTransform:
    """A transform of a user between the resize and the normalization of segae.

    It gets `image` (H, W, C), uint8 or, of other than 8-bit images, float32 in [0, 1], and `mask` (H, W) of class
    indices, and must return the same kind; that is checked for each image, and once for a gray one when this is made.
    SegaeError where it cannot be applied, or returns another size or type, or a class that the mask did not have.
    """

    def __init__(
        self, own: Any, form: ImageFormat, mean: Sequence[float], std: Sequence[float], *, random_crop: bool
    ) -> None:
        self._first: Any = albumentations.Compose([albumentations.RandomCrop(*form.shape)]) if random_crop else None
        self._resize, self._own = _resize(form), albumentations.Compose([own])
        self._last = _compose([], mean, std)
        self.set_random_state(np.random.default_rng(0), random.Random(0))
        gray = np.full((*form.shape, form.stored_channels), 128, np.uint8)
        image = gray if form.dtype == np.uint8 else gray / np.float32(255)
        self(image=image, mask=np.zeros(form.shape, np.uint8))

    def set_random_state(self, generator: np.random.Generator, python: random.Random) -> None:
        """Set what the next call draws from."""
        for part in (self._first, self._own) if self._first else (self._own,):
            part.set_random_state(generator, python)

    def __call__(self, **arrays: np.ndarray) -> dict[str, Any]:
        """Transform `image` and, where given, `mask`."""
        before, known = (self._first or self._resize)(**arrays), np.zeros(256, bool)
        if "mask" in before:  # now: a transform may change an array in its place
            known[before["mask"]], known[IGNORE_INDEX] = True, True
        try:
            after = self._own(**before)
        except Exception as error:  # what a transform raises for images that it cannot take
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            needed = f"{before['image'].dtype} images {before['image'].shape}"
            raise SegaeError(f"augment must be a transform for {needed}, got {reason}") from error
        for name, array in before.items():
            seen, needed = after.get(name), f"{array.dtype} array {array.shape}"
            if not isinstance(seen, np.ndarray) or (seen.shape, seen.dtype) != (array.shape, array.dtype):
                shown = f"{getattr(seen, 'dtype', type(seen).__name__)} {tuple(getattr(seen, 'shape', ()))}"
                hint = "segae resizes before it, and normalizes and makes tensors after it"
                raise SegaeError(f"augment must return {name} as {needed}, got {shown}; {hint}")
        if "mask" in before and not known[after["mask"]].all():
            strange = np.unique(after["mask"][~known[after["mask"]]]).tolist()[:5]
            raise SegaeError(f"augment must keep the classes of a mask, or give 255 (ignored), got {strange}")
        return self._last(**{name: after[name] for name in before})


def pretrain_transform(
    size: Size | ImageFormat,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop: bool = True,
    augment: Any = "default",
    random_crop: bool = False,
) -> albumentations.Compose | OwnTransform:
    """Random resized crop and horizontal flip, as in masked autoencoders (2111.06377).

    The crop has half to the whole of the area. With `crop=False` there is none, for methods that crop by themselves.
    `augment` is as in `load_augmentation`: light is a flip alone; strong crops a fifth to the whole and changes colors.
    `random_crop` says that images are larger than `size`: where there is no resized crop, a plain one is cut out.
    """
    return _transform(augment, pretraining_changes(crop=crop), size, mean, std, random_crop)


def train_transform(
    size: Size | ImageFormat,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    augment: Any = "default",
    random_crop: bool = False,
) -> albumentations.Compose | OwnTransform:
    """Horizontal flip, mild affine change, mild brightness and contrast, with the mask in step.

    The border is reflected in image and mask, so that no undefined class appears at the edges. `augment` is as in
    `load_augmentation`: light is a flip alone; strong has larger ranges and also blur, color, and holes that are 255
    (ignored) in the mask. With `random_crop` a part of larger images is cut out before, at a random place.
    """
    return _transform(augment, FINETUNING_CHANGES, size, mean, std, random_crop)


def eval_transform(size: Size | ImageFormat, mean: Sequence[float], std: Sequence[float]) -> albumentations.Compose:
    """Resize and normalize; nothing random."""
    return _compose([_resize(ImageFormat.of(size, len(mean)))], mean, std)


def load_augmentation(given: Any) -> Any:
    """Return the name of an augmentation as it is, and one's own as a transform of albumentations.

    Names are none, light, default and strong. One's own is a transform, such as a Compose; the JSON or YAML file that
    `albumentations.save` wrote; or that JSON as a text. A copy is returned that gives pixels of a mask 255 (ignored)
    where the transform would have filled undefined ones with class 0. SegaeError for anything else.
    """
    if isinstance(given, str) and given in FINETUNING_CHANGES:
        return given
    if isinstance(given, albumentations.BasicTransform | BaseCompose):
        try:
            albumentations.to_dict(given)
        except (NotImplementedError, ValueError) as error:  # such as a Lambda without a name
            raise SegaeError(f"augment must be a transform that albumentations can save: {error}") from error
        return _ignore_undefined(copy.deepcopy(given))
    if not isinstance(given, str | os.PathLike):
        raise refuse_augmentation(given)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*not valid for transform")  # a misspelled setting would be left out
            if str(given).lstrip().startswith("{"):
                found: Any = albumentations.from_dict(json.loads(str(given)))
            else:
                kind: Any = "json" if Path(given).suffix == ".json" else "yaml"
                found = albumentations.load(Path(given), data_format=kind)
    except FileNotFoundError:
        raise refuse_augmentation(str(given)) from None
    except Exception as error:  # of nearly any type, from the parser, albumentations or pydantic
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise refuse_augmentation(str(given), f"albumentations cannot read it ({reason})") from error
    return _ignore_undefined(found)


def describe_augmentation(augment: Any) -> str:
    """The name of an augmentation, or one's own as the JSON that `load_augmentation` reads."""
    return augment if isinstance(augment, str) else json.dumps(albumentations.to_dict(augment), default=str)


def _transform(
    augment: Any,
    named: dict[str, Change],
    size: Size | ImageFormat,
    mean: Sequence[float],
    std: Sequence[float],
    random_crop: bool = False,
) -> albumentations.Compose | OwnTransform:
    form = ImageFormat.of(size, len(mean))
    if not isinstance(augment := load_augmentation(augment), str):
        return OwnTransform(augment, form, mean, std, random_crop=random_crop)
    return _compose(_steps(named[augment], form, mean, random_crop), mean, std)


def _steps(
    change: Change, form: ImageFormat, mean: Sequence[float], random_crop: bool
) -> list[albumentations.BasicTransform]:
    """The transforms of albumentations that do what a batch of the GPU undergoes."""
    first = albumentations.RandomCrop(*form.shape) if random_crop else _resize(form)
    if change is None:
        return [first]
    if isinstance(change, StrongChange):
        return [*_steps(change.place, form, mean, random_crop), *_strong_steps(change, form, mean)]
    if isinstance(change, CropAndFlip):
        height, width = form.shape
        if change.scale != (1, 1):
            first = albumentations.RandomResizedCrop(
                form.shape,
                scale=change.scale,
                ratio=(change.ratio[0] * width / height, change.ratio[1] * width / height),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=_NEAREST,
            )
        return [first, albumentations.HorizontalFlip(p=change.flip)]
    affine = albumentations.Affine(
        scale=change.scale,
        translate_percent=(-change.translate, change.translate),
        rotate=(-change.rotate, change.rotate),
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        border_mode=cv2.BORDER_REFLECT_101,
        p=change.probability,
    )
    light = albumentations.RandomBrightnessContrast(
        brightness_limit=change.brightness, contrast_limit=change.contrast, p=change.probability
    )
    return [first, albumentations.HorizontalFlip(p=change.flip), affine, light]


def _strong_steps(
    change: StrongChange, form: ImageFormat, mean: Sequence[float]
) -> Iterator[albumentations.BasicTransform]:
    if change.blur:
        side = min(form.shape)
        yield albumentations.GaussianBlur(sigma_limit=(LEAST_BLUR * side, MOST_BLUR * side), p=change.blur)
    if form.stored_channels == 3:
        saturation, same = (1 - change.saturation, 1 + change.saturation), {"brightness": (1, 1), "contrast": (1, 1)}
        yield albumentations.ColorJitter(saturation=saturation, **same, hue=(0, 0), p=change.color)
    if form.stored_channels in (1, 3):
        tint = (1 - change.tint, 1 + change.tint)
        yield albumentations.MultiplicativeNoise(multiplier=tint, per_channel=True, p=change.color)
    if change.hole:
        gray = [value * (255 if form.dtype == np.uint8 else 1) for value in mean]
        yield albumentations.CoarseDropout(
            num_holes_range=(1, 1),
            hole_height_range=change.hole_side,
            hole_width_range=change.hole_side,
            fill=tuple(gray * form.stored_channels if len(gray) == 1 else gray),
            fill_mask=IGNORE_INDEX,
            p=change.hole,
        )


def _ignore_undefined(transform: Any) -> Any:
    """Fill masks with 255 wherever a transform, or one in it, would fill them with 0, which is a class."""
    if isinstance(transform, BaseCompose):
        for one in transform.transforms:
            _ignore_undefined(one)
    elif getattr(transform, "fill_mask", None) == 0:
        transform.fill_mask = type(transform.fill_mask)(IGNORE_INDEX)
    return transform


class _ToGray(albumentations.ToGray):
    """Make RGB gray, and leave alone what has one channel already."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img if img.ndim < 3 or img.shape[-1] == 1 else super().apply(img, **params)


class _ToByteScale(albumentations.ImageOnlyTransform):
    """Scale float images from 0..1 to 0..255, so that one normalization does for them and for bytes."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002 - the signature of its base
        return img * np.float32(255) if img.dtype == np.float32 else img


def _resize(form: ImageFormat) -> albumentations.BasicTransform:
    return albumentations.Resize(*form.shape, interpolation=cv2.INTER_AREA, mask_interpolation=_NEAREST)


def _compose(
    steps: list[albumentations.BasicTransform], mean: Sequence[float], std: Sequence[float]
) -> albumentations.Compose:
    if len(mean) == 1:
        steps = [*steps, _ToGray(num_output_channels=1, p=1.0)]
    steps = [*steps, _ToByteScale(p=1.0)]
    normalize = albumentations.Normalize(tuple(mean), tuple(std), max_pixel_value=255.0)
    return albumentations.Compose([*steps, normalize, ToTensorV2()])
