"""Images that stay on the training device as bytes and are augmented there, a batch at a time.

All random numbers of an epoch are drawn at once on the CPU, so that a GPU never waits for the host: float32 (N, 6), a
matrix (2, 3) for each image; (N, 8), that and a factor and a shift of its values, which are in [0, 255]; or (N, 17),
that and the numbers of a `StrongChange`. A batch is then one `grid_sample`. A matrix maps positions in the result to
positions in the input, both in [-1, 1] from edge to edge, x (right) before y (down).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from segae._io import check_range
from segae.image_format import GRAY, IGNORE_INDEX

LEAST_BLUR, MOST_BLUR = 0.001, 0.01  # standard deviation of a Gaussian blur, as a share of the short side
_TRIES = 10  # of drawing a crop that fits, as in torchvision and albumentations
_UPLOAD_BYTES = 64 * 2**20  # copied to the device at a time


@dataclass(frozen=True)
class CropAndFlip:
    """Random resized crop and horizontal flip, the counterpart of `pretrain_transform`."""

    scale: tuple[float, float] = (0.5, 1.0)  # smallest and largest area of the crop, as shares of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # smallest and largest width over height
    flip: float = 0.5  # probability of a horizontal flip

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, 6); a crop that does not fit in ten tries becomes the whole image."""
        width, height, fits = torch.ones(count), torch.ones(count), torch.zeros(count, dtype=torch.bool)
        for _ in range(_TRIES):
            area = _uniform(self.scale, count, generator)
            ratio = _uniform((math.log(self.ratio[0]), math.log(self.ratio[1])), count, generator).exp()
            tried = (area * ratio).sqrt(), (area / ratio).sqrt()
            now = ~fits & (tried[0] <= 1) & (tried[1] <= 1)
            width, height = torch.where(now, tried[0], width), torch.where(now, tried[1], height)
            fits |= now
        mirror = _mirror(self.flip, count, generator)
        right, down = ((1 - side) * _uniform((-1, 1), count, generator) for side in (width, height))
        zero = torch.zeros(count)
        return torch.stack([width * mirror, zero, right, zero, height, down], dim=1)


@dataclass(frozen=True)
class MildChange:
    """Horizontal flip, mild affine change, brightness and contrast, the counterpart of `train_transform`."""

    flip: float = 0.5  # probability of a horizontal flip
    probability: float = 0.5  # of the affine change, and again of the change of light
    scale: tuple[float, float] = (0.9, 1.1)  # smallest and largest magnification, drawn for each axis
    translate: float = 0.06  # largest shift along each axis, as a share of the side
    rotate: float = 10.0  # largest angle in degrees
    contrast: float = 0.2  # largest change of the factor from 1
    brightness: float = 0.2  # largest shift of the values, as a share of white

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, 8)."""
        mirror = _mirror(self.flip, count, generator)
        moved = torch.rand(count, generator=generator) < self.probability
        angle = _uniform((-self.rotate, self.rotate), count, generator) * (math.pi / 180)
        scale = torch.stack([_uniform(self.scale, count, generator) for _ in range(2)])
        # a share of the side is twice that in positions, which go from -1 to 1
        offset = 2 * _uniform((-self.translate, self.translate), count * 2, generator).view(count, 2, 1)
        cos, sin = angle.cos(), angle.sin()
        # the input position is mirror * scale^-1 * rotation^-1 * (result position - offset)
        back = torch.stack([cos, sin, -sin, cos], dim=1).view(count, 2, 2) / scale.T[:, :, None]
        back = torch.where(moved[:, None, None], back, torch.eye(2))
        offset = torch.where(moved[:, None, None], -back @ offset, torch.zeros(2, 1))
        matrix = torch.cat([back, offset], dim=2)
        matrix[:, 0] *= mirror[:, None]
        lit = torch.rand(count, generator=generator) < self.probability
        factor = 1 + _uniform((-self.contrast, self.contrast), count, generator)
        shift = 255 * _uniform((-self.brightness, self.brightness), count, generator)
        light = torch.stack([torch.where(lit, factor, 1.0), torch.where(lit, shift, 0.0)], dim=1)
        return torch.cat([matrix.flatten(1), light], dim=1)


@dataclass(frozen=True)
class StrongChange:
    """A wider crop or affine change, then blur, color, and a hole that is gray in the image and ignored in the mask.

    The color of images that are not RGB does not change, but for the brightness of gray ones.
    """

    place: CropAndFlip | MildChange = MildChange(
        scale=(0.7, 1.4), translate=0.12, rotate=25.0, contrast=0.4, brightness=0.4
    )
    blur: float = 0.3  # probability of a Gaussian blur
    color: float = 0.5  # probability of another saturation, and again of another tint
    saturation: float = 0.5  # largest change of the factor from 1
    tint: float = 0.2  # largest change of the factor of each channel from 1
    hole: float = 0.3  # probability of a hole (random erasing, arXiv 1708.04896)
    hole_side: tuple[float, float] = (0.1, 0.3)  # smallest and largest, as a share of the image's

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, 17): matrix, factor and shift, sigma, saturation, three gains, left, top, right and bottom."""
        place = self.place(count, generator)
        if place.shape[1] == 6:
            place = torch.cat([place, torch.tensor([[1.0, 0.0]]).expand(count, 2)], dim=1)
        blurred, saturated, tinted, holed = (
            (torch.rand(count, generator=generator) < probability)[:, None]
            for probability in (self.blur, self.color, self.color, self.hole)
        )
        sigma = _uniform((LEAST_BLUR, MOST_BLUR), count, generator)[:, None]
        saturation = 1 + _uniform((-self.saturation, self.saturation), count, generator)[:, None]
        gains = 1 + _uniform((-self.tint, self.tint), count * 3, generator).view(count, 3)
        side = _uniform(self.hole_side, count * 2, generator).view(count, 2)
        corner = (1 - side) * torch.rand(count, 2, generator=generator)
        parts = [
            torch.where(blurred, sigma, 0.0),
            torch.where(saturated, saturation, 1.0),
            torch.where(tinted, gains, 1.0),
            torch.where(holed, torch.cat([corner, corner + side], dim=1), 0.0),
        ]
        return torch.cat([place, *parts], dim=1)


def change_images(images: Tensor, changes: Tensor | None, mean: Tensor, std: Tensor) -> Tensor:
    """Augment (B, C, H, W) by one bilinear resampling and normalize; return float32, channels_last in memory.

    Images are uint8, or uint16 in the guise of int16, with which every operation of a GPU works.
    `changes` are (B, 6), (B, 8), (B, 17) or None; `mean` and `std` are (C, 1, 1), for values in [0, 255]. All are on
    the images' device: a copy here would make a GPU wait.
    """
    values = images.view(torch.uint16).float() / 257 if images.dtype == torch.int16 else images.float()
    if len(mean) == 1 and values.shape[1] == 3:  # as albumentations and normalize do
        values = (values * values.new_tensor(GRAY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    if changes is not None:
        values = _resample(values, changes, "bilinear")
        if changes.shape[1] >= 8:
            values = (values * changes[:, 6].view(-1, 1, 1, 1) + changes[:, 7].view(-1, 1, 1, 1)).clamp(0, 255)
        if changes.shape[1] > 8:
            values = _recolor(_blur(values, changes[:, 8]), changes[:, 9:13, None, None])
            values = torch.where(_inside(changes[:, 13:], values)[:, None], mean, values)
    return ((values - mean) / std).contiguous(memory_format=torch.channels_last)


def change_masks(masks: Tensor, changes: Tensor | None) -> Tensor:
    """Augment masks uint8 (B, H, W) in step with their images, by nearest pixel; return int64 (B, H, W)."""
    # float32 holds every class index exactly, and nearest never mixes them
    changes = changes if masks.ndim > 1 else None
    if changes is None:
        return masks.long()
    moved = _resample(masks[:, None].float(), changes, "nearest")[:, 0].long()
    return moved if changes.shape[1] <= 8 else moved.masked_fill(_inside(changes[:, 13:], moved), IGNORE_INDEX)


def _resample(values: Tensor, changes: Tensor, mode: str) -> Tensor:
    matrices, (height, width) = changes[:, :6].view(-1, 2, 3), values.shape[-2:]
    if height != width:  # positions go from -1 to 1 along both axes, and an angle is one of pixels
        matrices = matrices.clone()
        matrices[:, 0, 1] *= height / width
        matrices[:, 1, 0] *= width / height
    grid = functional.affine_grid(matrices, list(values.shape), align_corners=False)
    return functional.grid_sample(values, grid, mode, padding_mode="reflection", align_corners=False)


def _blur(values: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image (B, C, H, W) with a Gaussian of its own, `sigma` (B,) as a share of the short side; 0 is none."""
    side = min(values.shape[-2:])
    radius = math.ceil(3 * MOST_BLUR * side)
    offsets = torch.arange(-radius, radius + 1, device=values.device)
    kernel = (-0.5 * (offsets / (sigma * side).clamp(min=1e-3)[:, None]).square()).exp()
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).T[..., None, None, None]  # (taps, B, 1, 1, 1)
    for axis, margin in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        length, wide = values.shape[axis], functional.pad(values, margin, mode="reflect")
        values = torch.zeros_like(values)
        for tap, weight in enumerate(kernel):
            values = torch.addcmul(values, wide.narrow(axis, tap, length), weight)
    return values


def _recolor(values: Tensor, factors: Tensor) -> Tensor:
    """Scale saturation and channels of (B, C, H, W) in [0, 255] by `factors` (B, 4, 1, 1); of gray ones brightness."""
    if values.shape[1] == 1:
        return (values * _to_gray(factors[:, 1:])).clamp(0, 255)
    if values.shape[1] != 3:
        return values
    values = torch.lerp(_to_gray(values), values, factors[:, :1]).clamp(0, 255)
    return (values * factors[:, 1:]).clamp(0, 255)


def _to_gray(values: Tensor) -> Tensor:
    red, green, blue = values.split(1, dim=1)
    return GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue


def _inside(holes: Tensor, values: Tensor) -> Tensor:
    """Which pixels (B, H, W) lie in rectangles (B, 4), given as left, top, right and bottom in [0, 1]."""
    height, width = values.shape[-2:]
    x, y = ((torch.arange(side, device=values.device) + 0.5) / side for side in (width, height))
    left, top, right, bottom = holes.T[..., None]
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]


def _uniform(limits: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(count, generator=generator)


def _mirror(probability: float, count: int, generator: torch.Generator) -> Tensor:
    """-1 where the image is mirrored, else 1."""
    return torch.where(torch.rand(count, generator=generator) < probability, -1.0, 1.0)


class GPUImageDataset(Dataset[tuple[Tensor, ...]]):
    """Images, and masks where there are any, in the memory of a device.

    A DataLoader without workers asks it for whole batches: (float32 (B, 3, S, S), normalized) or (that, int64
    (B, S, S)). An image's augmentation depends on (seed, epoch, index) alone. ValueError for too few or many masks.

    Args:
        images: uint8 (N, H, W, 3), RGB, or of another `ImageFormat`; a memory map is copied in parts, so it takes
            little memory of the host.
        masks: class indices, uint8 (N, S, S), or int64 (N,), one of each image; None for unlabeled images.
        change: `CropAndFlip()`, `MildChange()`, `StrongChange()`; None only normalizes.
        mean, std: per channel, for values in [0, 1].
        device: takes as many bytes of its memory as the images and masks have.
        seed: of the augmentation.
        repeats: times that every image occurs in an epoch, augmented differently each time, 1 or more.
    """

    def __init__(
        self,
        images: np.ndarray,
        masks: np.ndarray | None,
        change: Callable[[int, torch.Generator], Tensor] | None,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        check_range("repeats", repeats, low=1, integer=True)
        if masks is not None and len(images) != len(masks):
            raise ValueError(f"masks must be as many as images ({len(images)}), got {len(masks)}")
        self.device, self.distinct = device, len(images)
        self._images = _upload(images, device)
        self._masks = None if masks is None else _upload(masks, device)
        self._mean, self._std = (
            torch.tensor([255 * value for value in values], device=device).view(-1, 1, 1) for values in (mean, std)
        )
        self._change, self._seed, self._repeats, self._epoch = change, seed, repeats, 0
        self._changes: Tensor | None = None

    def unchanged(self) -> GPUImageDataset:
        """Return the same images, once each and only normalized; their memory is shared."""
        other = copy.copy(self)
        other._change, other._repeats, other._changes = None, 1, None
        return other

    def __len__(self) -> int:
        return self.distinct * self._repeats

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next batches get."""
        self._epoch, self._changes = epoch, None

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the batch of these items."""
        items = torch.tensor(indices).to(self.device, non_blocking=True)
        changes = None if self._change is None else self._draw(self._change)[items]
        places = items % self.distinct
        # the bytes stay in their order: permuted, they are what channels_last means
        images = change_images(self._images[places].permute(0, 3, 1, 2), changes, self._mean, self._std)
        return (images,) if self._masks is None else (images, change_masks(self._masks[places], changes))

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return one item, without the batch axis."""
        return tuple(part[0] for part in self.__getitems__([range(len(self))[index]]))  # IndexError ends an iteration

    def _draw(self, change: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        if self._changes is None:
            # 63 bits, as many as a generator takes; the odd factors keep neighboring seeds and epochs apart
            mixed = (self._seed * 0x9E3779B97F4A7C15 + self._epoch * 0xD1B54A32D192ED03) % 2**63
            self._changes = change(len(self), torch.Generator().manual_seed(mixed)).to(self.device)
        return self._changes


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array, often a map of a file, to a device, in parts; uint16 as int16."""
    array = array.view(np.int16) if array.dtype == np.uint16 else array
    tensor = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, device=device)
    rows = max(_UPLOAD_BYTES * len(array) // max(tensor.nbytes, 1), 1)
    for start in range(0, len(array), rows):
        # a copy: the map may be read-only, which torch must not be given
        tensor[start : start + rows].copy_(torch.from_numpy(np.array(array[start : start + rows])))
    return tensor
