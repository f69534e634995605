"""A sample of a planned training: the same model, schedule and loaders on few images, ready to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from segae.errors import SegaeError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment
    from segae.training.cost import Cost
    from segae.training.forecast import Workload
    from segae.training.schedule import Phase

Item = TypeVar("Item")

_BATCHES = 12  # of training images in the sample; a timed epoch has no more
_DRAWN = 32  # pictures that stand in for images that are not there; repeated to fill _BATCHES


@dataclass(frozen=True)
class Sample:
    """What is timed in place of the planned training.

    Attributes:
        learner: on the sample's images.
        phases: of the planned training.
        workload: of the planned training.
        images: in the sample.
        image_bytes: of one image (and its mask) as the training holds it.
        decode_s_per_image: measured while the sample was made.
        apart_s: seconds of making the sample that a training spends in decoding, or not at all.
        finish: does what the task does after its last epoch, given the log and the cost.
    """

    learner: Any
    phases: Sequence[Phase]
    workload: Workload
    images: int
    image_bytes: int
    decode_s_per_image: float
    apart_s: float
    finish: Callable[[list[dict[str, Any]], Cost], object]


def sample_segmentation(config: Segment, device: torch.device, images: int | None, drawn: bool) -> Sample:
    """Prepare a segmentation as ``segae segment`` does.

    Args:
        config: of the planned training; its run folder is written to.
        device: where to compute.
        images: training and validation images of the planned training; None counts those of the data set.
        drawn: the images only stand in for others, so few are repeated.
    """
    from segae.data.dataset import split_off_validation, take_labels
    from segae.data.open import open_dataset
    from segae.models.encoder import create_encoder, output_stride, require_size
    from segae.models.segmenter import create_segmenter, require_decoder_size
    from segae.tasks.compute import segmentation_of_items, set_up
    from segae.tasks.finish import finish_segmentation
    from segae.tasks.labelled import Labelled, labelled_sets
    from segae.tasks.segment import _rates, resolve
    from segae.training.forecast import Workload
    from segae.training.provenance import provenance
    from segae.training.run import seed_everything
    from segae.training.schedule import make_phases

    data = open_dataset(config.data, config.classes, config.merge)
    seed_everything(config.seed)
    encoder, description = create_encoder(config.encoder, config.init)
    config = resolve(config, description)
    size = config.image_size or description.image_size
    require_size(size, output_stride(encoder))
    require_decoder_size(config.decoder, size)
    phases = make_phases(config.freeze_epochs, config.epochs, **_rates(config))
    model = create_segmenter(encoder, config.encoder, config.decoder, len(data.classes)).to(device)
    set_up(model, config)
    chosen = take_labels(data.splits["train"], None if drawn else config.labels, config.seed)
    parts = split_off_validation(chosen, config.val_fraction, config.seed)
    started = time.perf_counter()
    train, valid, files = _decode_pairs(parts, size, data.mask_values, config, drawn)
    apart_s = time.perf_counter() - started
    once = replace(config, epoch_images=None)  # the timed epochs are short ones
    items = labelled_sets(once, train, valid, description, device)
    given = Labelled(*items, train.pairs, len(parts[0]), train, valid or train)
    learner = segmentation_of_items(once, items, model, len(data.classes), size, device)
    if drawn and images is not None and config.labels is not None:
        images = min(images, config.labels)
    counts = _scaled((len(parts[0]), len(parts[1])), images, config.val_fraction)
    epoch, extra = config.epoch_images or counts[0], counts[0] if config.recalibrate else 0
    return Sample(
        learner,
        phases,
        Workload(epoch, counts[1], files=sum(counts), extra_passes=extra),
        len(train.images) + (len(valid.images) if valid else 0),
        4 * size * size,
        apart_s / files,
        apart_s,
        lambda log, cost: finish_segmentation(
            config, model, description, data, given, log, cost, provenance(device), device
        ),
    )


def sample_pretraining(config: Pretrain, device: torch.device, images: int | None, drawn: bool) -> Sample:
    """Prepare a pretraining as ``segae pretrain`` does; arguments as in ``sample_segmentation``."""
    from torch.utils.data import Subset

    from segae.data.pretraining import find_pretraining_images
    from segae.tasks.compute import pretraining_of_items
    from segae.tasks.finish import finish_pretraining
    from segae.tasks.loading import MEASURED_IMAGES, unlabelled_sets
    from segae.tasks.pictures import draw_panels
    from segae.tasks.pretrain import begin
    from segae.tasks.streaming import is_streamed
    from segae.training.forecast import Workload
    from segae.training.provenance import provenance

    if is_streamed(config.data):
        raise SegaeError(
            f"--data names shards ({config.data[0]}), of which no sample can be drawn. Wanted a folder of images like "
            "them, and --images N for how many an epoch has: segae plan --kind pretrain --data FOLDER --images N."
        )
    config, model, description, objective, phases = begin(config, device)
    paths = find_pretraining_images(config.data)
    counts = _scaled(_split_size(paths, config), images, config.val_fraction)
    started = time.perf_counter()
    decoded, files = _decode_images(paths, config, drawn)
    apart_s = time.perf_counter() - started
    held_out = min(counts[1], len(decoded) // 4)
    augmented, clean = unlabelled_sets(replace(config, repeats=1), decoded, description, device)
    items = (augmented, Subset(clean, range(held_out)))
    learner = pretraining_of_items(config, items, model, objective, device)

    def finish(log: list[dict[str, Any]], cost: Cost) -> None:  # noqa: ARG001 - metrics of a pretraining hold no memory
        draw_panels(config.out, model, objective, decoded[:5], description)
        finish_pretraining(config, model, description, paths, len(paths), log, provenance(device))

    return Sample(
        learner,
        phases,
        Workload(counts[0] * config.repeats, counts[1], sum(counts), min(counts[0], MEASURED_IMAGES)),
        len(decoded),
        3 * config.image_size**2,
        apart_s / files,
        apart_s,
        finish,
    )


def _decode_pairs(parts: Any, size: int, mask_values: Sequence[Any], config: Segment, drawn: bool) -> tuple:
    """Training and validation arrays of the sample, and how many files they came from."""
    from segae.data.cache import CachedPairs, cache_pairs
    from segae.data.quarantine import Quarantine

    batch, files = config.batch_size, 0
    arrays: list[CachedPairs | None] = []
    for pairs, wanted in zip(parts, (_BATCHES * batch, max(_BATCHES * batch // 4, 1)), strict=True):
        chosen = _spread(pairs, wanted)
        if not chosen:
            arrays.append(None)
            continue
        cached = cache_pairs(chosen, size, mask_values, Quarantine(), config.out / "cache", progress=False)
        files += len(chosen)
        if drawn:
            cached = CachedPairs(_filled(cached.images, wanted), _filled(cached.masks, wanted), cached.pairs)
        arrays.append(cached)
    return (*arrays, files)


def _decode_images(paths: Sequence[Path], config: Pretrain, drawn: bool) -> tuple[np.ndarray, int]:
    from segae.data.cache import cache_images
    from segae.data.quarantine import Quarantine

    wanted = _BATCHES * config.batch_size
    chosen = _spread(paths, wanted)
    images = cache_images(chosen, config.image_size, Quarantine(), config.out / "cache", progress=False).images
    return (_filled(images, wanted) if drawn else images), len(chosen)


def _split_size(paths: Sequence[Path], config: Pretrain) -> tuple[int, int]:
    """How many images ``segae pretrain`` trains on, and how many it keeps for validation."""
    from segae.tasks.loading import kept_apart

    valid = int(kept_apart(paths, config).sum())
    return len(paths) - valid, valid


def _scaled(counts: tuple[int, int], images: int | None, val_fraction: float) -> tuple[int, int]:
    """Training and validation images: those that there are, or of another number of images."""
    if images is None:
        return counts
    valid = min(max(round(images * val_fraction), 1), images - 1) if val_fraction else 0
    return images - valid, valid


def _spread(items: Sequence[Item], wanted: int) -> list[Item]:
    """At most so many items, evenly spaced: neighbours in a folder resemble each other."""
    if len(items) <= wanted:
        return list(items)
    return [items[place * len(items) // wanted] for place in range(wanted)]


def _filled(arrays: np.ndarray, wanted: int) -> np.ndarray:
    """So many rows, those that are there over and over."""
    import numpy as np

    return np.asarray(arrays)[np.arange(wanted) % len(arrays)]


def draw_stand_ins(folder: Path, size: int) -> Path:
    """Draw a few labelled pictures for whoever has no images yet."""
    from segae.data.drawn_pets import draw_pets

    return draw_pets(folder, train=_DRAWN, test=1, size=size, progress=False)


def within(config: Segment | Pretrain, folder: Path, data: Path | None) -> Segment | Pretrain:
    """The same training, but in another run folder and, if given, on other data."""
    changes: dict[str, Any] = {"out": folder}
    if data is not None:
        changes["data"] = data if isinstance(config.data, Path) else (data,)
    return replace(config, **changes)
