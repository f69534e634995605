"""Arrays for the eye: masks in colour, masks over images, normalised images as they were."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from segae.errors import SegaeError

Colour = tuple[int, int, int]


def colour_mask(mask_hw: NDArray[np.integer], palette: Sequence[Colour]) -> NDArray[np.uint8]:
    """Paint each class index in its colour.

    Args:
        mask_hw: class indices in ``[0, len(palette))``, (H, W).
        palette: red, green, blue in 0-255 of each class.

    Returns:
        uint8 (H, W, 3).

    Raises:
        SegaeError: a value has no colour.
    """
    if mask_hw.size and (mask_hw.min() < 0 or mask_hw.max() >= len(palette)):
        raise SegaeError(
            f"The mask holds values from {mask_hw.min()} to {mask_hw.max()}, but the palette has colours for "
            f"0 to {len(palette) - 1}: give one colour per class."
        )
    return np.asarray(palette, np.uint8).reshape(-1, 3)[mask_hw]


def overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.integer],
    palette: Sequence[Colour],
    alpha: float = 0.5,
) -> NDArray[np.uint8]:
    """Lay the coloured mask over the image; ``alpha`` in [0, 1] is the share of the mask.

    Args:
        image: uint8 (H, W, 3).
        mask: class indices, (H, W).
        palette: one colour per class, 0-255.
        alpha: 0 shows the image only, 1 the mask only.

    Raises:
        SegaeError: image and mask differ in size, or a value has no colour.
    """
    if image.shape[:2] != mask.shape:
        raise SegaeError(
            f"The image is {image.shape[0]} x {image.shape[1]} pixels and the mask {mask.shape[0]} x "
            f"{mask.shape[1]}: resize the mask to the image, nearest neighbour, before laying it over."
        )
    return np.asarray(cv2.addWeighted(image, 1 - alpha, colour_mask(mask, palette), alpha, 0), np.uint8)


def denormalise(
    image_chw: torch.Tensor | NDArray[np.floating], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.uint8]:
    """Undo ``(x / 255 - mean) / std``, clipped to what a picture can show.

    Args:
        image_chw: float (3, H, W), a tensor on any device or an array.
        mean: of each channel, on the scale 0-1.
        std: of each channel, on the scale 0-1.

    Returns:
        uint8 (H, W, 3).
    """
    image = torch.as_tensor(image_chw).detach().float().cpu().numpy().transpose(1, 2, 0)
    restored = (image * np.asarray(std, np.float32) + np.asarray(mean, np.float32)) * 255
    return np.clip(np.rint(restored), 0, 255).astype(np.uint8)
