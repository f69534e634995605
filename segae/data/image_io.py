"""Read any image as 8-bit RGB and any mask as class values, resize them, and collect the files that were skipped.

A file name's extension is never trusted: the Oxford-IIIT Pet set holds ``.jpg`` files that are GIF or PNG.
"""

from __future__ import annotations

import csv
import io
import logging
import stat
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from segae._io import write_atomically
from segae.data.file_lists import Values
from segae.errors import DataError, SegaeError

logger = logging.getLogger("segae")

MAX_PIXELS = 100_000_000
IGNORE_INDEX = 255  # of a pixel that counts neither in training nor in a score
GRAY = (0.299, 0.587, 0.114)  # shares of red, green and blue in the brightness, Rec. 601
_MAX_BYTES = 1 << 30
_VALUES_REMEMBERED = 1024  # per mask; a photograph taken for a mask must not fill the index
# EPS is not among them: Pillow would start Ghostscript
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

_TURN = Image.Transpose
_TURNS = (_TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM)  # of the EXIF orientations 2, 3, 4
_TURNS_ON_SIDE = (_TURN.TRANSPOSE, _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90)  # 5 to 8
_ORIENTATIONS = dict(enumerate(_TURNS + _TURNS_ON_SIDE, start=2))


class UnreadableImage(DataError):
    """A file that could not be decoded; ``path`` and ``reason`` are attributes."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both as args, so that the exception survives pickling
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read as an image: {self.reason}. Replace or remove the file."


class UnavailableFile(UnreadableImage):
    """A file that could not be opened: missing, forbidden, no regular file, or a disk that failed this time."""


class SkippedFiles:
    """The files that were left out of a run, each with the reason."""

    def __init__(self) -> None:
        self._reasons: dict[Path, str] = {}
        self._reported = 0

    def add(self, path: Path, reason: str) -> None:
        """Remember a file; a file that is already there keeps its first reason."""
        self._reasons.setdefault(path, reason)

    def extend(self, files: Iterable[tuple[Path | str, str]]) -> None:
        """Remember several files, each with its reason."""
        for path, reason in files:
            self.add(Path(path), reason)

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Path and reason of each file, in the order in which they were added."""
        return list(self._reasons.items())

    def __len__(self) -> int:
        return len(self._reasons)

    def report(self) -> None:
        """Log the number and the first few files at WARNING; what was reported before is not reported again."""
        new, self._reported = self.files[self._reported :], len(self)
        if new:
            first = "; ".join(f"{path} ({reason})" for path, reason in new[:3])
            more = f"; and {len(new) - 3} more" if len(new) > 3 else ""
            logger.warning("%d unreadable file(s) skipped: %s%s", len(new), first, more)

    def write(self, folder: Path) -> None:
        """Write ``skipped.csv`` (path, reason) into the folder; no file, also of an earlier call, if there is none."""
        text, path = io.StringIO(), folder / "skipped.csv"
        csv.writer(text).writerows([("path", "reason"), *self.files])
        if self.files:
            write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))
        else:
            path.unlink(missing_ok=True)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> np.ndarray:
    """Decode an image file of any usual format to upright 8-bit RGB: uint8 (H, W, 3).

    Transparency is laid over white; 16-bit values are divided by 257 (65535 becomes 255); float values are taken as
    0..1, 0..255 or 0..65535, the first of these ranges to hold the largest value; of an animation the first frame
    counts; the EXIF orientation is applied.

    The path is that of a regular file of at most 1 GiB; with ``data``, its contents, it is only named in the error. An
    image of more than ``max_pixels`` is refused before it is decoded; Pillow's own limit of about 179 million holds
    too, unless ``PIL.Image.MAX_IMAGE_PIXELS`` is changed. UnreadableImage if the file is missing, damaged, too large,
    of an unknown format, or has negative or non-finite values.
    """
    return _to_rgb(_decode(path, max_pixels, data=data), path)


def read_mask(path: Path, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> np.ndarray:
    """Decode a mask to the numbers that the file holds, upright: int32 array (H, W).

    Palette images give their indices, 1-bit images 0 and 1, 16-bit images their 16-bit values. A color image whose
    channels are equal everywhere, and which is opaque, counts as gray. ``data`` is as in `read_image`. UnreadableImage
    if the file is missing, damaged or too large; DataError if it is a picture, not a mask: colors, transparency, or
    values that are not whole.
    """
    decoded = _decode(path, max_pixels, data=data)
    mode, values, problem = decoded.image.mode, np.asarray(_turned(decoded.image, decoded.turn)), ""
    if decoded.bits_dropped:
        problem = "color channels of 16 bits, whose lower half Pillow drops"
    elif mode in ("LA", "PA", "RGBA"):
        problem = "partly transparent pixels" if values[..., -1].min(initial=255) < 255 else ""
        values = values[..., :-1]
    if values.ndim == 3:
        if mode not in ("LA", "PA", "RGBA", "RGB") or (values != values[..., :1]).any():
            problem = problem or f"colors (mode {mode})"
        values = values[..., 0]
    with np.errstate(invalid="ignore"):  # NaN in a float mask: the comparison below finds it
        whole = values.astype(np.int32)
    if problem or not np.array_equal(values, whole):
        raise DataError(
            f"{path} is no class mask: it holds {problem or 'values that are no whole numbers'}. Convert it to one "
            "number per pixel, an 8- or 16-bit gray PNG or a palette PNG, or name the colors of the classes in colors."
        )
    return whole


def read_color_mask(path: Path) -> np.ndarray:
    """Decode a mask whose colors are classes, upright: uint8 (H, W, 3) RGB; opacity does not count.

    UnreadableImage if the file is missing, damaged or too large.
    """
    decoded = _decode(path)
    return np.asarray(_turned(decoded.image, decoded.turn).convert("RGB"))


def values_in(path: Path) -> list[int]:
    """The values of a mask, ascending, of more than 1,024 the first; errors are those of `read_mask`."""
    return np.unique(read_mask(path))[:_VALUES_REMEMBERED].tolist()


def has_colors(path: Path) -> bool:
    """Whether a mask is stored as colors, not as one number for each pixel; UnreadableImage if it cannot be read."""
    if not path.is_file():
        raise UnavailableFile(path, "no regular file")
    try:
        with Image.open(path, formats=_formats()) as image:
            return image.mode in ("RGB", "RGBA", "CMYK", "YCbCr")
    except Exception as error:
        raise UnreadableImage(path, _reason(error)) from error


def read_resized(path: Path, size: int, *, reduced: bool = True, data: bytes | None = None) -> np.ndarray:
    """Decode an image as `read_image` does and resize it to a square: uint8 (size, size, 3), RGB, upright.

    With ``reduced`` a large JPEG is decoded at a half, a quarter or an eighth of its size. For a photograph of 2000
    pixels and a size of 128 this takes less than a fifth of the time; the result differs by about one gray level.
    """
    return _squash(_decode(path, at_least=size if reduced else None, data=data), path, size)


def read_pair(
    image: Path, mask: Path, size: int, mask_values: Values, *, ignore_values: Sequence[int] = (),
    reduced: bool = False, data: Sequence[bytes | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Read an image and its mask, resized to a square: uint8 (size, size, 3) RGB, uint8 (size, size) class indices.

    ``mask_values`` and ``ignore_values`` are as in `to_class_indices`, ``reduced`` as in `read_resized`; ``data`` are
    the contents of both files, whose paths are then only named in errors.
    UnreadableImage if a file cannot be read; DataError if the mask has another size than its image or holds a value
    that is no class.
    """
    decoded = _decode(image, at_least=size if reduced else None, data=data[0])
    values = read_mask(mask, data=data[1])
    require_same_size(image, _upright(decoded.size, decoded.turn), mask, values.shape)
    indices = to_class_indices(values, mask_values, mask, ignore_values)
    return _squash(decoded, image, size), resize_mask(indices, size)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an upright image or mask, from the file's header; UnreadableImage if it cannot be read."""
    if not path.is_file():
        raise UnavailableFile(path, "no regular file")
    try:
        with Image.open(path, formats=_formats()) as image:
            if image.format != "TIFF":  # Pillow turns a TIFF upright when it loads it
                return _upright(image.size[::-1], _orientation(image))
    except Exception as error:
        raise UnreadableImage(path, _reason(error)) from error
    return _decode(path).size


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most 1 GiB whole, or raise UnavailableFile; a FIFO would block, a device never ends."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnavailableFile(path, "no regular file")
        if status.st_size > _MAX_BYTES:
            raise UnavailableFile(path, f"the file has {status.st_size / 2**30:.1f} GiB, more than 1")
        return path.read_bytes()
    except OSError as error:
        raise UnavailableFile(path, error.strerror or str(error)) from error


def as_image(image: Any, channels: int = 3) -> np.ndarray:
    """Read a file, or take an array or a PIL image: uint8 (H, W, channels); RGB does for one channel, too."""
    array = read_image(Path(image)) if isinstance(image, str | Path) else np.asarray(image)
    allowed = (1, 3) if channels == 1 else (channels,)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in allowed or not array.size:
        expected = " or ".join(map(str, allowed))
        raise SegaeError(f"images must be uint8 (H, W, {expected}), got {array.dtype} {array.shape}")
    return array


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image, uint8 (H, W, 3), to a square: areas are averaged where it shrinks, bilinear where it grows."""
    height, width = image.shape[:2]
    if height > size or width > size:
        # cv2 averages areas only if no side grows, so a long narrow image takes two steps
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image.reshape(size, size, -1)  # cv2 leaves out the axis of a single channel


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask, uint8 (H, W), to a square; each pixel takes the class at its center, so no new value appears."""
    # plain INTER_NEAREST takes the upper left corner of each cell, up to half a pixel beside the image's
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def to_class_indices(
    mask: np.ndarray, mask_values: Values, path: Path, ignore_values: Sequence[int] = ()
) -> np.ndarray:
    """Translate raw mask values, int32 (H, W), to class indices, uint8 (H, W), and ``ignore_values`` to 255.

    ``mask_values`` are the raw value of each class index, or a tuple of them where a class has several; at most 255
    classes. Another value is a DataError that names the mask's ``path``.
    """
    groups = [*enumerate(value if isinstance(value, tuple) else (value,) for value in mask_values)]
    groups.append((IGNORE_INDEX, tuple(ignore_values)))
    values = np.array([value for _, group in groups for value in group])
    classes = np.array([index for index, group in groups for _ in group], np.uint8)
    order = np.argsort(values)
    place = order[np.searchsorted(values[order], mask).clip(max=len(values) - 1)]
    if (wrong := values[place] != mask).any():
        raise DataError(
            f"{path} holds the value {few(np.unique(mask[wrong]))}, which is no class: the classes have {few(values)}. "
            "Correct the mask, name a class for each value, or name the value in ignore."
        )
    return classes[place]


def require_same_size(image: Path, image_shape: Sequence[int], mask: Path, mask_shape: Sequence[int]) -> None:
    """Raise DataError unless a mask covers its image; shapes are (height, width)."""
    if tuple(image_shape) != tuple(mask_shape):
        raise DataError(
            f"{mask} is {mask_shape[1]} x {mask_shape[0]} pixels and its image {image} is {image_shape[1]} x "
            f"{image_shape[0]}. Make the mask again at the image's size, or remove the pair."
        )


def few(values: Iterable[object]) -> str:
    """Write the first five values and how many more there are, for a message."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


class _Decoded(NamedTuple):
    """An image as Pillow decoded it, what turns it upright, and height and width of the whole file before turning."""

    image: Image.Image
    turn: Image.Transpose | None
    bits_dropped: bool
    size: tuple[int, int]


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # older Pillow has no AVIF


def _decode(
    path: Path, max_pixels: int = MAX_PIXELS, *, at_least: int | None = None, data: bytes | None = None
) -> _Decoded:
    """Decode a file; a JPEG at part of its size where no side gets shorter than ``at_least`` pixels."""
    data = read_bytes(path) if data is None else data
    if not data:
        raise UnreadableImage(path, "the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than max_pixels, which is {max_pixels}")
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # does nothing to other formats than JPEG
        # of 16-bit color Pillow keeps the upper halves; the only trace is here, before decoding
        bits_dropped = image.mode[0] != "I" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        image.load()
        if image.format == "TIFF":  # which is upright now
            width, height = image.size
    except MemoryError:
        raise
    except Exception as error:  # on damaged files Pillow's plugins raise nearly every type there is
        raise UnreadableImage(path, _reason(error)) from error
    return _Decoded(image, _orientation(image), bits_dropped, (height, width))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _to_rgb(decoded: _Decoded, path: Path, *, upright: bool = True) -> np.ndarray:
    """Convert a decoded image of any mode to uint8 (H, W, 3), as `read_image` describes."""
    image = _turned(decoded.image, decoded.turn) if upright else decoded.image
    try:
        if image.mode.startswith(("I", "F")):
            gray = _to_8_bit(np.asarray(image), decoded.image.format == "PNG")
            return np.repeat(gray[..., None], 3, axis=2)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(image.convert("RGB"))
    except (ValueError, OSError) as error:
        raise UnreadableImage(path, str(error)) from error


def _to_8_bit(values: np.ndarray, is_png: bool) -> np.ndarray:
    """Scale wide values to 0..255: the range of 16 bits is known, that of 32 bits follows from the largest value."""
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values run from {low:g} to {high:g}, not within 0..1, 0..255 or 0..65535")
    top = 1 if values.dtype.kind == "f" and high <= 1 else 255 if high <= 255 else 65535
    if values.dtype.itemsize == 2 or is_png:  # older Pillow opens a 16-bit PNG as 32-bit
        top = 65535
    return np.round(values * (255.0 / top)).astype(np.uint8)


def _squash(decoded: _Decoded, path: Path, size: int) -> np.ndarray:
    """Resize a picture that may have been decoded at part of its size, as `resize_image` would resize the whole."""
    if decoded.image.size[::-1] == decoded.size:
        return resize_image(_to_rgb(decoded, path), size)
    pixels = _to_rgb(decoded, path, upright=False)
    # 150 rows at a quarter are 37.5, and come as 38. The scale must be that of the 37.5: that of the 38 would move the
    # picture by up to a pixel, and it would differ from `resize_image` five times as much.
    part = next(part for part in (2, 4, 8) if pixels.shape[:2] == tuple(-(-side // part) for side in decoded.size))
    scale_y, scale_x = (size * part / side for side in decoded.size)
    small = cv2.resize(pixels, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_AREA)
    small = np.ascontiguousarray(small[:size, :size])  # what is left of the 38th row may be one more
    return np.array(_turned(Image.fromarray(small), decoded.turn))


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _upright(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    return (size[1], size[0]) if turn in _TURNS_ON_SIDE else size


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return None
