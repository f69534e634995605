"""What is done to the input of an autoencoder before it has to give the clean image back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.patches import VisiblePatches, grid_size, spread_patches


@dataclass(frozen=True)
class Corrupted:
    """A corrupted batch.

    Attributes:
        image_bchw: What the autoencoder sees, in normalised image space.
        hidden_b1hw: 1 = hidden from the autoencoder, 0 = visible; None where nothing is hidden as a whole.
        target_bchw: What it has to give back; None where that is the clean image.
        visible: What the mask leaves of every image, for whoever would have to wait for a GPU to count it; None where
            whole patches of one side are not hidden, or not as many in every image.
    """

    image_bchw: Tensor
    hidden_b1hw: Tensor | None = None
    target_bchw: Tensor | None = None
    visible: VisiblePatches | None = None


@dataclass(frozen=True)
class Hardness:
    """Which patches were hard so far, for masks that prefer them (arXiv 2512.06981).

    Attributes:
        loss_brc: Reconstruction error of each patch (B, rows, columns); NaN = unknown, counts as lowest.
        share: Share of the hidden patches that is chosen by it, in [0, 1]; the others are drawn at random.

    Raises:
        SegaeError: A value out of its range.
    """

    loss_brc: Tensor
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SegaeError(f"hardness share is {self.share}; a share in [0, 1] is wanted. Try 0.5.")
        if self.loss_brc.dim() != 3:
            raise SegaeError(
                f"hardness has shape {tuple(self.loss_brc.shape)}; (images, rows, columns) of patches is wanted. "
                "average_patches(error, patch) followed by .mean(dim=1) gives it."
            )


class Corruption(Protocol):
    """Anything that corrupts a batch with the randomness of the given generator and no other."""

    def __call__(self, image_bchw: Tensor, generator: torch.Generator, hardness: Hardness | None = None) -> Corrupted:
        """Corrupt normalised images (B, C, H, W); the input tensor itself is left as it is.

        The generator may live on another device than the images. Only masks look at `hardness`.
        """
        ...


@dataclass(frozen=True)
class Identity:
    """No corruption: the plain autoencoder."""

    def __call__(
        self,
        image_bchw: Tensor,
        generator: torch.Generator,  # noqa: ARG002
        hardness: Hardness | None = None,  # noqa: ARG002
    ) -> Corrupted:
        """Return the images as they are."""
        return Corrupted(image_bchw)


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
        _check_sigma(self.sigma)

    def __call__(
        self,
        image_bchw: Tensor,
        generator: torch.Generator,
        hardness: Hardness | None = None,  # noqa: ARG002
    ) -> Corrupted:
        """Add noise to normalised images (B, C, H, W)."""
        return Corrupted(image_bchw + self.sigma * draw_normal(image_bchw, generator))


@dataclass(frozen=True)
class ScaledNoise:
    """Add Gaussian noise and scale back to the variance of the image, as in decoder denoising (arXiv 2205.11423).

    The input is (image + sigma * noise) / sqrt(1 + sigma^2), which keeps the variance of images that have 1. Photos
    have 1.3 where an encoder is normalised by ImageNet's mean and deviation, and 0.26 with 0.5 and 0.5, as
    tf_efficientnet_lite0 is.

    Attributes:
        sigma: Standard deviation of the noise in normalised image space, above 0; the paper's is 0.22.
        predict: `noise`: the target is the standard normal noise; `image`: it is the clean image.

    Raises:
        SegaeError: A value out of its range.
    """

    sigma: float
    predict: Literal["noise", "image"] = "noise"

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)
        if self.predict not in ("noise", "image"):
            raise SegaeError(f'"{self.predict}" cannot be predicted from a noisy image. Use noise or image.')

    def __call__(
        self,
        image_bchw: Tensor,
        generator: torch.Generator,
        hardness: Hardness | None = None,  # noqa: ARG002
    ) -> Corrupted:
        """Add noise to normalised images (B, C, H, W)."""
        noise_bchw = draw_normal(image_bchw, generator)
        noisy_bchw = (image_bchw + self.sigma * noise_bchw) / math.sqrt(1 + self.sigma**2)
        return Corrupted(noisy_bchw, target_bchw=noise_bchw if self.predict == "noise" else None)


@dataclass(frozen=True)
class PatchMask:
    """Hide a fixed share of square patches, other ones in every image.

    Where the image is no multiple of the patch, the patches at its right and lower edge are smaller.

    Attributes:
        patch: Side of a patch in pixels, 1 or more.
        ratio: Share of the patches that is hidden, in [0, 1); rounded to whole patches.
        fill: `zero` (the colour that the encoder's normalisation subtracts: about the mean of all images), `mean` (the
            mean colour of this image) or `noise` (standard normal values). A2MIM (arXiv 2205.13943) fills with the mean
            of the whole image; here it is the mean of the visible pixels, so that nothing of the hidden ones reaches
            the network.

    Raises:
        SegaeError: A value out of its range.
    """

    patch: int
    ratio: float
    fill: Literal["zero", "mean", "noise"] = "zero"

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise SegaeError(f"mask patch is {self.patch} px; 1 or more is wanted. Try 16 or 32.")
        if not 0 <= self.ratio < 1:
            raise SegaeError(f"mask ratio is {self.ratio}; a share in [0, 1) is wanted. Try 0.6.")
        if self.fill not in ("zero", "mean", "noise"):
            raise SegaeError(f'mask fill "{self.fill}" is not known. Use zero, mean or noise.')

    def __call__(self, image_bchw: Tensor, generator: torch.Generator, hardness: Hardness | None = None) -> Corrupted:
        """Hide patches of normalised images (B, C, H, W); every image hides the same number of them.

        With `hardness`, its share of the hidden patches are the image's hardest ones.
        """
        hidden_b1hw, visible = self._draw(image_bchw, generator, hardness)
        fill_bchw = self._fill(image_bchw, hidden_b1hw, generator)
        return Corrupted(torch.where(hidden_b1hw == 0, image_bchw, fill_bchw), hidden_b1hw, visible=visible)

    def _draw(
        self, image_bchw: Tensor, generator: torch.Generator, hardness: Hardness | None
    ) -> tuple[Tensor, VisiblePatches | None]:
        """Draw the mask (B, 1, H, W); 1 = hidden, 0 = visible. And what it leaves, if all patches are whole."""
        batch, _, height, width = image_bchw.shape
        rows, columns = grid_size(height, width, self.patch)
        # one patch stays visible, or there would be nothing to reconstruct from
        count = min(round(self.ratio * rows * columns), rows * columns - 1)
        if self.ratio > 0 and count == 0:
            raise SegaeError(
                f"mask ratio {self.ratio} of {rows * columns} patches of {self.patch} px in an image of "
                f"{height} x {width} px hides nothing. Use a smaller patch or a larger ratio."
            )
        rank_bn = torch.rand(batch, rows * columns, generator=generator, device=generator.device).argsort(dim=1)
        if hardness is not None:
            rank_bn = _hardest_first(rank_bn, hardness, (batch, rows, columns), count)
        grid_b1rc = (rank_bn < count).view(batch, 1, rows, columns).to(image_bchw.device, image_bchw.dtype)
        whole = height % self.patch == 0 and width % self.patch == 0
        visible = VisiblePatches(self.patch, rows * columns - count) if whole else None
        return spread_patches(grid_b1rc, self.patch, height, width), visible

    def _fill(self, image_bchw: Tensor, hidden_b1hw: Tensor, generator: torch.Generator) -> Tensor:
        """What stands in hidden patches, broadcastable to (B, C, H, W)."""
        if self.fill == "noise":
            return draw_normal(image_bchw, generator)
        if self.fill == "zero":
            return torch.zeros_like(image_bchw)
        visible_bchw = torch.where(hidden_b1hw > 0, 0.0, image_bchw.float())
        count_b111 = (hidden_b1hw == 0).sum(dim=(2, 3), keepdim=True)
        return (visible_bchw.sum(dim=(2, 3), keepdim=True) / count_b111).to(image_bchw.dtype)


def draw_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal values drawn where the generator lives, so a CPU generator serves any device."""
    drawn = torch.randn(like.shape, generator=generator, device=generator.device)
    return drawn.to(like.device, like.dtype)


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < float("inf"):
        raise SegaeError(
            f"noise sigma is {sigma}; a number above 0 is wanted, in units of the normalised image. "
            "Try 0.25, or objective reconstruct for no noise."
        )


def _hardest_first(rank_bn: Tensor, hardness: Hardness, shape: tuple[int, int, int], count: int) -> Tensor:
    """New ranks: the hardest patches first, as many as the share of `count` says, then the others as they were."""
    if hardness.loss_brc.shape != shape:
        raise SegaeError(
            f"hardness has shape {tuple(hardness.loss_brc.shape)}, but the mask has {shape} (images, rows, columns). "
            "Average the loss over patches of the mask's own size."
        )
    loss_bn = hardness.loss_brc.detach().flatten(1).to(rank_bn.device)
    loss_bn = torch.where(loss_bn.isnan(), -torch.inf, loss_bn)
    patch_bn = rank_bn.argsort(dim=1)  # the patch at each rank
    # sorted in random order and stably, so that chance decides between equal losses
    hardest_bn = loss_bn.gather(1, patch_bn).argsort(dim=1, descending=True, stable=True)
    chosen_bn = patch_bn.gather(1, hardest_bn[:, : round(hardness.share * count)])
    lead_bn = torch.zeros_like(rank_bn).scatter(1, chosen_bn, rank_bn.shape[1])
    return (rank_bn - lead_bn).argsort(dim=1).argsort(dim=1)
