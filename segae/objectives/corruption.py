"""What is done to the input of an autoencoder before it has to give the clean image back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from segae.errors import SegaeError


@dataclass(frozen=True)
class Corrupted:
    """A corrupted batch.

    Attributes:
        image_bchw: What the autoencoder sees, in normalised image space.
        hidden_b1hw: 1 = hidden from the autoencoder, 0 = visible; None where nothing is hidden as a whole.
    """

    image_bchw: Tensor
    hidden_b1hw: Tensor | None


class Corruption(Protocol):
    """Anything that corrupts a batch with the randomness of the given generator and no other."""

    def __call__(self, image_bchw: Tensor, generator: torch.Generator) -> Corrupted:
        """Corrupt normalised images (B, C, H, W); the input tensor itself is left as it is."""
        ...


@dataclass(frozen=True)
class Identity:
    """No corruption: the plain autoencoder."""

    def __call__(self, image_bchw: Tensor, generator: torch.Generator) -> Corrupted:  # noqa: ARG002
        """Return the images as they are."""
        return Corrupted(image_bchw, None)


@dataclass(frozen=True)
class GaussianNoise:
    """Add independent Gaussian noise to every value, as in the denoising autoencoder.

    Attributes:
        sigma: Standard deviation in normalised image space, above 0.

    Raises:
        SegaeError: sigma is not above 0.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise SegaeError(
                f"noise sigma is {self.sigma}; a number above 0 is wanted, in units of the normalised image. "
                "Try 0.25, or objective reconstruct for no noise."
            )

    def __call__(self, image_bchw: Tensor, generator: torch.Generator) -> Corrupted:
        """Add noise to normalised images (B, C, H, W)."""
        noise_bchw = _normal(image_bchw, generator)
        return Corrupted(image_bchw + self.sigma * noise_bchw, None)


@dataclass(frozen=True)
class PatchMask:
    """Hide a fixed share of square patches, other ones in every image.

    Where the image is no multiple of the patch, the patches at its right and lower edge are smaller.

    Attributes:
        patch: Side of a patch in pixels, 1 or more.
        ratio: Share of the patches that is hidden, in [0, 1); rounded to whole patches.
        fill: `zero` (the mean colour, in normalised image space) or `noise` (standard normal values).

    Raises:
        SegaeError: A value out of its range.
    """

    patch: int
    ratio: float
    fill: Literal["zero", "noise"] = "zero"

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise SegaeError(f"mask patch is {self.patch} px; 1 or more is wanted. Try 16 or 32.")
        if not 0 <= self.ratio < 1:
            raise SegaeError(f"mask ratio is {self.ratio}; a share in [0, 1) is wanted. Try 0.6.")
        if self.fill not in ("zero", "noise"):
            raise SegaeError(f'mask fill "{self.fill}" is not known. Use zero or noise.')

    def __call__(self, image_bchw: Tensor, generator: torch.Generator) -> Corrupted:
        """Hide patches of normalised images (B, C, H, W)."""
        hidden_b1hw = self._draw(image_bchw, generator)
        fill = torch.zeros_like(image_bchw) if self.fill == "zero" else _normal(image_bchw, generator)
        return Corrupted(torch.where(hidden_b1hw > 0, fill, image_bchw), hidden_b1hw)

    def _draw(self, image_bchw: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the mask (B, 1, H, W); 1 = hidden, 0 = visible."""
        batch, _, height, width = image_bchw.shape
        rows, columns = -(-height // self.patch), -(-width // self.patch)
        # one patch stays visible, or there would be nothing to reconstruct from
        count = min(round(self.ratio * rows * columns), rows * columns - 1)
        if self.ratio > 0 and count == 0:
            raise SegaeError(
                f"mask ratio {self.ratio} of {rows * columns} patches of {self.patch} px in an image of "
                f"{height} x {width} px hides nothing. Use a smaller patch or a larger ratio."
            )
        order = torch.rand(batch, rows * columns, generator=generator, device=generator.device).argsort(dim=1)
        grid_b1hw = (order < count).view(batch, 1, rows, columns).to(image_bchw.device, image_bchw.dtype)
        mask_b1hw = grid_b1hw.repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)
        return mask_b1hw[:, :, :height, :width]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal values drawn where the generator lives, so a CPU generator serves any device."""
    drawn = torch.randn(like.shape, generator=generator, device=generator.device)
    return drawn.to(like.device, like.dtype)
