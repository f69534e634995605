"""The images of a planned training's sample: a few decoded ones, or all files where a training decodes them itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

    from segae.data.cache import CachedPairs
    from segae.data.dataset import Pair, SegmentationData
    from segae.models.encoder import EncoderDescription
    from segae.tasks.labelled import Labelled
    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment

Item = TypeVar("Item")

_BATCHES = 12  # of decoded training images in the sample; a timed epoch of them has no more


@dataclass(frozen=True)
class LabelledSample:
    """The pairs of a planned segmentation.

    Attributes:
        given: as the training has them.
        images: that were decoded, repeated ones counted each time.
        files: that they came from.
        ahead: training and validation pairs that the planned training decodes before its first step.
    """

    given: Labelled
    images: int
    files: int
    ahead: tuple[int, int]


@dataclass(frozen=True)
class UnlabelledSample:
    """The images of a planned pretraining.

    Attributes:
        items: to train on, and to validate on.
        shown: uint8 (n, S, S, 3), of the panels.
        images: decoded ones that the process holds; 0 with live decoding.
        files: how many were decoded while the sample was made.
        data_path: how they come: cache, device or live.
    """

    items: tuple[Any, Any]
    shown: np.ndarray
    images: int
    files: int
    data_path: str


def labelled_sample(
    config: Segment,
    data: SegmentationData,
    parts: tuple[Sequence[Pair], Sequence[Pair]],
    counts: tuple[int, int],
    description: EncoderDescription,
    device: torch.device,
    drawn: bool,
) -> LabelledSample:
    """Training and validation pairs by the path that the planned training takes.

    Args:
        config: resolved; its run folder keeps what is decoded.
        data: where the pairs are from.
        parts: training and validation pairs that there are.
        counts: how many the planned training has.
        description: of the encoder.
        device: where it computes.
        drawn: the pairs only stand in for others, so few are repeated.
    """
    from segae.tasks.data_path import choose_data_path
    from segae.tasks.labelled import SAMPLED, Labelled, labelled_sets, live_sets

    size = config.image_size or description.image_size
    data_path = choose_data_path(config.data_path, 4 * size**2 * sum(counts), device, config.workers)
    train, valid, files = _decode_pairs(parts, size, data.mask_values, config, drawn)
    images, ahead = len(train.images) + (len(valid.images) if valid else 0), counts
    if data_path == "live":
        ahead = (min(counts[0], SAMPLED), min(counts[1], SAMPLED))
        wanted = _wanted(config)
        named = _repeated(parts[0], wanted[0]) if drawn else parts[0]
        items = live_sets(_once(config), named, _at_least(parts[1], wanted[1]), data.mask_values, description)
    else:
        items = labelled_sets(_once(config), train, valid, description, device if data_path == "device" else None)
    given = Labelled(*items, train.pairs, len(parts[0]), train, valid or train, data_path)
    return LabelledSample(given, images, files, ahead)


def unlabelled_sample(
    config: Pretrain,
    paths: Sequence[Path],
    counts: tuple[int, int],
    description: EncoderDescription,
    device: torch.device,
    drawn: bool,
) -> UnlabelledSample:
    """Training and validation images of a pretraining, each once; arguments as in ``labelled_sample``."""
    from torch.utils.data import Subset

    from segae.tasks.data_path import choose_data_path
    from segae.tasks.loading import SHOWN_IMAGES, unlabelled_sets

    need = 3 * config.image_size**2 * sum(counts)
    data_path = choose_data_path(config.data_path, need, device, config.workers)
    if data_path == "live":
        shown, files = _decode_images(paths, config, SHOWN_IMAGES)
        named = _repeated(paths, _wanted(config)[0]) if drawn else paths
        items = _live_images(config, named, min(counts[1], len(named) // 4), description)
        return UnlabelledSample(items, shown, 0, files, data_path)
    images, files = _decode_images(paths, config, _wanted(config)[0])
    if drawn:
        images = _filled(images, _wanted(config)[0])
    held_out, once = min(counts[1], len(images) // 4), _once(config)
    augmented, clean = unlabelled_sets(once, images, description, device if data_path == "device" else None)
    items = (augmented, Subset(clean, _at_least(range(held_out), _wanted(config)[1])))
    return UnlabelledSample(items, images[:SHOWN_IMAGES], len(images), files, data_path)


def workers_of(config: Pretrain | Segment, train: Any, device: torch.device, epoch: int) -> int:
    """Processes that prepare images: as asked, or as many as a training on so many images to an epoch takes."""
    from segae.training.workers import choose_workers

    return choose_workers(train, device, epoch) if config.workers is None else config.workers


def _live_images(
    config: Pretrain, paths: Sequence[Path], held_out: int, description: EncoderDescription
) -> tuple[Any, Any]:
    from segae.data.live import LiveImages
    from segae.data.transforms import eval_transform
    from segae.tasks.loading import random_transform

    size, look = config.image_size, (config.image_size, description.mean, description.std)
    train = LiveImages(paths[held_out:], size, random_transform(config, description), config.seed)
    kept = _at_least(paths[:held_out], _wanted(config)[1])
    return train, LiveImages(kept, size, eval_transform(*look), config.seed) if kept else None


def _once(config: Any) -> Any:
    """The same, with each image once to an epoch."""
    from dataclasses import replace

    from segae.tasks.pretrain import Pretrain

    return replace(config, repeats=1) if isinstance(config, Pretrain) else replace(config, epoch_images=None)


def _wanted(config: Pretrain | Segment) -> tuple[int, int]:
    """Training and validation images of a sample."""
    train = _BATCHES * config.batch_size
    return train, max(train // 4, 1)


def _decode_pairs(
    parts: tuple[Sequence[Pair], Sequence[Pair]], size: int, mask_values: Sequence[Any], config: Segment, drawn: bool
) -> tuple[CachedPairs, CachedPairs | None, int]:
    """Training and validation arrays of the sample, and how many files they came from."""
    from segae.data.cache import CachedPairs, cache_pairs
    from segae.data.quarantine import Quarantine

    files = 0
    arrays: list[Any] = []
    for pairs, wanted in zip(parts, _wanted(config), strict=True):
        chosen = _spread(pairs, wanted)
        if not chosen:
            arrays.append(None)
            continue
        cached = cache_pairs(chosen, size, mask_values, Quarantine(), config.out / "cache", progress=False)
        files += len(chosen)
        if drawn or pairs is parts[1]:  # a validation of a batch or two would be timed on what is left over
            cached = CachedPairs(_filled(cached.images, wanted), _filled(cached.masks, wanted), cached.pairs)
        arrays.append(cached)
    return arrays[0], arrays[1], files


def _decode_images(paths: Sequence[Path], config: Pretrain, wanted: int) -> tuple[np.ndarray, int]:
    """Images of so many files at most, and of how many files."""
    from segae.data.cache import cache_images
    from segae.data.quarantine import Quarantine

    chosen = _spread(paths, wanted)
    cached = cache_images(chosen, config.image_size, Quarantine(), config.out / "cache", progress=False)
    return cached.images, len(chosen)


def _spread(items: Sequence[Item], wanted: int) -> list[Item]:
    """At most so many items, evenly spaced: neighbours in a folder resemble each other."""
    if len(items) <= wanted:
        return list(items)
    return [items[place * len(items) // wanted] for place in range(wanted)]


def _repeated(items: Sequence[Item], wanted: int) -> list[Item]:
    """So many items, those that are there over and over; none where there are none."""
    return [items[place % len(items)] for place in range(wanted)] if items else []


def _at_least(items: Sequence[Item], wanted: int) -> Sequence[Item]:
    """The items, over and over where they are fewer; none where there are none."""
    return items if len(items) >= wanted else _repeated(items, wanted)


def _filled(arrays: np.ndarray, wanted: int) -> np.ndarray:
    """So many rows, those that are there over and over."""
    import numpy as np

    return np.asarray(arrays)[np.arange(wanted) % len(arrays)]
