"""Read any image as 8-bit RGB, or as a model takes it, and any mask as class values; collect files that are skipped.

A file name's extension is never trusted: the Oxford-IIIT Pet set holds ``.jpg`` files that are GIF or PNG.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from segae.data import array_files
from segae.data.file_lists import Values
from segae.data.image_files import SkippedFiles as SkippedFiles
from segae.data.image_files import UnavailableFile as UnavailableFile
from segae.data.image_files import UnreadableImage, first_bytes, read_bytes
from segae.errors import DataError, SegaeError
from segae.image_format import (
    IGNORE_INDEX,
    ImageFormat,
    Size,
    resize_image,
    resize_mask,
    to_8_bit,
)

MAX_PIXELS = 100_000_000
_VALUES_REMEMBERED = 1024  # per mask; a photograph taken for a mask must not fill the index
# EPS is not among them: Pillow would start Ghostscript
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

_TURN = Image.Transpose
_TURNS = (_TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM)  # of the EXIF orientations 2, 3, 4
_TURNS_ON_SIDE = (_TURN.TRANSPOSE, _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90)  # 5 to 8
_ORIENTATIONS = dict(enumerate(_TURNS + _TURNS_ON_SIDE, start=2))
_NUMBERS = {turn: number for number, turn in _ORIENTATIONS.items()}
_GRAY_MODES = ("1", "L", "LA", "La")  # of Pillow


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


def read_array(
    path: Path, *, channels: int | None = None, max_pixels: int = MAX_PIXELS, data: bytes | None = None
) -> np.ndarray:
    """Decode an image file to the numbers that it holds, upright: (H, W, C) of its own type, of 1 to 16 channels.

    TIFF (with segae[tiff] where it has more channels than a photograph, or 16-bit colors) and .npy files (H, W, C) keep
    all channels; of other files these are gray or RGB. Transparency lies over white; it is a channel where as many
    ``channels`` are asked for. The other arguments, limits and errors are those of `read_image`.
    """
    data = read_bytes(path) if data is None else data
    try:
        if data.startswith(array_files.NPY):
            return _finite(array_files.read_npy(data, max_pixels), path)
        if array_files.is_tiff(data) and _needs_tifffile(data, channels):
            return _finite(array_files.read_tiff(data, max_pixels, channels), path)
    except (MemoryError, SegaeError):
        raise
    except Exception as error:  # as Pillow, tifffile raises what it likes
        raise UnreadableImage(path, _reason(error)) from error
    decoded = _decode(path, max_pixels, data=data)
    image = decoded.image
    if decoded.bits_dropped:  # Pillow has no color of 16 bits, and what OpenCV reads is a PNG here
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None or pixels.ndim != 3:
            raise UnreadableImage(path, "its colors of 16 bits cannot be decoded")
        color, alpha = pixels[..., 2::-1], pixels[..., 3:].astype(float) / 65535
        color = np.round(color * alpha + 65535 * (1 - alpha)).astype(np.uint16) if alpha.size else color
        return np.ascontiguousarray(
            array_files.turn_upright(color, _NUMBERS.get(decoded.turn, 1) if decoded.turn else 1)
        )
    if image.mode.startswith(("I", "F")):
        values = np.asarray(_turned(image, decoded.turn))
        return _finite((values.astype(np.uint16) if image.format == "PNG" else values)[..., None], path)
    if channels == 4 and image.mode == "RGBA":
        return np.array(_turned(image, decoded.turn))
    rgb = _to_rgb(decoded, path)
    return rgb[..., :1] if image.mode in _GRAY_MODES and "transparency" not in image.info else rgb


def read_resized(
    path: Path, size: Size | ImageFormat, *, reduced: bool = True, data: bytes | None = None
) -> np.ndarray:
    """Decode an image and resize it as a model takes it: uint8 (H, W, 3), RGB, or the arrays of a format; upright.

    With ``reduced`` a large JPEG that is squashed is decoded at a half, a quarter or an eighth of its size. For a
    photograph of 2000 pixels and a size of 128 this takes less than a fifth of the time; the result differs by about
    one gray level.
    """
    form = ImageFormat.of(size)
    data = read_bytes(path) if data is None else data
    if not form.is_rgb or array_files.is_array_file(data):
        return resize_image(read_formatted(path, form, data=data), form)
    if form.resize != "squash":
        return resize_image(read_image(path, data=data), form)
    return _squash(_decode(path, at_least=max(form.shape) if reduced else None, data=data), path, *form.shape)


def read_formatted(
    path: Path, form: ImageFormat, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None
) -> np.ndarray:
    """Decode an image at its own size with the channels and values that a model takes.

    Errors are those of `read_image`, and a DataError if the image has another number of channels.
    """
    data = read_bytes(path) if data is None else data
    if form.is_rgb and not array_files.is_array_file(data):
        return read_image(path, max_pixels=max_pixels, data=data)
    try:
        return form.convert(read_array(path, channels=form.channels, max_pixels=max_pixels, data=data), path)
    except ValueError as error:
        if isinstance(error, SegaeError):
            raise
        raise UnreadableImage(path, str(error)) from error


def read_pair(
    image: Path,
    mask: Path,
    size: Size | ImageFormat,
    mask_values: Values,
    *,
    ignore_values: Sequence[int] = (),
    reduced: bool = False,
    data: Sequence[bytes | None] = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its mask, resized as a model takes them: arrays as of `read_resized`, class indices (H, W).

    ``mask_values`` and ``ignore_values`` are as in `to_class_indices`, ``reduced`` as in `read_resized`; ``data`` are
    the contents of both files, whose paths are then only named in errors.
    UnreadableImage if a file cannot be read; DataError if the mask has another size than its image or holds a value
    that is no class.
    """
    form, pixels = ImageFormat.of(size), None
    content = read_bytes(image) if data[0] is None else data[0]
    if form.is_rgb and form.resize == "squash" and not array_files.is_array_file(content):
        decoded = _decode(image, at_least=max(form.shape) if reduced else None, data=content)
        shape = _upright(decoded.size, decoded.turn)
    else:
        pixels = read_formatted(image, form, data=content)
        shape = pixels.shape[:2]
    values = read_mask(mask, data=data[1])
    require_same_size(image, shape, mask, values.shape)
    indices = resize_mask(to_class_indices(values, mask_values, mask, ignore_values), form)
    return (_squash(decoded, image, *form.shape) if pixels is None else resize_image(pixels, form)), indices


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an upright image or mask, from the file's header; UnreadableImage if it cannot be read."""
    return image_header(path)[:2]


def image_header(path: Path) -> tuple[int, int, int, str]:
    """Height, width, channels and type of what `read_array` returns, from a file's header; errors as there.

    A palette image counts as RGB.
    """
    start = first_bytes(path)
    try:
        if start.startswith(array_files.NPY):
            (height, width, channels), kind = array_files.npy_shape(start)
            return height, width, channels, kind.name
        if array_files.is_tiff(start) and _needs_tifffile(path, None):
            (height, width, channels), kind = array_files.tiff_shape(path)
            return height, width, channels, kind.name
        with Image.open(path, formats=_formats()) as image:
            height, width = image.size[::-1]
            if image.format == "TIFF":  # Pillow turns it upright, some versions when they open it
                height, width = image.tag_v2[257], image.tag_v2[256]  # type: ignore[attr-defined]
            height, width = _upright((height, width), _orientation(image))
            return height, width, *_mode_kind(image)
    except SegaeError:
        raise
    except Exception as error:
        raise UnreadableImage(path, _reason(error)) from error


def _mode_kind(image: Image.Image) -> tuple[int, str]:
    """Channels and type of an opened image, before it is decoded."""
    if image.mode.startswith(("I", "F")):
        wide = "uint16" if image.format == "PNG" or image.mode.startswith("I;16") else "int32"
        return 1, "float32" if image.mode == "F" else wide
    if _drops_bits(image):
        return 3, "uint16"
    return 1 if image.mode in _GRAY_MODES and "transparency" not in image.info else 3, "uint8"


def _drops_bits(image: Image.Image) -> bool:
    """Whether Pillow keeps the upper halves of 16-bit colors; the only trace is in the tiles, before decoding."""
    return image.mode[0] != "I" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _needs_tifffile(source: Path | bytes, channels: int | None) -> bool:
    """Whether Pillow would not give all channels and bits of a TIFF."""
    if isinstance(source, bytes) and array_files.is_array_file(source):
        return True
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=["TIFF"]) as image:
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            samples, bits, photometric = tags.get(277, 1), tags.get(258, (1,)), tags.get(262, 1)
            alpha = sum(kind in (1, 2) for kind in tags.get(338, ()))
            stack = getattr(image, "n_frames", 1) > 1 and find_spec("tifffile") is not None
    except Exception:  # a kind that Pillow does not know
        return True
    if photometric > 2:  # palettes, CMYK, YCbCr: pictures
        return False
    odd = samples - alpha not in (1, 3) or (alpha and channels == samples)
    return bool(odd or stack or (samples > 1 and max(bits) > 8))


def _finite(values: np.ndarray, path: Path) -> np.ndarray:
    """Numbers in this machine's order of bytes; UnreadableImage if some are NaN or infinite, or there are none."""
    if values.dtype.kind not in "uif" or not values.size:
        raise UnreadableImage(path, f"it holds no numbers, but {values.dtype} {values.shape}")
    if not np.isfinite(values).all():
        raise UnreadableImage(path, "it holds NaN or infinite values")
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def as_image(image: Any, form: ImageFormat) -> np.ndarray:
    """Read a file, or take an array (H, W, C) or a PIL image, with the channels and values that a model takes.

    Where that is 8-bit RGB or gray, arrays are uint8.
    """
    if isinstance(image, str | Path):
        return read_formatted(Path(image), form)
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 and not form.is_rgb else array
    allowed = (1, 3) if form.channels == 1 else (form.channels,)
    kinds = "uif" if form.value_range else "u"
    if (
        array.dtype.kind not in kinds
        or array.ndim != 3
        or array.shape[2] not in allowed
        or not array.size
        or (not form.value_range and array.dtype != np.uint8)
    ):
        expected = f"{'an array' if form.value_range else 'uint8'} (H, W, {' or '.join(map(str, allowed))})"
        raise SegaeError(f"images must be {expected}, got {array.dtype} {array.shape}")
    return array if form.is_rgb else form.convert(array)


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
        bits_dropped = _drops_bits(image)
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
            # older Pillow opens a 16-bit PNG as 32-bit
            gray = to_8_bit(np.asarray(image), wide=decoded.image.format == "PNG")
            return np.repeat(gray[..., None], 3, axis=2)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(image.convert("RGB"))
    except (ValueError, OSError) as error:
        raise UnreadableImage(path, str(error)) from error


def _squash(decoded: _Decoded, path: Path, rows: int, columns: int) -> np.ndarray:
    """Resize a picture that may have been decoded at part of its size, as `resize_image` would resize the whole."""
    if decoded.image.size[::-1] == decoded.size:
        return resize_image(_to_rgb(decoded, path), (rows, columns))
    pixels = _to_rgb(decoded, path, upright=False)
    rows, columns = _upright((rows, columns), decoded.turn)  # of the picture before it is turned
    # 150 rows at a quarter are 37.5, and come as 38. The scale must be that of the 37.5: that of the 38 would move the
    # picture by up to a pixel, and it would differ from `resize_image` five times as much.
    part = next(part for part in (2, 4, 8) if pixels.shape[:2] == tuple(-(-side // part) for side in decoded.size))
    scale_y, scale_x = rows * part / decoded.size[0], columns * part / decoded.size[1]
    small = cv2.resize(pixels, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_AREA)
    small = np.ascontiguousarray(small[:rows, :columns])  # what is left of the 38th row may be one more
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
