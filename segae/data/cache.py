"""Decode and resize every image once; afterwards read uint8 memory maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segae.data.cache_store import Decoded, Verdict, fetch_arrays
from segae.data.fingerprint import default_cache_dir
from segae.data.images import UnavailableFile, UnreadableImage, read_image, read_mask
from segae.data.packed import PackedPairs, PackedPaths, Pair
from segae.data.quarantine import Quarantine
from segae.data.resize import require_same_size, resize_image, resize_mask, to_class_indices
from segae.errors import SegaeError

__all__ = ["CachedImages", "CachedPairs", "cache_images", "cache_pairs", "default_cache_dir"]


@dataclass(frozen=True)
class CachedImages:
    """Unlabelled images: `images` uint8 (N, S, S, 3) RGB, read-only; `paths` the N files they came from."""

    images: np.ndarray
    paths: Sequence[Path]


@dataclass(frozen=True)
class CachedPairs:
    """Labelled images: `images` uint8 (N, S, S, 3), `masks` uint8 (N, S, S) class indices, their `pairs`."""

    images: np.ndarray
    masks: np.ndarray
    pairs: Sequence[Pair]


def cache_images(
    paths: Sequence[Path],
    size: int,
    quarantine: Quarantine,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> CachedImages:
    """Give all images squashed to one size, decoding only what no earlier call has decoded.

    Args:
        paths: image files.
        size: side S in pixels; shrinking averages areas, enlarging is bilinear.
        quarantine: receives the files that cannot be read; the others are returned.
        cache_dir: where the arrays are kept; `default_cache_dir()` when None.
        progress: show a bar while decoding.

    Raises:
        SegaeError: none of the images can be read, or the disk is full.
    """

    def decode(position: int) -> Decoded | Verdict:
        try:
            return (resize_image(read_image(paths[position]), size),)
        except UnreadableImage as error:
            return Verdict(position, error.reason, final=not isinstance(error, UnavailableFile))

    shapes = {"images": (size, size, 3)}
    arrays, verdicts = fetch_arrays([paths], (), shapes, decode, cache_dir or default_cache_dir(), progress)
    kept = _sort_out(paths, verdicts, quarantine)
    packed = PackedPaths.of(paths)
    return CachedImages(arrays["images"], packed if kept is None else packed.take(kept))


def cache_pairs(
    pairs: Sequence[Pair],
    size: int,
    mask_values: Sequence[int | tuple[int, ...]],
    quarantine: Quarantine,
    cache_dir: Path | None = None,
    progress: bool = True,
    *,
    none_is_fine: bool = False,
) -> CachedPairs:
    """Give all images and masks squashed to one size, masks as class indices.

    Args:
        pairs: image and mask files.
        size: side S in pixels; a mask's pixel takes the nearest class.
        mask_values: raw value of each class index in the mask files, or all of them where a class has several.
        quarantine: receives the image of each pair of which a file cannot be read; the others are returned.
        cache_dir: where the arrays are kept; `default_cache_dir()` when None.
        progress: show a bar while decoding.
        none_is_fine: give no pairs, and no error, where none can be read.

    Raises:
        SegaeError: a mask holds a value that is no class, or has another size than its image; there are no
            classes or more than 256; none of the pairs can be read; the disk is full.
    """
    if not 1 <= len(mask_values) <= 256:
        raise SegaeError(f"{len(mask_values)} classes were given. Wanted 1 to 256; name or merge classes.")

    def decode(position: int) -> Decoded | Verdict:
        pair = pairs[position]
        try:
            image, mask = read_image(pair.image), read_mask(pair.mask)
        except UnreadableImage as error:
            which = "" if error.path == pair.image else f"its mask {pair.mask.name}: "
            return Verdict(position, which + error.reason, final=not isinstance(error, UnavailableFile))
        require_same_size(image, mask, pair)
        indices = to_class_indices(mask, mask_values, pair.mask)
        return resize_image(image, size), resize_mask(indices, size)

    shapes = {"images": (size, size, 3), "masks": (size, size)}
    packed = PackedPairs.of(pairs)
    files = [packed.images, packed.masks]
    arrays, verdicts = fetch_arrays(
        files, tuple(mask_values), shapes, decode, cache_dir or default_cache_dir(), progress
    )
    kept = _sort_out(packed.images, verdicts, quarantine, none_is_fine)
    return CachedPairs(arrays["images"], arrays["masks"], packed if kept is None else packed.take(kept))


def _sort_out(
    images: Sequence[Path], verdicts: Sequence[Verdict], quarantine: Quarantine, none_is_fine: bool = False
) -> list[int] | None:
    """Put what could not be read on the quarantine list and return the places of the rest; None is all of them."""
    for verdict in verdicts:
        quarantine.add(images[verdict.position], verdict.reason)
    if images and len(verdicts) == len(images) and not none_is_fine:
        first = "; ".join(f"{images[verdict.position]} ({verdict.reason})" for verdict in verdicts[:3])
        raise SegaeError(
            f"None of the {len(images)} images can be read: {first}. Wanted image files that Pillow can open; "
            f"name another folder or replace the files, then type the command again."
        )
    left_out = {verdict.position for verdict in verdicts}
    return [place for place in range(len(images)) if place not in left_out] if left_out else None
