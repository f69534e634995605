"""How a reconstruction is compared with the clean image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.patches import average_patches, spread_patches

Where = Literal["all", "hidden"]


class Reconstruction(Protocol):
    """Anything that scores a prediction against its target; smaller is better."""

    def out_channels(self, image_channels: int) -> int:
        """How many channels the decoder has to give for images of `image_channels` channels."""
        ...

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Return a scalar loss; hidden_b1hw is 1 where the input was hidden, or None."""
        ...


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean squared difference, over all pixels or over hidden ones only.

    Attributes:
        where: `all`, or `hidden`: visible pixels then have no influence, as in MAE (arXiv 2111.06377).
    """

    where: Where = "all"

    def __post_init__(self) -> None:
        check_where(self.where)

    def out_channels(self, image_channels: int) -> int:
        """As many as the image has."""
        return image_channels

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Compare two batches (B, C, H, W); hidden_b1hw is 1 where the input was hidden."""
        check_shape(prediction_bchw, target_bchw)
        error_bchw = (prediction_bchw.float() - target_bchw.float()).square()
        return mean_where(error_bchw, hidden_b1hw, self.where)


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean absolute difference, over all pixels or over hidden ones only; less drawn to the mean colour.

    Attributes:
        where: `all`, or `hidden`: visible pixels then have no influence, as in SimMIM (arXiv 2111.09886).
    """

    where: Where = "all"

    def __post_init__(self) -> None:
        check_where(self.where)

    def out_channels(self, image_channels: int) -> int:
        """As many as the image has."""
        return image_channels

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Compare two batches (B, C, H, W); hidden_b1hw is 1 where the input was hidden."""
        check_shape(prediction_bchw, target_bchw)
        error_bchw = (prediction_bchw.float() - target_bchw.float()).abs()
        return mean_where(error_bchw, hidden_b1hw, self.where)


@dataclass(frozen=True)
class PatchNormalisedError:
    """Mean squared difference to the target with every patch normalised, as in MAE and SparK.

    Brightness and contrast of a patch are taken away, so that structure decides the loss (arXiv 2111.06377,
    2301.03580).

    Attributes:
        patch: Side of a patch in pixels, 1 or more; normally the mask's.
        where: `hidden`, or `all` pixels.

    Raises:
        SegaeError: A value out of its range.
    """

    patch: int
    where: Where = "hidden"

    def __post_init__(self) -> None:
        check_where(self.where)
        if self.patch < 1:
            raise SegaeError(f"patch of the target is {self.patch} px; 1 or more is wanted. Try 16 or 32.")

    def out_channels(self, image_channels: int) -> int:
        """As many as the image has."""
        return image_channels

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Compare two batches (B, C, H, W); hidden_b1hw is 1 where the input was hidden."""
        check_shape(prediction_bchw, target_bchw)
        error_bchw = (prediction_bchw.float() - normalise_patches(target_bchw, self.patch)).square()
        return mean_where(error_bchw, hidden_b1hw, self.where)


def normalise_patches(image_bchw: Tensor, patch: int) -> Tensor:
    """Give every patch mean 0 and variance 1 over its pixels and channels, in float32; an even patch becomes 0."""
    image_bchw = image_bchw.float()
    height, width = image_bchw.shape[2:]
    mean_b1rc = average_patches(image_bchw.mean(dim=1, keepdim=True), patch)
    centred_bchw = image_bchw - spread_patches(mean_b1rc, patch, height, width)
    variance_b1rc = average_patches(centred_bchw.square().mean(dim=1, keepdim=True), patch)
    return centred_bchw * spread_patches((variance_b1rc + 1e-6).rsqrt(), patch, height, width)


def check_where(where: str) -> None:
    """Refuse a place that a loss cannot look at."""
    if where not in ("all", "hidden"):
        raise SegaeError(f'a loss over "{where}" pixels is not known. Use all or hidden.')


def check_shape(prediction_bchw: Tensor, target_bchw: Tensor, more_channels: int = 0) -> None:
    """Refuse a prediction that is not shaped like the target (with more channels): it would be broadcast unseen."""
    batch, channels, height, width = target_bchw.shape
    wanted = (batch, channels + more_channels, height, width)
    if prediction_bchw.shape != wanted:
        raise SegaeError(
            f"the prediction has shape {tuple(prediction_bchw.shape)}; {wanted} is wanted. "
            "Build the decoder with as many channels as the objective's reconstruction.out_channels says."
        )


def mean_where(error_bchw: Tensor, hidden_b1hw: Tensor | None, where: Where) -> Tensor:
    """Mean over all pixels or over hidden ones only."""
    if where == "all":
        return error_bchw.mean()
    if hidden_b1hw is None:
        raise SegaeError(
            "the loss is asked over hidden pixels, but the corruption hides none. "
            "Use where=all, or a corruption that hides pixels, such as PatchMask."
        )
    # where, not a product: an infinite error at a visible pixel times 0 would be NaN
    hidden_error_bchw = torch.where(hidden_b1hw > 0, error_bchw, 0.0)
    count = hidden_b1hw.float().sum() * error_bchw.shape[1]
    return hidden_error_bchw.sum() / count.clamp(min=1)
