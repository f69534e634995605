"""Make index masks from polygons, run lengths, brush strokes and colors, each once, as PNG files in the cache.

The name of such a file is a hash of what it was made from, so a changed annotation is converted again and nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from segae._io import cache_dir, require_package, write_atomically
from segae.data.cache import content_hashes, map_in_threads
from segae.data.file_lists import PathList
from segae.data.image_io import few, read_color_mask, read_mask
from segae.errors import DataError
from segae.image_format import IGNORE_INDEX

Color = tuple[int, int, int]
_FORMAT = 1  # to be raised whenever the same annotations would give other masks
_OUTSIDE = 2.0  # pixels that a polygon may leave its image by: annotation tools round


class Region(NamedTuple):
    """A part of a mask: its value, and one of: polygons, COCO's run lengths, a brush stroke, a file that is not 0.

    ``kind`` is polygons ([x0, y0, x1, y1, ...] each, in pixels), rle (a dict of size and counts), brush (the bytes of
    Label Studio, as a list) or file (a path).
    """

    value: int
    kind: str
    content: Any


class Drawing(NamedTuple):
    """The annotation of one image: its file, its height and width in pixels, and its regions; 0 is the background."""

    image: Path
    size: tuple[int, int]
    regions: tuple[Region, ...]


def draw_masks(drawings: Sequence[Drawing]) -> PathList:
    """Draw each annotation as an index PNG, unless the cache has it; return the files.

    Larger regions are drawn first, so that a small object is seen on a large one; regions that do not count, with the
    value 255, are below all. DataError if a polygon leaves its image or a region has another size than it.
    """
    files = [Path(region.content) for one in drawings for region in one.regions if region.kind == "file"]
    hashes = dict(zip(map(str, files), content_hashes(files), strict=True))

    def describe(drawing: Drawing) -> str:
        regions = [(*one[:2], hashes.get(str(one.content)) or one.content) for one in drawing.regions]
        return json.dumps([drawing.size, regions], default=str)

    return _write_once([describe(one) for one in drawings], lambda place: draw(drawings[place]))


def draw(drawing: Drawing) -> NDArray[np.uint8]:
    """Draw an annotation: uint8 (H, W); see `draw_masks`."""
    height, width = drawing.size
    mask = np.zeros((height, width), np.uint8)
    parts = [(region.value, _region_mask(region, drawing)) for region in drawing.regions]
    for value, part in sorted(parts, key=lambda one: (one[0] != IGNORE_INDEX, -int(one[1].sum()))):
        mask[part] = value
    return mask


def _region_mask(region: Region, drawing: Drawing) -> NDArray[np.bool_]:
    height, width = drawing.size
    content = region.content
    if region.kind == "polygons":
        return _fill(content, drawing)
    if region.kind == "rle":
        mask = decode_rle(content)
    elif region.kind == "brush":
        mask = decode_brush(content, height, width)
    else:
        mask = read_mask(Path(content)) > 0
    if mask.shape != (height, width):
        raise DataError(
            f"A region in {drawing.image} is {mask.shape[1]} x {mask.shape[0]} pixels, and the image is {width} x "
            f"{height}. Correct the annotation."
        )
    return mask


def _fill(polygons: Sequence[Sequence[float]], drawing: Drawing) -> NDArray[np.bool_]:
    height, width = drawing.size
    clipped = []
    for polygon in polygons:
        points = np.asarray(polygon, float).reshape(-1, 2)
        outside = (points < -_OUTSIDE) | (points > np.array([width, height]) + _OUTSIDE)
        if outside.any() or not np.isfinite(points).all():
            x, y = points[outside.any(axis=1) | ~np.isfinite(points).all(axis=1)][0]
            raise DataError(
                f"A polygon leaves the image {drawing.image} of {width} x {height} pixels, at ({x:g}, {y:g}). Correct "
                "the annotation, or the image that it belongs to."
            )
        clipped.append(points.clip(0, (width, height)).ravel().tolist())
    coco = _pycocotools()
    return coco.decode(coco.merge(coco.frPyObjects(clipped, height, width))).astype(bool)


def decode_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode COCO's run lengths, a list of counts or their compressed text: bool (H, W)."""
    coco, (height, width) = _pycocotools(), rle["size"]
    packed = coco.frPyObjects(rle, height, width) if isinstance(rle["counts"], list) else rle
    return coco.decode(packed).astype(bool)


def _pycocotools() -> Any:
    require_package("pycocotools", "coco")
    import pycocotools.mask

    return pycocotools.mask


def decode_brush(data: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Decode a brush stroke of Label Studio: bool (H, W), where the opacity is more than a half.

    The bytes are a stream of bits, most significant first, as the library rle-pack of thi.ng writes them: the number of
    values in 32 bits; the bits of a value, less 1, in 5; the bits of each of four kinds of length, less 1, in 4 each.
    Then runs: a bit, 1 for a repeated value; the kind of length in 2 bits; the length less 1; and the value, or all
    values. They are red, green, blue and opacity of each pixel, row by row. DataError if the bytes are no such stream.
    """
    packed = np.asarray(data, np.uint8)
    text, bits = f"{int.from_bytes(packed.tobytes()):0{8 * len(packed)}b}", np.unpackbits(packed)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            raise DataError(f"a brush stroke must not end within a run, got {len(data)} bytes. Export it again.")
        return int(text[place - count : place], 2)

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
        raise DataError(f"a brush stroke must have 4 values for each of {width} x {height} pixels, got {total}")
    values, powers = np.empty(total, np.int64), 1 << np.arange(word - 1, -1, -1)
    done = 0
    while done < total:
        repeated = read(1)
        count = read(lengths[read(2)]) + 1
        if repeated or count == 1:
            values[done : done + count] = read(word)
        else:
            start = place
            read(count * word)
            values[done : done + count] = (bits[start:place].reshape(count, word) @ powers)[: total - done]
        done += count
    return values.reshape(height, width, 4)[..., 3] > 127


def index_colors(
    masks: Sequence[Path], colors: Mapping[Color, int], names: Mapping[Color, str], advice: str
) -> PathList:
    """Turn color masks into index PNGs, unless the cache has them; return the files.

    ``colors`` are the value of each color and ``names`` the class. A color that is not among them is a DataError with
    the nearest class and its distance in RGB, and the ``advice`` where to give it to a class.
    """
    table = json.dumps(sorted((*color, value) for color, value in colors.items()))
    packed = PathList.of(masks)
    keys = [f"{table} {content}" for content in content_hashes(packed)]

    def convert(place: int) -> NDArray[np.uint8]:
        return color_indices(read_color_mask(packed[place]), colors, names, packed[place], advice)

    return _write_once(keys, convert)


def color_indices(
    mask: NDArray[np.uint8], colors: Mapping[Color, int], names: Mapping[Color, str], path: Path, advice: str
) -> NDArray[np.uint8]:
    """Translate a color mask, uint8 (H, W, 3) RGB, to values, uint8 (H, W); see `index_colors`."""
    codes, known = _codes(mask), np.array(list(colors), np.int64)
    order = np.argsort(_codes(known))
    sorted_codes = _codes(known)[order]
    place = np.searchsorted(sorted_codes, codes).clip(max=len(order) - 1)
    if (wrong := sorted_codes[place] != codes).any():
        found, counts = np.unique(codes[wrong], return_counts=True)
        code = int(found[counts.argmax()])
        color = np.array([code >> 16, code >> 8 & 255, code & 255])
        distances = np.linalg.norm(known - color, axis=1)
        nearest = tuple(known[distances.argmin()].tolist())
        raise DataError(
            f"{path} holds the color {few(color).replace(' ', '')} in {counts.max()} pixels, which no class has; the "
            f"nearest is {names[nearest]}, {few(nearest).replace(' ', '')}, at a distance of {distances.min():.0f}. "
            f"Correct the mask (JPEG changes colors; PNG does not), or {advice}."
        )
    return np.array(list(colors.values()), np.uint8)[order][place]


def _codes(colors: NDArray[Any]) -> NDArray[np.int64]:
    return colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _write_once(keys: Sequence[str], make: Callable[[int], NDArray[np.uint8]]) -> PathList:
    """Write what ``make`` draws for each key whose file is not there; equal keys have one file. Safe in processes."""
    names = (hashlib.blake2b(f"{_FORMAT} {key}".encode(), digest_size=16).hexdigest() for key in keys)
    files = [cache_dir() / "masks" / name[:2] / f"{name}.png" for name in names]
    absent = [place for place, file in enumerate(files) if not file.is_file()]

    def convert(place: int) -> None:
        content = BytesIO()
        Image.fromarray(make(place)).save(content, "PNG", compress_level=1)
        write_atomically(files[place], content.getvalue())

    with tqdm(total=len(absent), desc="Converting masks", leave=False, disable=None) as bar:
        for _ in map_in_threads(convert, absent, bar):
            pass
    return PathList(files)
