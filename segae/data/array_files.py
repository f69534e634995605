"""Decode TIFF and .npy files to the arrays that they hold: any number of channels, 8 or 16 bits or floats."""

import io
from pathlib import Path
from typing import Any

import lazy_loader
import numpy as np
from numpy.typing import NDArray

from segae._io import require_package

tifffile = lazy_loader.load("tifffile")  # an extra, as is imagecodecs, which it decompresses with

MAX_CHANNELS = 16
NPY = b"\x93NUMPY"
_TIFF, _BIG_TIFF = (b"II*\0", b"MM\0*"), (b"II+\0", b"MM\0+")
_ALPHA = (1, 2)  # of the tag ExtraSamples: transparency, which is no channel of the scene


def is_array_file(data: bytes) -> bool:
    """Whether contents are of a kind that Pillow does not know: .npy or BigTIFF."""
    return data.startswith((NPY, *_BIG_TIFF))


def is_tiff(data: bytes) -> bool:
    """Whether contents begin as a TIFF or BigTIFF does."""
    return data.startswith((*_TIFF, *_BIG_TIFF))


def npy_shape(data: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape (H, W, C) and type of a .npy file, from its header; ValueError if it holds no image."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if len(shape) not in (2, 3) or kind.kind not in "uif":
        raise ValueError(f"it must hold numbers (H, W, C), got {kind} {shape}")
    return (*shape, 1)[:3], kind


def read_npy(data: bytes, max_pixels: int) -> NDArray:
    """Read an array (H, W, C) or (H, W) as (H, W, C); ValueError if it is none or too large."""
    shape, _ = npy_shape(data)
    _check_shape(shape, max_pixels)
    return np.load(io.BytesIO(data), allow_pickle=False).reshape(shape)


def tiff_shape(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape (H, W, C) of the first image of a TIFF, transparency left out, and its type, without decoding it."""
    require_package("tifffile", "tiff")
    with tifffile.TiffFile(path) as file:
        height, width, channels, alpha = _tiff_layout(file)[1]
        swapped = _orientation(file) >= 5
        return (*((width, height) if swapped else (height, width)), channels - alpha), np.dtype(file.pages[0].dtype)


def read_tiff(data: bytes, max_pixels: int, channels: int | None = None) -> NDArray:
    """Read the first image of a TIFF, upright, with all its channels: (H, W, C), in the file's own type.

    Channels are the samples of a page, interleaved or planar, or the pages of one array (ImageJ, OME, tifffile).
    Transparency is left out, unless it makes as many ``channels`` as are asked for: GDAL calls the fourth of four 8-bit
    bands so. ValueError if the image is too large, or what tifffile raises.
    """
    require_package("tifffile", "tiff")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        axes, (height, width, samples, alpha) = _tiff_layout(file)
        kept = samples if samples == channels else samples - alpha
        _check_shape((height, width, kept), max_pixels)
        array = (file.pages[0] if axes == file.pages[0].axes else file.series[0]).asarray()
        array = np.moveaxis(array, [axes.index("Y"), axes.index("X")], [0, 1]).reshape(height, width, -1)
        turn = _orientation(file)
    return turn_upright(array[..., :kept], turn)


def turn_upright(array: NDArray, orientation: int) -> NDArray:
    """Turn an array (H, W, C) as the orientation of EXIF and TIFF, 1 to 8, says."""
    array = array.swapaxes(0, 1) if orientation >= 5 else array
    # rows begin at the bottom in 3 and 4, columns at the right in 2 and 3; 5 to 8 are those of the transposed image
    down, right = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return array[::down, ::right]


def _tiff_layout(file: Any) -> tuple[str, tuple[int, int, int, int]]:
    """Names of the array's axes; its height, width, channels, and how many of these are transparency."""
    page, series = file.pages[0], file.series[0]
    whole = set(series.axes) - set("YXS") in ({"C"}, {"Q"}) and len(set(series.axes)) == len(series.axes)
    axes, sizes = (series.axes, series.shape) if whole else (page.axes, page.shape)
    counts = dict(zip(axes, sizes, strict=True))
    channels = int(np.prod([count for axis, count in counts.items() if axis not in "YX"]))
    alpha = sum(int(kind) in _ALPHA for kind in page.extrasamples)
    return axes, (counts["Y"], counts["X"], channels, alpha)


def _orientation(file: Any) -> int:
    tag = file.pages[0].tags.get("Orientation")
    return 1 if tag is None else int(tag.value)


def _check_shape(shape: tuple[int, ...], max_pixels: int) -> None:
    height, width, channels = shape
    if height * width > max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than max_pixels, which is {max_pixels}")
    if not 1 <= channels <= MAX_CHANNELS or not height * width:
        raise ValueError(f"it has {height} rows, {width} columns and {channels} channels; 1 to {MAX_CHANNELS} are read")
