"""Corruptions that take something from the images, from some or all: colour, light, sharpness, resolution.

Each image is drawn on its own. All images are computed and the drawn ones kept, because asking a GPU which ones were
drawn makes the program wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.objectives.corruption import Corrupted, Hardness
from segae.objectives.luminance import luminance


@dataclass(frozen=True)
class ColourRemoval:
    """Make some images grey: every channel becomes the luminance of the normalised image.

    Attributes:
        probability: Of an image to become grey, in [0, 1].

    Raises:
        SegaeError: The probability is out of its range.
    """

    probability: float

    def __post_init__(self) -> None:
        _check_probability(self.probability, "colour removal")

    def __call__(
        self,
        image_bchw: Tensor,
        generator: torch.Generator,
        hardness: Hardness | None = None,  # noqa: ARG002
    ) -> Corrupted:
        """Remove the colour of normalised images (B, C, H, W)."""
        kept_b111 = _uniform(image_bchw, generator) >= self.probability
        grey_bchw = luminance(image_bchw).expand_as(image_bchw)
        return Corrupted(torch.where(kept_b111, image_bchw, grey_bchw))


@dataclass(frozen=True)
class LightChange:
    """Change contrast, saturation, brightness and tint of every image, each with numbers of its own.

    Contrast is a factor on the distance from the image's mean, saturation one on the distance of the channels from the
    pixel's mean. Brightness moves all channels, tint each by itself, in units of the image's standard deviation; so it
    does not matter by what an encoder normalises.

    Attributes:
        contrast: Largest change of its factor from 1, in [0, 1].
        saturation: The same.
        brightness: Largest shift of all channels, 0 or more.
        tint: Largest shift of a channel, 0 or more.

    Raises:
        SegaeError: A value out of its range.
    """

    contrast: float = 0.3
    saturation: float = 0.4
    brightness: float = 0.5
    tint: float = 0.2

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise SegaeError(f"change of {name} is {getattr(self, name)}; a number in [0, 1] is wanted. Try 0.3.")
        for name in ("brightness", "tint"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SegaeError(f"change of {name} is {getattr(self, name)}; 0 or more is wanted. Try 0.3.")

    def __call__(
        self,
        image_bchw: Tensor,
        generator: torch.Generator,
        hardness: Hardness | None = None,  # noqa: ARG002
    ) -> Corrupted:
        """Change the light of normalised images (B, C, H, W)."""
        mean_b111 = image_bchw.mean(dim=(1, 2, 3), keepdim=True)
        deviation_b111 = (image_bchw - mean_b111).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        contrast_b111 = 1 + self.contrast * (2 * _uniform(image_bchw, generator) - 1)
        saturation_b111 = 1 + self.saturation * (2 * _uniform(image_bchw, generator) - 1)
        shift_bc11 = self.brightness * (2 * _uniform(image_bchw, generator) - 1)
        shift_bc11 = shift_bc11 + self.tint * (2 * _uniform(image_bchw, generator, image_bchw.shape[1]) - 1)
        grey_b1hw = image_bchw.mean(dim=1, keepdim=True)
        mixed_bchw = grey_b1hw + saturation_b111 * (image_bchw - grey_b1hw)
        changed_bchw = mean_b111 + contrast_b111 * (mixed_bchw - mean_b111) + shift_bc11 * deviation_b111
        return Corrupted(changed_bchw.to(image_bchw.dtype))


@dataclass(frozen=True)
class Blur:
    """Blur some images with a Gaussian, each with a width of its own.

    At the border the weights of the pixels inside are scaled to sum to one, so an even image stays as it is.

    Attributes:
        probability: Of an image to be blurred, in [0, 1].
        sigmas: Smallest and largest standard deviation in pixels, above 0; drawn evenly between them.

    Raises:
        SegaeError: A value out of its range.
    """

    probability: float
    sigmas: tuple[float, float]

    def __post_init__(self) -> None:
        _check_probability(self.probability, "blur")
        if not 0 < self.sigmas[0] <= self.sigmas[1] < float("inf"):
            raise SegaeError(
                f"blur sigmas are {self.sigmas}; two numbers of pixels above 0 are wanted. Try (0.5, 2.0)."
            )

    def __call__(
        self,
        image_bchw: Tensor,
        generator: torch.Generator,
        hardness: Hardness | None = None,  # noqa: ARG002
    ) -> Corrupted:
        """Blur normalised images (B, C, H, W)."""
        kept_b111 = _uniform(image_bchw, generator) >= self.probability
        low, high = self.sigmas
        sigma_b11 = (low + (high - low) * _uniform(image_bchw, generator)).squeeze(3)
        rows_bij, columns_bij = (_gaussian(size, sigma_b11) for size in image_bchw.shape[2:])
        return Corrupted(torch.where(kept_b111, image_bchw, _resample(image_bchw, rows_bij, columns_bij)))


@dataclass(frozen=True)
class Shrink:
    """Take the resolution of some images: shrink by averaging areas, grow back bilinearly.

    Attributes:
        probability: Of an image to be shrunk, in [0, 1].
        factors: How many times smaller, 2 or more; each image draws one of them.

    Raises:
        SegaeError: A value out of its range.
    """

    probability: float
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_probability(self.probability, "shrink")
        if not self.factors or min(self.factors) < 2:
            raise SegaeError(f"shrink factors are {self.factors}; whole numbers of 2 or more are wanted. Try (2, 4).")

    def __call__(
        self,
        image_bchw: Tensor,
        generator: torch.Generator,
        hardness: Hardness | None = None,  # noqa: ARG002
    ) -> Corrupted:
        """Shrink normalised images (B, C, H, W) and grow them back to (B, C, H, W)."""
        kept_b111 = _uniform(image_bchw, generator) >= self.probability
        batch, device = len(image_bchw), generator.device
        choice_b = torch.randint(len(self.factors), (batch,), generator=generator, device=device).to(image_bchw.device)
        rows_bij, columns_bij = (
            torch.stack([_shrinking(size, factor, image_bchw.device) for factor in self.factors])[choice_b]
            for size in image_bchw.shape[2:]
        )
        return Corrupted(torch.where(kept_b111, image_bchw, _resample(image_bchw, rows_bij, columns_bij)))


def _uniform(image_bchw: Tensor, generator: torch.Generator, numbers: int = 1) -> Tensor:
    """Numbers in [0, 1) for each image (B, numbers, 1, 1), drawn where the generator lives."""
    shape = (len(image_bchw), numbers, 1, 1)
    return torch.rand(shape, generator=generator, device=generator.device).to(image_bchw.device)


def _check_probability(probability: float, what: str) -> None:
    if not 0 <= probability <= 1:
        raise SegaeError(f"probability of {what} is {probability}; a number in [0, 1] is wanted. Try 0.3.")


def _resample(image_bchw: Tensor, rows_bij: Tensor, columns_bij: Tensor) -> Tensor:
    """Mix the rows and the columns of each image by its own weights: output i takes input j with weight (B, i, j).

    Two matrix products: unlike a convolution they take other weights for each image in one call.
    """
    with torch.autocast(image_bchw.device.type, enabled=False):
        mixed_bchw = torch.einsum("bij,bcjw->bciw", rows_bij, image_bchw.float())
        mixed_bchw = torch.einsum("bij,bchj->bchi", columns_bij, mixed_bchw)
    return mixed_bchw.to(image_bchw.dtype)


def _gaussian(size: int, sigma_b11: Tensor) -> Tensor:
    """Weights (B, size, size) of a Gaussian blur."""
    place = torch.arange(size, device=sigma_b11.device)
    distance_ij = (place[:, None] - place).float()
    return (-0.5 * (distance_ij / sigma_b11).square()).softmax(dim=2)


def _shrinking(size: int, factor: int, device: torch.device) -> Tensor:
    """Weights (size, size) of shrinking and growing: what these do to each pixel on its own."""
    pixels_1ji = torch.eye(size, device=device)[None]
    small_1js = functional.interpolate(pixels_1ji, size=-(-size // factor), mode="area")
    return functional.interpolate(small_1js, size=size, mode="linear", align_corners=False)[0].T
