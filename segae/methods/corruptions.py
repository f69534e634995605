"""What happens to images before an autoencoder sees them: noise, hidden patches, less color, light or detail.

All functions take normalized images (B, C, H, W) and leave them as they are. Random numbers come from the given
generator alone and are drawn on its device, so a CPU generator gives the same corruption on every device. Ranges of
numbers are checked by the methods that call these functions.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from segae._io import check_range
from segae.data import GRAY
from segae.errors import SegaeError


@dataclass(frozen=True)
class VisiblePatches:
    """Side in pixels of a mask's patches, which divides the image's sides, and how many of them each image shows."""

    side: int
    count: int


@dataclass(frozen=True)
class Corrupted:
    """A corrupted batch: what the model sees and what it has to predict.

    Attributes:
        image: Input of the model, normalized (B, C, H, W).
        mask: (B, 1, H, W), 1 = hidden, 0 = visible; None where no whole pixels are hidden.
        target: What the loss compares the prediction with; None = the clean images.
        visible: What the mask leaves, known without a wait for the GPU; None where patches at the edge are smaller.
    """

    image: Tensor
    mask: Tensor | None = None
    target: Tensor | None = None
    visible: VisiblePatches | None = None


@dataclass(frozen=True)
class PatchDifficulty:
    """Loss of each patch so far, used to sample masks that prefer difficult patches (arXiv 2512.06981).

    Attributes:
        loss: Reconstruction error of each patch (B, rows, columns); NaN = unknown, counts as the lowest.
        fraction: Share of the hidden patches that is chosen by loss, in [0, 1]; the others are drawn at random.
    """

    loss: Tensor
    fraction: float

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, low=0, high=1)
        if self.loss.dim() != 3:
            raise SegaeError(f"loss must have shape (images, rows, columns), got {tuple(self.loss.shape)}")


def average_patches(images: Tensor, patch_size: int) -> Tensor:
    """Average each patch of (B, C, H, W), smaller ones at the edge included: (B, C, rows, columns)."""
    return functional.avg_pool2d(images, patch_size, ceil_mode=True)


def spread_patches(grid: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Give every pixel the value of its patch: (B, C, rows, columns) to (B, C, height, width)."""
    spread = grid.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)
    return spread[:, :, :height, :width]


def luminance(images: Tensor) -> Tensor:
    """Compute brightness (B, 1, H, W): red, green and blue weighted as in Rec. 601, else the mean over channels."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue


def add_noise(images: Tensor, generator: Generator, sigma: float) -> Tensor:
    """Add independent Gaussian noise of standard deviation ``sigma`` > 0 to every value."""
    return images + sigma * _draw_normal(images, generator)


def add_scaled_noise(images: Tensor, generator: Generator, sigma: float) -> tuple[Tensor, Tensor]:
    """Add Gaussian noise and scale back: (image + sigma * noise) / sqrt(1 + sigma^2) (arXiv 2205.11423).

    This keeps the variance of images of variance 1. Photos have 1.3 where an encoder is normalized by ImageNet's mean
    and deviation, and 0.26 with 0.5 and 0.5. The standard normal noise is returned too.
    """
    noise = _draw_normal(images, generator)
    return (images + sigma * noise) / math.sqrt(1 + sigma**2), noise


def hide_patches(
    images: Tensor,
    generator: Generator,
    patch_size: int,
    mask_ratio: float,
    *,
    fill: Literal["zero", "mean"] = "zero",
    difficulty: PatchDifficulty | None = None,
) -> Corrupted:
    """Hide the same number of square patches in every image, at places drawn for each image.

    A patch has a side of ``patch_size`` pixels, >= 1, or less at the right and lower edge. The share ``mask_ratio`` of
    them, in [0, 1), rounded to whole patches, is hidden; ``difficulty`` chooses some of these. Their pixels become
    ``zero``, about the mean of all images after normalization, or the ``mean`` of the visible pixels of the image:
    unlike in A2MIM (arXiv 2205.13943), which takes all pixels, nothing of the hidden ones reaches the network.
    SegaeError: nothing would be hidden, or the difficulty has another grid of patches.
    """
    batch, _, height, width = images.shape
    rows, columns = -(-height // patch_size), -(-width // patch_size)
    # one patch stays visible, or there would be nothing to reconstruct from
    count = min(round(mask_ratio * rows * columns), rows * columns - 1)
    if mask_ratio > 0 and count == 0:
        share = f"{mask_ratio:g} of the patches of a {height} x {width} px image"
        raise SegaeError(f"patch_size must be small enough to hide {share}, got {patch_size}")
    rank = torch.rand(batch, rows * columns, generator=generator, device=generator.device).argsort(dim=1)
    if difficulty is not None:
        rank = _difficult_first(rank, difficulty, (batch, rows, columns), count)
    grid = (rank < count).view(batch, 1, rows, columns).to(images.device, images.dtype)
    mask = spread_patches(grid, patch_size, height, width)
    filling = torch.zeros_like(images)
    if fill == "mean":
        visible = torch.where(mask > 0, 0.0, images.float()).sum(dim=(2, 3), keepdim=True)
        filling = (visible / (mask == 0).sum(dim=(2, 3), keepdim=True)).to(images.dtype)
    whole = height % patch_size == 0 and width % patch_size == 0
    left = VisiblePatches(patch_size, rows * columns - count) if whole else None
    return Corrupted(torch.where(mask == 0, images, filling), mask, visible=left)


def _difficult_first(rank: Tensor, difficulty: PatchDifficulty, shape: tuple[int, int, int], count: int) -> Tensor:
    """Rank the most difficult patches first, a fraction of ``count``, then the others as they were."""
    if difficulty.loss.shape != shape:
        raise SegaeError(f"loss must have the mask's shape {shape}, got {tuple(difficulty.loss.shape)}")
    loss = difficulty.loss.detach().flatten(1).to(rank.device)
    loss = torch.where(loss.isnan(), -torch.inf, loss)
    patch = rank.argsort(dim=1)  # the patch at each rank
    # sorted in random order and stably, so that chance decides between equal losses
    order = loss.gather(1, patch).argsort(dim=1, descending=True, stable=True)
    chosen = patch.gather(1, order[:, : round(difficulty.fraction * count)])
    lead = torch.zeros_like(rank).scatter(1, chosen, rank.shape[1])
    return (rank - lead).argsort(dim=1).argsort(dim=1)


# The corruptions below change some images of a batch, or each by another amount. All images are computed and the drawn
# ones kept, because asking a GPU which ones were drawn makes the program wait for it.


def remove_color(images: Tensor, generator: Generator, probability: float) -> Tensor:
    """Make some images gray, each with this probability: every channel becomes the luminance."""
    kept = _draw_uniform(images, generator) >= probability
    return torch.where(kept, images, luminance(images).expand_as(images))


def change_light(
    images: Tensor,
    generator: Generator,
    *,
    contrast: float = 0.3,
    saturation: float = 0.4,
    brightness: float = 0.5,
    tint: float = 0.2,
) -> Tensor:
    """Change contrast, saturation, brightness and tint of every image, each by an amount of its own.

    Contrast and saturation are the largest change, from 1, of the factor on the distance from the image's mean and on
    the channels' distance from the pixel's mean, in [0, 1]. Brightness and tint are the largest shift of all channels
    and of each by itself, in standard deviations of the image: no encoder's normalization changes their effect.
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = (images - mean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    contrast_factor = 1 + contrast * (2 * _draw_uniform(images, generator) - 1)
    saturation_factor = 1 + saturation * (2 * _draw_uniform(images, generator) - 1)
    shift = brightness * (2 * _draw_uniform(images, generator) - 1)
    shift = shift + tint * (2 * _draw_uniform(images, generator, images.shape[1]) - 1)
    gray = images.mean(dim=1, keepdim=True)
    mixed = gray + saturation_factor * (images - gray)
    return (mean + contrast_factor * (mixed - mean) + shift * deviation).to(images.dtype)


def blur(images: Tensor, generator: Generator, probability: float, sigmas: tuple[float, float]) -> Tensor:
    """Blur some images with a Gaussian, each with this probability and a width drawn between two sigmas in pixels.

    At the border the weights of the pixels inside are scaled to sum to 1, so an even image stays as it is.
    """
    kept = _draw_uniform(images, generator) >= probability
    low, high = sigmas
    sigma = (low + (high - low) * _draw_uniform(images, generator)).squeeze(3)
    rows, columns = (_gaussian(size, sigma) for size in images.shape[2:])
    return torch.where(kept, images, _resample(images, rows, columns))


def reduce_resolution(images: Tensor, generator: Generator, probability: float, factors: tuple[int, ...]) -> Tensor:
    """Shrink some images by one of the factors, averaging areas, and enlarge them again bilinearly."""
    kept = _draw_uniform(images, generator) >= probability
    choice = torch.randint(len(factors), (len(images),), generator=generator, device=generator.device).to(images.device)
    rows, columns = (
        torch.stack([_shrinking(size, factor, images.device) for factor in factors])[choice]
        for size in images.shape[2:]
    )
    return torch.where(kept, images, _resample(images, rows, columns))


def crop_with_mask(
    images: Tensor, masks: Tensor, generator: Generator, area: tuple[float, float] = (0.5, 1.0)
) -> Tensor:
    """Crop images and masks (B, 1, H, W) at the same random place and resize the crops to the size of the images.

    A crop keeps the aspect ratio; ``area`` is its smallest and largest share of the image's in (0, 1]. Returned are, in
    float32 (B, C + 1, H, W), the crop and, last, its mask in [0, 1], which resampling leaves between both at edges.
    """
    layered = torch.cat([images.float(), masks], dim=1)
    drawn = torch.rand(len(images), 3, generator=generator, device=generator.device).to(images.device)
    side = (area[0] + (area[1] - area[0]) * drawn[:, 0]).sqrt()
    matrix = torch.zeros(len(images), 2, 3, device=images.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = side
    matrix[:, :, 2] = (2 * drawn[:, 1:] - 1) * (1 - side).unsqueeze(1)
    places = functional.affine_grid(matrix, list(layered.shape), align_corners=False)
    return functional.grid_sample(layered, places, padding_mode="border", align_corners=False)


def _draw_normal(like: Tensor, generator: Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, device=generator.device)
    return drawn.to(like.device, like.dtype)


def _draw_uniform(images: Tensor, generator: Generator, numbers: int = 1) -> Tensor:
    """Draw numbers in [0, 1) for each image: (B, numbers, 1, 1)."""
    shape = (len(images), numbers, 1, 1)
    return torch.rand(shape, generator=generator, device=generator.device).to(images.device)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mix the rows and columns of each image by weights of its own: output i takes input j with weight (B, i, j)."""
    # two matrix products: unlike a convolution they take other weights for each image in one call
    with torch.autocast(images.device.type, enabled=False):
        mixed = torch.einsum("bij,bcjw->bciw", rows, images.float())
        mixed = torch.einsum("bij,bchj->bchi", columns, mixed)
    return mixed.to(images.dtype)


def _gaussian(size: int, sigma: Tensor) -> Tensor:
    """Weights (B, size, size) of a Gaussian blur; sigma (B, 1, 1)."""
    place = torch.arange(size, device=sigma.device)
    distance = (place[:, None] - place).float()
    return (-0.5 * (distance / sigma).square()).softmax(dim=2)


def _shrinking(size: int, factor: int, device: torch.device) -> Tensor:
    """Weights (size, size) of shrinking and enlarging: what these do to each pixel on its own."""
    pixels = torch.eye(size, device=device)[None]
    small = functional.interpolate(pixels, size=-(-size // factor), mode="area")
    return functional.interpolate(small, size=size, mode="linear", align_corners=False)[0].T
