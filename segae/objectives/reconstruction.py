"""How a reconstruction is compared with the clean image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from segae.errors import SegaeError

Where = Literal["all", "hidden"]


class Reconstruction(Protocol):
    """Anything that scores a prediction against the clean image; smaller is better."""

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
        _check_where(self.where)

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Compare two batches (B, C, H, W); hidden_b1hw is 1 where the input was hidden."""
        error_bchw = (prediction_bchw.float() - target_bchw.float()).square()
        return _mean(error_bchw, hidden_b1hw, self.where)


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean absolute difference, over all pixels or over hidden ones only; less drawn to the mean colour.

    Attributes:
        where: `all`, or `hidden`: visible pixels then have no influence, as in SimMIM (arXiv 2111.09886).
    """

    where: Where = "all"

    def __post_init__(self) -> None:
        _check_where(self.where)

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:
        """Compare two batches (B, C, H, W); hidden_b1hw is 1 where the input was hidden."""
        error_bchw = (prediction_bchw.float() - target_bchw.float()).abs()
        return _mean(error_bchw, hidden_b1hw, self.where)


def _check_where(where: str) -> None:
    if where not in ("all", "hidden"):
        raise SegaeError(f'a loss over "{where}" pixels is not known. Use all or hidden.')


def _mean(error_bchw: Tensor, hidden_b1hw: Tensor | None, where: Where) -> Tensor:
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
