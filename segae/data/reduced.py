"""Decode a JPEG photograph at a half, a quarter or an eighth of its size, where a small square is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from segae.data.images import decode, read_bytes, to_rgb
from segae.data.resize import resize_image

_TURN = Image.Transpose
_SIDES_SWAPPED = (_TURN.TRANSPOSE, _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90)


class Reduced(NamedTuple):
    """A picture decoded at part of its size, and not turned upright yet.

    Attributes:
        pixels: uint8 (h, w, 3), RGB.
        whole: height and width of the whole picture, before turning. A last row or column of `pixels` may stand for
            fewer of its rows or columns than the others do.
        turn: what turns it upright, if anything.
    """

    pixels: np.ndarray
    whole: tuple[int, int]
    turn: Image.Transpose | None

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Turn what was made of `pixels`, uint8 (H, W, 3)."""
        return pixels if self.turn is None else np.array(Image.fromarray(pixels).transpose(self.turn))

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the whole picture when it stands upright: the shape that `read_image` gives."""
        height, width = self.whole
        return (width, height) if self.turn in _SIDES_SWAPPED else (height, width)


def decode_reduced(data: bytes, path: Path, at_least: int) -> Reduced:
    """`read_image` for the contents of a file and for a small result, which is quicker for a large photograph.

    Args:
        data: the file's contents.
        path: where they came from, for the error message.
        at_least: a JPEG file is decoded at a half, a quarter or an eighth of its size as long as neither side
            gets shorter than so many pixels; all other files are decoded whole.

    Raises:
        UnreadableImage: as `read_image`.
    """
    image, turn, is_png, _, whole = decode(data, path, at_least)
    return Reduced(to_rgb(image, is_png, path), whole, turn)


def read_resized(path: Path, size: int) -> np.ndarray:
    """Decode a picture no larger than needed and squash it to a square.

    Args:
        path: an image file.
        size: side S in pixels.

    Returns:
        uint8 (S, S, 3), RGB, upright. Of a file that is no JPEG, or is smaller than 2 S on a side, this is exactly
        what the cache holds.

    Raises:
        UnreadableImage: the file cannot be decoded.
    """
    return squash(decode_reduced(read_bytes(path), path, size), size)


def squash(reduced: Reduced, size: int) -> np.ndarray:
    """Squash a picture that was decoded at part of its size to an upright square, as `resize_image` would the whole.

    Args:
        reduced: at least S on both sides, or not reduced.
        size: side S in pixels.

    Returns:
        uint8 (S, S, 3).
    """
    pixels = reduced.pixels
    if pixels.shape[:2] == reduced.whole:
        return reduced.upright(resize_image(pixels, size))
    # 150 rows at a quarter are 37.5, and come as 38. The scale must be that of the 37.5: that of the 38 would move the
    # picture by up to a pixel, and it would differ from the cache's five times as much.
    part = next(part for part in (2, 4, 8) if pixels.shape[:2] == tuple(-(-side // part) for side in reduced.whole))
    scale_y, scale_x = (size * part / side for side in reduced.whole)
    small = cv2.resize(pixels, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_AREA)
    return reduced.upright(np.ascontiguousarray(small[:size, :size]))  # what is left of the 38th row may be one more
