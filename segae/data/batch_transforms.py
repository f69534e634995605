"""Augmentation of a whole batch where it lies, by one resampling: the counterparts of ``segae.data.transforms``.

A transform first draws numbers, a row for each image of the epoch, and turns them into a matrix (2, 3), a factor and
a shift for each; then every batch is resampled once by its matrices. So all the randomness of an epoch is drawn in one
go on the CPU, and a batch costs a GPU no waiting.

A matrix takes a place in the result to the place in the input it shows. Both are in [-1, 1] from edge to edge, x
(to the right) before y (down).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

_TRIES = 10  # of drawing a crop that fits, as everywhere else


@dataclass(frozen=True)
class Changes:
    """What is done to each of N images.

    Attributes:
        matrix_n23: float32 (N, 2, 3), from places in the result to places in the input.
        factor_n: float32 (N), what the values, in [0, 255], are multiplied by; None for 1.
        shift_n: float32 (N), what is added afterwards, in the same units; None for 0.
    """

    matrix_n23: Tensor
    factor_n: Tensor | None = None
    shift_n: Tensor | None = None

    def __getitem__(self, places: Tensor) -> Changes:
        parts = (self.matrix_n23, self.factor_n, self.shift_n)
        return Changes(*(None if part is None else part[places] for part in parts))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Changes:
        """The same on a device."""
        parts = (self.matrix_n23, self.factor_n, self.shift_n)
        return Changes(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


class BatchTransform(Protocol):
    """Draws what will be done to each image of an epoch."""

    def __call__(self, count: int, generator: torch.Generator) -> Changes:
        """Draw for ``count`` images, on the CPU."""
        ...


@dataclass(frozen=True)
class CropAndFlip:
    """A random crop resized back, and a horizontal flip, as ``pretrain_transform``.

    Attributes:
        scale: smallest and largest area of the crop, as shares of the image, in (0, 1].
        ratio: smallest and largest width over height of the crop.
        flip: probability of a horizontal flip, in [0, 1].
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __call__(self, count: int, generator: torch.Generator) -> Changes:
        """Draw for ``count`` images; a crop that does not fit in ten tries becomes the whole image."""
        width_n, height_n = torch.ones(count), torch.ones(count)
        fits_n = torch.zeros(count, dtype=torch.bool)
        for _ in range(_TRIES):
            area_n = _uniform(self.scale, count, generator)
            ratio_n = _uniform((math.log(self.ratio[0]), math.log(self.ratio[1])), count, generator).exp()
            tried = (area_n * ratio_n).sqrt(), (area_n / ratio_n).sqrt()
            now_n = ~fits_n & (tried[0] <= 1) & (tried[1] <= 1)
            width_n, height_n = torch.where(now_n, tried[0], width_n), torch.where(now_n, tried[1], height_n)
            fits_n |= now_n
        mirror_n = _mirror(self.flip, count, generator)
        matrix_n23 = torch.zeros(count, 2, 3)
        matrix_n23[:, 0, 0] = width_n * mirror_n
        matrix_n23[:, 1, 1] = height_n
        matrix_n23[:, 0, 2] = (1 - width_n) * _uniform((-1, 1), count, generator)
        matrix_n23[:, 1, 2] = (1 - height_n) * _uniform((-1, 1), count, generator)
        return Changes(matrix_n23)


@dataclass(frozen=True)
class MildChange:
    """Horizontal flip, mild affine change, mild brightness and contrast, as ``train_transform``.

    Attributes:
        flip: probability of a horizontal flip, in [0, 1].
        probability: of the affine change, and again of the change of light, in [0, 1].
        scale: smallest and largest magnification, drawn for each axis.
        translate: largest shift along each axis, as a share of the side.
        rotate: largest angle in degrees.
        contrast: largest change of the factor from 1.
        brightness: largest shift of the values, as a share of white.
    """

    flip: float = 0.5
    probability: float = 0.5
    scale: tuple[float, float] = (0.9, 1.1)
    translate: float = 0.06
    rotate: float = 10.0
    contrast: float = 0.2
    brightness: float = 0.2

    def __call__(self, count: int, generator: torch.Generator) -> Changes:
        """Draw for ``count`` images."""
        mirror_n = _mirror(self.flip, count, generator)
        moved_n = torch.rand(count, generator=generator) < self.probability
        angle_n = _uniform((-self.rotate, self.rotate), count, generator) * (math.pi / 180)
        scale_2n = torch.stack([_uniform(self.scale, count, generator) for _ in range(2)])
        # a share of the side is twice that in places, which go from -1 to 1
        shift_n21 = 2 * _uniform((-self.translate, self.translate), count * 2, generator).view(count, 2, 1)
        cos_n, sin_n = angle_n.cos(), angle_n.sin()
        # the input place is mirror * scale^-1 * rotation^-1 * (result place - shift)
        back_n22 = torch.stack([cos_n, sin_n, -sin_n, cos_n], dim=1).view(count, 2, 2) / scale_2n.T[:, :, None]
        back_n22 = torch.where(moved_n[:, None, None], back_n22, torch.eye(2))
        shift_n21 = torch.where(moved_n[:, None, None], -back_n22 @ shift_n21, torch.zeros(2, 1))
        matrix_n23 = torch.cat([back_n22, shift_n21], dim=2)
        matrix_n23[:, 0] *= mirror_n[:, None]
        lit_n = torch.rand(count, generator=generator) < self.probability
        factor_n = 1 + _uniform((-self.contrast, self.contrast), count, generator)
        shift_n = 255 * _uniform((-self.brightness, self.brightness), count, generator)
        return Changes(matrix_n23, torch.where(lit_n, factor_n, 1.0), torch.where(lit_n, shift_n, 0.0))


def change_images(image_bchw: Tensor, changes: Changes | None, mean_c11: Tensor, std_c11: Tensor) -> Tensor:
    """Resample, light and normalise a batch.

    Args:
        image_bchw: uint8 (B, C, H, W).
        changes: of these B images, on their device; None only normalises.
        mean_c11: per channel, for values in [0, 255], on the images' device: a copy now would make a GPU wait.
        std_c11: the same.

    Returns:
        float32 (B, C, H, W), channels_last in memory: (x - mean) / std.
    """
    values_bchw = image_bchw.float()
    if changes is not None:
        values_bchw = _resample(values_bchw, changes.matrix_n23, "bilinear")
        if changes.factor_n is not None and changes.shift_n is not None:
            lit_bchw = values_bchw * changes.factor_n.view(-1, 1, 1, 1) + changes.shift_n.view(-1, 1, 1, 1)
            values_bchw = lit_bchw.clamp(0, 255)
    return ((values_bchw - mean_c11) / std_c11).contiguous(memory_format=torch.channels_last)


def change_masks(mask_bhw: Tensor, changes: Changes | None) -> Tensor:
    """Resample masks in step with their images, each pixel taking the nearest one.

    Args:
        mask_bhw: uint8 (B, H, W), class indices.
        changes: of these B images, on their device; None changes nothing.

    Returns:
        int64 (B, H, W).
    """
    if changes is None:
        return mask_bhw.long()
    # float32 holds every class index exactly, and nearest never mixes them
    return _resample(mask_bhw[:, None].float(), changes.matrix_n23, "nearest")[:, 0].long()


def _resample(values_bchw: Tensor, matrix_n23: Tensor, mode: str) -> Tensor:
    place_bhw2 = functional.affine_grid(matrix_n23, list(values_bchw.shape), align_corners=False)
    return functional.grid_sample(values_bchw, place_bhw2, mode, padding_mode="reflection", align_corners=False)


def _uniform(limits: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(count, generator=generator)


def _mirror(probability: float, count: int, generator: torch.Generator) -> Tensor:
    """-1 where the image is mirrored, else 1."""
    return torch.where(torch.rand(count, generator=generator) < probability, -1.0, 1.0)
