"""A sample of a planned training: the same model, schedule and loaders on few images, ready to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError

if TYPE_CHECKING:
    import torch

    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment
    from segae.training.cost import Cost
    from segae.training.forecast import Workload
    from segae.training.schedule import Phase

_DRAWN = 32  # pictures that stand in for images that are not there; repeated to fill the sample


@dataclass(frozen=True)
class Sample:
    """What is timed in place of the planned training.

    Attributes:
        learner: on the sample's images.
        phases: of the planned training.
        workload: of the planned training.
        images: decoded ones in the sample.
        image_bytes: of one image (and its mask) as the training holds it; 0 where it is decoded each time.
        decode_s_per_image: measured while the sample was made.
        apart_s: seconds of making the sample that a training spends in decoding, or not at all.
        draw: draws the pictures that the task draws while it trains.
        finish: does what the task does after its last epoch, given the log and the cost.
    """

    learner: Any
    phases: Sequence[Phase]
    workload: Workload
    images: int
    image_bytes: int
    decode_s_per_image: float
    apart_s: float
    draw: Callable[[], object]
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
    from segae.tasks.pictures import draw_curves
    from segae.tasks.plan_images import labelled_sample, workers_of
    from segae.tasks.segment import rates_of, resolve
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
    phases = make_phases(config.freeze_epochs, config.epochs, **rates_of(config))
    model = create_segmenter(encoder, config.encoder, config.decoder, len(data.classes)).to(device)
    set_up(model, config)
    chosen = take_labels(data.splits["train"], None if drawn else config.labels, config.seed)
    parts = split_off_validation(chosen, config.val_fraction, config.seed)
    if drawn and images is not None and config.labels is not None:
        images = min(images, config.labels)
    counts = _scaled((len(parts[0]), len(parts[1])), images, config.val_fraction)
    started = time.perf_counter()
    sample = labelled_sample(config, data, parts, counts, description, device, drawn)
    apart_s = time.perf_counter() - started
    given, epoch = sample.given, config.epoch_images or counts[0]
    # the timed epochs are short ones
    once = replace(config, epoch_images=None, workers=workers_of(config, given.train, device, epoch))
    learner = segmentation_of_items(once, (given.train, given.valid), model, len(data.classes), size, device)
    return Sample(
        learner,
        phases,
        Workload(epoch, counts[1], files=sum(sample.ahead), extra_passes=sample.ahead[0] if config.recalibrate else 0),
        sample.images,
        0 if given.data_path == "live" else 4 * size * size,
        apart_s / sample.files,
        apart_s,
        lambda: draw_curves(config.out),
        lambda log, cost: finish_segmentation(
            config, model, description, data, given, log, cost, provenance(device), device
        ),
    )


def sample_pretraining(config: Pretrain, device: torch.device, images: int | None, drawn: bool) -> Sample:
    """Prepare a pretraining as ``segae pretrain`` does; arguments as in ``sample_segmentation``."""
    from segae.data.pretraining import find_pretraining_images
    from segae.tasks.compute import pretraining_of_items
    from segae.tasks.finish import finish_pretraining
    from segae.tasks.loading import MEASURED_IMAGES
    from segae.tasks.pictures import draw_curves, draw_panels
    from segae.tasks.plan_images import unlabelled_sample, workers_of
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
    sample = unlabelled_sample(config, paths, counts, description, device, drawn)
    apart_s = time.perf_counter() - started
    epoch, live = counts[0] * config.repeats, sample.data_path == "live"
    once = replace(config, workers=workers_of(config, sample.items[0], device, epoch))
    learner = pretraining_of_items(once, sample.items, model, objective, device)

    def draw() -> None:
        draw_curves(config.out)
        draw_panels(config.out, model, objective, sample.shown, description)

    def finish(log: list[dict[str, Any]], cost: Cost) -> None:  # noqa: ARG001 - metrics of a pretraining hold no memory
        draw_panels(config.out, model, objective, sample.shown, description)
        finish_pretraining(config, model, description, paths, len(paths), log, provenance(device))

    return Sample(
        learner,
        phases,
        Workload(epoch, counts[1], 0 if live else sum(counts), min(counts[0], MEASURED_IMAGES)),
        sample.images,
        0 if live else 3 * config.image_size**2,
        apart_s / sample.files,
        apart_s,
        draw,
        finish,
    )


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
