"""A loss that looks at the image's spectrum too, after A2MIM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.reconstruction import Where, check_shape, check_where, mean_where


@dataclass(frozen=True)
class FrequencyError:
    """Mean absolute difference of pixels plus a focal frequency loss, as in A2MIM (arXiv 2205.13943).

    A mean over pixels is content with blur; the second term asks for the frequencies that are furthest off
    (arXiv 2012.12821). Over hidden pixels, the spectrum is that of the image with the prediction put in its holes.

    Attributes:
        weight: Of the frequency term, 0 or more.
        where: `hidden`, or `all` pixels.

    Raises:
        SegaeError: A value out of its range.
    """

    weight: float = 0.5
    where: Where = "hidden"

    def __post_init__(self) -> None:
        check_where(self.where)
        if not 0 <= self.weight < float("inf"):
            raise SegaeError(f"weight of the frequency term is {self.weight}; 0 or more is wanted. Try 0.5.")

    def out_channels(self, image_channels: int) -> int:
        """As many as the image has."""
        return image_channels

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Compare two batches (B, C, H, W); hidden_b1hw is 1 where the input was hidden."""
        check_shape(prediction_bchw, target_bchw)
        difference_bchw = prediction_bchw.float() - target_bchw.float()
        loss = mean_where(difference_bchw.abs(), hidden_b1hw, self.where)
        if self.where == "hidden" and hidden_b1hw is not None:  # mean_where refused None
            difference_bchw = torch.where(hidden_b1hw > 0, difference_bchw, 0.0)
        return loss + self.weight * focal_frequency(difference_bchw)


def focal_frequency(difference_bchw: Tensor) -> Tensor:
    """Focal frequency loss (arXiv 2012.12821, exponent 1) of two images with this difference, a scalar.

    The Fourier transform is linear, so that of the difference is the difference of the two. Its scale keeps the sum of
    squares, so the unweighted mean would be the mean squared error of the pixels.
    """
    spectrum_bchw = torch.fft.fft2(difference_bchw.float(), norm="ortho")
    squared_bchw = spectrum_bchw.real.square() + spectrum_bchw.imag.square()
    with torch.no_grad():  # the weight chooses frequencies and is nothing to be made small
        distance_bchw = squared_bchw.sqrt()
        tiny = torch.finfo(distance_bchw.dtype).tiny  # an equal image has nothing to divide by
        weight_bchw = distance_bchw / distance_bchw.amax(dim=(2, 3), keepdim=True).clamp(min=tiny)
    return (weight_bchw * squared_bchw).mean()
