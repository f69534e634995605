"""Masks that follow the loss: measure which patches are hard to fill in, and how much the mask heeds it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.corruption import PatchMask
from segae.objectives.patches import average_patches
from segae.objectives.reconstruction import PatchNormalisedError, normalise_patches


def mask_patch(corruption: Any) -> int:
    """Side in pixels of the patches that a corruption hides, also where a mixture holds the mask.

    Raises:
        SegaeError: it hides no patches, or patches of several sizes.
    """
    sizes = {mask.patch for mask in _masks_in(corruption)}
    if len(sizes) == 1:
        return sizes.pop()
    found = f"hides patches of {sorted(sizes)} px" if sizes else "hides no patches"
    raise SegaeError(
        f"hard_mask_share asks for masks that follow the loss, but the corruption {type(corruption).__name__} {found}; "
        f"one patch size is wanted. Use --objective mask, or --hard-mask-share 0."
    )


def _masks_in(corruption: Any) -> list[PatchMask]:
    if isinstance(corruption, PatchMask):
        return [corruption]
    if isinstance(corruption, (list, tuple)):
        return [mask for part in corruption for mask in _masks_in(part)]
    if dataclasses.is_dataclass(corruption):
        return _masks_in([getattr(corruption, field.name) for field in dataclasses.fields(corruption)])
    return []


def share_at(epoch: int, epochs: int, last: float) -> float:
    """Share of the mask that follows the loss: from 0 in the first epoch in a straight line to ``last``.

    Easy first: early losses say more about the network than about the image.

    Args:
        epoch: counted from 0.
        epochs: of the whole training; a single one gets ``last``.
        last: the share in the last epoch, in [0, 1].
    """
    return last * min(epoch / (epochs - 1), 1.0) if epochs > 1 else last


def patch_errors(error_bchw: Tensor, hidden_b1hw: Tensor, patch: int) -> Tensor:
    """Mean error of every hidden patch.

    Args:
        error_bchw: an error for each value, (B, C, H, W).
        hidden_b1hw: 1 = hidden, 0 = visible; whole patches.
        patch: side of a patch in pixels; patches at the right and lower edge may be smaller.

    Returns:
        float32 (B, rows, columns), NaN for visible patches: nothing had to be filled in there.
    """
    mean_b1rc = average_patches(error_bchw.float().mean(dim=1, keepdim=True), patch)
    hidden_b1rc = average_patches(hidden_b1hw.float(), patch)
    return torch.where(hidden_b1rc > 0, mean_b1rc, float("nan"))[:, 0]


def squared_error(reconstruction: Any, prediction_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """Squared difference of each value, (B, C, H, W) float32: the judge of hardness for every loss.

    Where the loss looks at normalised patches this does too; further channels than the target's are left out.
    """
    target_bchw = target_bchw.float()
    if isinstance(reconstruction, PatchNormalisedError):
        target_bchw = normalise_patches(target_bchw, reconstruction.patch)
    return (prediction_bchw[:, : target_bchw.shape[1]].float() - target_bchw).square()
