"""The named objectives: each a corruption of the input and a comparison of the output."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from segae.errors import SegaeError
from segae.objectives.corruption import Corruption, GaussianNoise, Identity, PatchMask
from segae.objectives.reconstruction import MeanSquaredError, Reconstruction

OBJECTIVES = ("reconstruct", "denoise", "mask")


@dataclass(frozen=True)
class Objective:
    """What an autoencoder is asked to do: undo `corruption`, judged by `reconstruction`.

    Attributes:
        name: Name of the preset, or your own.
        corruption: Called with the clean images and a generator.
        reconstruction: Called with prediction, clean images and the hidden mask.
    """

    name: str
    corruption: Corruption
    reconstruction: Reconstruction


def make_objective(name: str, *, noise_sigma: float, patch: int, mask_ratio: float) -> Objective:
    """Build a named objective; values that it does not use are ignored.

    `reconstruct` gives back the clean image. `denoise` removes Gaussian noise. `mask` paints in hidden
    patches and is judged there only.

    Args:
        name: One of `OBJECTIVES`.
        noise_sigma: For `denoise`: standard deviation in normalised image space, above 0.
        patch: For `mask`: side of a hidden patch in pixels.
        mask_ratio: For `mask`: share of the patches that is hidden, in (0, 1).

    Raises:
        SegaeError: The name is unknown or a value that it uses is out of range.
    """
    if name == "reconstruct":
        return Objective(name, Identity(), MeanSquaredError())
    if name == "denoise":
        return Objective(name, GaussianNoise(noise_sigma), MeanSquaredError())
    if name == "mask":
        if mask_ratio == 0:
            raise SegaeError("mask ratio is 0: objective mask would have nothing to judge. Try 0.6, or reconstruct.")
        return Objective(name, PatchMask(patch, mask_ratio), MeanSquaredError(where="hidden"))
    close = difflib.get_close_matches(name, OBJECTIVES, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise SegaeError(f'objective "{name}" is not known. {hint}Use one of {", ".join(OBJECTIVES)}.')
