"""Squash images and masks to a square, and masks to class indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from segae.data.packed import Pair
from segae.errors import SegaeError


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Squash an image to a square: areas are averaged where it shrinks, bilinear where it grows.

    Args:
        image: uint8 (H, W, 3).
        size: side S in pixels.

    Returns:
        uint8 (S, S, 3).
    """
    height, width = image.shape[:2]
    if height > size or width > size:
        # cv2 averages areas only if no side grows, so a long narrow image takes two steps
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Squash a mask to a square; each pixel takes the class at its centre, so no new value appears.

    INTER_NEAREST_EXACT, because plain INTER_NEAREST takes the upper left corner of each cell, which moves the
    mask against the image by up to half a pixel.

    Args:
        mask: uint8 (H, W).
        size: side S in pixels.

    Returns:
        uint8 (S, S).
    """
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def to_class_indices(mask: np.ndarray, mask_values: Sequence[int | tuple[int, ...]], path: Path) -> np.ndarray:
    """Translate raw mask values to class indices.

    Args:
        mask: int32 (H, W), raw values.
        mask_values: raw value of each class index, or all of them where a class has several; at most 256 classes.
        path: the mask's file, for the error message.

    Returns:
        uint8 (H, W), class indices.

    Raises:
        SegaeError: the mask holds a value that is not among `mask_values`.
    """
    groups = [value if isinstance(value, tuple) else (value,) for value in mask_values]
    values = np.array([value for group in groups for value in group])
    classes = np.array([index for index, group in enumerate(groups) for _ in group], np.uint8)
    order = np.argsort(values)
    place = order[np.searchsorted(values[order], mask).clip(max=len(values) - 1)]
    wrong = values[place] != mask
    if wrong.any():
        found = np.unique(mask[wrong])
        raise SegaeError(
            f"{path} holds the value "
            f"{', '.join(map(str, found[:5]))}{' and others' if len(found) > 5 else ''}, which is no class. "
            f"Wanted only {', '.join(map(str, values))}; correct the mask, or name a class for each "
            "value."
        )
    return classes[place]


def require_same_size(image: np.ndarray, mask: np.ndarray, pair: Pair) -> None:
    """Check that a mask covers its image pixel by pixel.

    Raises:
        SegaeError: the sizes differ.
    """
    if image.shape[:2] != mask.shape:
        height, width = image.shape[:2]
        raise SegaeError(
            f"{pair.mask} is {mask.shape[1]} x {mask.shape[0]} pixels and its image {pair.image} is {width} "
            f"x {height}. Wanted a mask of {width} x {height}; make it anew at the image's size, or remove "
            "the pair."
        )
