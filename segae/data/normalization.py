"""Find out how many channels images have and of what kind, and measure what normalizes those that are not 8-bit RGB."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segae.data.cache import remember_facts
from segae.data.file_lists import PathList
from segae.data.image_io import UnreadableImage, image_header, read_array, read_image
from segae.errors import DataError
from segae.image_format import ImageFormat, Ranges, to_picture, unit_scale

_HEADERS, _MEASURED = 256, 64  # images of a sample
_VALUES = 16_384  # of each channel of an image, evenly spaced
_PERCENTILES = (0.1, 99.9)


class Kind(NamedTuple):
    """What images are like: channels, and whether all are 8-bit gray or RGB."""

    channels: int = 3
    plain: bool = True


class Normalization(NamedTuple):
    """For each channel the values that become 0 and 1 (see `ImageFormat`), and mean and deviation on that scale."""

    value_range: Ranges
    mean: tuple[float, ...]
    std: tuple[float, ...]


def find_kind(paths: Sequence[Path]) -> Kind:
    """Look at the headers of images, of many at 256, and say how many channels they have.

    Gray among RGB counts as RGB. DataError if two images have different numbers of channels otherwise, or some hold
    whole numbers and others fractions. Files that cannot be read are passed over.
    """
    some = _spread(paths, _HEADERS)
    facts = remember_facts("header", some, image_header, lambda _: None)
    known = [(path, fact) for path, fact in zip(some, facts, strict=True) if fact]
    if not known:
        return Kind()
    counts: dict[int, Path] = {}
    floats: dict[bool, Path] = {}
    for path, (_, _, channels, kind) in known:
        counts.setdefault(channels, path)
        floats.setdefault(np.dtype(kind).kind == "f", path)
    if not {*counts} <= {1, 3} and len(counts) > 1:
        (first, one), (second, other), *_ = sorted(counts.items())
        raise DataError(f"{one} has {first} channels, and {other} has {second}: all images of a training need as many")
    if len(floats) > 1:
        raise DataError(f"{floats[True]} holds fractions and {floats[False]} whole numbers: save both in one type")
    return Kind(max(counts), {*counts} <= {1, 3} and all(kind == "uint8" for _, (*_, kind) in known))


def measure_normalization(paths: Sequence[Path], channels: int) -> Normalization:
    """Measure 64 images at most: the 0.1th and 99.9th percentile of each channel, and mean and deviation between them.

    8-bit images keep their values, so their range is empty. DataError if none can be read.
    """
    sample, eight_bit = [], True
    for path in _spread(paths, _MEASURED):
        try:
            array = read_array(path, channels=channels)
        except UnreadableImage:  # who loads the images lists it
            continue
        ImageFormat(1, channels).require_channels(array.shape[2], path)
        eight_bit &= array.dtype == np.uint8
        rows = array.reshape(-1, array.shape[2])
        sample.append((path, rows[:: len(rows) // _VALUES + 1][:, None]))
    if not sample:
        raise DataError(f"None of {len(paths)} images can be read, such as {paths[0]}. Replace the files.")
    low_high: Ranges = ()
    if not eight_bit:
        unit = [rows.astype(np.float64) * unit_scale(rows.dtype) for _, rows in sample]
        unit = [rows.repeat(channels, axis=2) if rows.shape[2] == 1 else rows for rows in unit]
        ends = np.percentile(np.concatenate(unit).reshape(-1, unit[0].shape[2]), _PERCENTILES, axis=0)
        ends = ends.mean(axis=1, keepdims=True) if ends.shape[1] != channels else ends  # RGB for a gray model
        low, high = (tuple(map(float, end)) for end in ends)
        # a channel of one value has no contrast to keep
        low_high = tuple((a, b if b > a else a + max(abs(a), 1.0)) for a, b in zip(low, high, strict=True))
    form = ImageFormat(1, channels, low_high)
    scale = np.iinfo(form.dtype).max
    values = np.concatenate([form.convert(rows, path).reshape(-1, form.stored_channels) for path, rows in sample])
    mean, std = (values.astype(np.float64) / scale).mean(axis=0), (values.astype(np.float64) / scale).std(axis=0)
    return Normalization(low_high, tuple(mean.tolist()), tuple(np.where(std > 1e-6, std, 1.0).tolist()))


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read any image as a picture to look at, uint8 (H, W, 3): its first three channels, each from dark to bright."""
    _, _, channels, kind = image_header(path)
    if channels <= 3 and channels != 2 and kind == "uint8":
        return read_image(path)
    array: Any = read_array(path).astype(np.float32)
    low, high = np.percentile(array, _PERCENTILES, axis=(0, 1))
    return to_picture(np.round(np.clip((array - low) / np.maximum(high - low, 1e-6), 0, 1) * 255).astype(np.uint8))


def _spread(paths: Sequence[Path], count: int) -> PathList:
    """Choose some paths, evenly spaced."""
    packed = PathList.of(paths)
    return packed.take(np.unique(np.linspace(0, len(packed) - 1, min(len(packed), count)).astype(int)))
