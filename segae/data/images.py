"""Read any picture file as 8-bit RGB and any mask file as raw class values; remember what could not be read.

The file name's extension is never trusted: the Oxford-IIIT Pet set holds `.jpg` files that are GIF or PNG.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from segae.errors import SegaeError

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(SegaeError):
    """One file that could not be decoded; `path` and `reason` are attributes."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both as args, so that the exception survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be read: {self.reason}. Wanted an image that Pillow can open; "
            f"replace or remove the file and type the same command again."
        )


class UnavailableFile(UnreadableImage):
    """A file whose bytes could not be had: missing, forbidden, or a disk that failed and may not fail again."""


def read_image(path: Path) -> np.ndarray:
    """Decode any picture to what a camera would have given: upright 8-bit RGB.

    Transparency is laid over white; 16-bit values are divided by 257 (65535 becomes 255); float values are
    taken as 0..1, 0..255 or 0..65535, whichever is the first to hold the largest value; of an animation the
    first frame counts; the EXIF orientation is applied.

    Returns:
        uint8 array (H, W, 3), RGB.

    Raises:
        UnreadableImage: the file is missing, damaged, of an unknown format, or holds negative or non-finite
            values.
    """
    image, turn, is_png, _, _ = decode(read_bytes(path), path)
    return to_rgb(_turned(image, turn), is_png, path)


def to_rgb(image: Image.Image, is_png: bool, path: Path) -> np.ndarray:
    """Convert a decoded image of any mode to uint8 (H, W, 3), as `read_image` describes."""
    try:
        if image.mode.startswith(("I", "F")):
            grey = _to_8_bit(np.asarray(image), is_png)
            return np.repeat(grey[..., None], 3, axis=2)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(image.convert("RGB"))
    except (ValueError, OSError) as error:
        raise UnreadableImage(path, str(error)) from error


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask to the very numbers that stand in the file.

    Palette images give their indices, 1-bit images 0 and 1, 16-bit images their 16-bit values. A colour image
    whose channels are equal everywhere (and which is opaque) counts as grey.

    Returns:
        int32 array (H, W) of raw values.

    Raises:
        UnreadableImage: the file is missing or damaged.
        SegaeError: the file is a picture, not a mask: colours, transparency, or values that are not whole.
    """
    image, turn, _, bits_dropped, _ = decode(read_bytes(path), path)
    values = np.asarray(_turned(image, turn))
    if bits_dropped:
        raise _not_a_mask(path, "colour channels of 16 bits, whose lower half Pillow drops")
    if image.mode in ("LA", "PA", "RGBA"):
        if values[..., -1].min(initial=255) < 255:
            raise _not_a_mask(path, "partly transparent pixels")
        values = values[..., :-1]
    if values.ndim == 3:
        if image.mode not in ("LA", "PA", "RGBA", "RGB") or (values != values[..., :1]).any():
            raise _not_a_mask(path, f"colours (mode {image.mode})")
        values = values[..., 0]
    with np.errstate(invalid="ignore"):  # NaN in a float mask: the comparison below finds it
        whole = values.astype(np.int32)
    if not np.array_equal(values, whole):
        raise _not_a_mask(path, "values that are no whole numbers")
    return whole


class Decoded(NamedTuple):
    """An image as Pillow decoded it, what turns it upright, and the file's height and width before turning."""

    image: Image.Image
    turn: Image.Transpose | None
    is_png: bool
    bits_dropped: bool
    size: tuple[int, int]


def read_bytes(path: Path) -> bytes:
    """Read a file whole, before decoding, so that a failing disk and a damaged picture are told apart.

    Raises:
        UnavailableFile: the file is missing or the disk fails.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnavailableFile(path, error.strerror or str(error)) from error


def decode(data: bytes, path: Path, at_least: int | None = None) -> Decoded:
    """Decode a file's contents; a JPEG at part of its size where no side gets shorter than `at_least` pixels.

    Raises:
        UnreadableImage: they are damaged or of an unknown format; `path` is named.
    """
    if not data:
        raise UnreadableImage(path, "the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # does nothing to other formats than JPEG
        # of 16-bit colour Pillow keeps the upper halves; the only trace is here, before decoding
        bits_dropped = image.mode[0] != "I" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # on damaged files Pillow's plugins raise nearly every type there is
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UnreadableImage(path, reason or type(error).__name__) from error
    return Decoded(image, _orientation(image), image.format == "PNG", bits_dropped, (height, width))


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return None


def _to_8_bit(values: np.ndarray, is_png: bool) -> np.ndarray:
    """Scale one channel of wide values to 0..255.

    The range of a 16-bit file is known; that of a 32-bit one is not written anywhere and follows from its
    largest value.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values run from {low:g} to {high:g}, not within 0..1, 0..255 or 0..65535")
    if values.dtype.itemsize == 2 or is_png:  # older Pillow opens a 16-bit PNG as 32-bit
        top = 65535
    else:
        top = 1 if values.dtype.kind == "f" and high <= 1 else 255 if high <= 255 else 65535
    return np.round(values * (255.0 / top)).astype(np.uint8)


def _not_a_mask(path: Path, what: str) -> SegaeError:
    return SegaeError(
        f"{path} is no class mask: it holds {what}. Wanted one whole number per pixel, the class (an 8- or "
        f"16-bit grey PNG or a palette PNG); convert the masks to index masks and type the same command "
        "again."
    )
