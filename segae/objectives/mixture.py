"""Several corruptions in one: the network has to undo them all at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.corruption import Corrupted, Corruption, Hardness


@dataclass(frozen=True)
class Mixture:
    """Corruptions applied one after another; mixing beat every single one in Models Genesis (arXiv 2004.07882).

    What any part hides is hidden; the target is the clean image. Put a mask first: a blur before it would carry a
    little of what it hides to its visible neighbours.

    Attributes:
        parts: Corruptions in the order in which they are applied, one or more.

    Raises:
        SegaeError: There is no part, or, when called, a part has another target than the clean image.
    """

    parts: tuple[Corruption, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SegaeError("the mixture has no parts; one or more corruptions are wanted. Use Identity for none.")

    def __call__(self, image_bchw: Tensor, generator: torch.Generator, hardness: Hardness | None = None) -> Corrupted:
        """Apply every part to normalised images (B, C, H, W); a mask among them gets `hardness`."""
        hidden_b1hw: Tensor | None = None
        for part in self.parts:
            corrupted = part(image_bchw, generator, hardness)
            if corrupted.target_bchw is not None:
                raise SegaeError(
                    f"{part} asks for another target than the clean image; a mixture has one target only. "
                    'Use it alone, or ScaledNoise(..., predict="image").'
                )
            image_bchw = corrupted.image_bchw
            hidden_b1hw = _join(hidden_b1hw, corrupted.hidden_b1hw)
        return Corrupted(image_bchw, hidden_b1hw)


def _join(first_b1hw: Tensor | None, second_b1hw: Tensor | None) -> Tensor | None:
    """Hidden in either."""
    if first_b1hw is None or second_b1hw is None:
        return first_b1hw if second_b1hw is None else second_b1hw
    return torch.maximum(first_b1hw, second_b1hw)
