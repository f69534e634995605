"""Bring images to a training: cached on disk, resident on the GPU, decoded in every epoch, or streamed from shards."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Subset

from segae import data
from segae._io import read_json, write_atomically
from segae.config import DEFAULT_ENCODER, FinetuneConfig, PretrainConfig
from segae.errors import SegaeError, argument_named
from segae.evaluation import contact_sheet
from segae.methods import Method
from segae.models import (
    STARTS,
    Encoder,
    EncoderInfo,
    adapt_channels,
    create_encoder,
    published_name,
    set_gradient_checkpointing,
)
from segae.training.checkpoints import KeepBest
from segae.training.device import choose_device, limit_threads
from segae.training.distributed import gather_objects, rank, run_on_main, world_size
from segae.training.memory import largest_batch
from segae.training.run import CONFIG_FILE, open_result_folder

logger = logging.getLogger("segae")

AnyConfig = PretrainConfig | FinetuneConfig

_MAX_GPU_SHARE = 0.25  # of the free GPU memory, for decoded images
_CLEAN_IMAGES = 2048  # enough for BatchNorm statistics; all of millions would cost an epoch
_SAMPLE = 256  # training pairs that are decoded once although the others are decoded in every epoch
_PICTURES = 5  # of a sheet of reconstructions
_COLUMNS = 8  # of a sheet of pictures


def load_start(config: AnyConfig, images: Sequence[Path]) -> Encoder:
    """The encoder that a training starts from; a weights file brings its own architecture.

    The training images decide about channels that are not given, and where they are not 8-bit RGB or gray, what
    normalizes them is measured, unless the weights were trained on such images.
    """
    weights, channels = str(config.weights), config.in_channels
    ready = weights in STARTS
    name = config.encoder or (DEFAULT_ENCODER if ready else None)
    kind = run_on_main(lambda: data.find_kind(images))
    size = data.ImageFormat(config.image_size or 1)
    with argument_named("encoder", instead_of="name"):
        given = {"in_channels": channels or kind.channels, "image_size": size.shape[0]} if ready else {}
        encoder = create_encoder(name, weights=weights, **given)
    if not ready and (published := published_name(weights)):
        encoder.info = replace(encoder.info, source=f"published weights {published}")
    known, encoder = encoder.info, adapt_channels(encoder, channels or encoder.info.in_channels)
    about = encoder.info
    fits = known.value_range or (kind.plain and about.in_channels in (1, 3))
    if about.in_channels != known.in_channels or ready or not fits:
        if kind.plain and about.in_channels in (1, 3):
            return encoder
        if not len(images):
            raise SegaeError(f"in_channels must be 1 or 3 for a stream, got {about.in_channels}")
        measured = run_on_main(lambda: data.measure_normalization(images, about.in_channels))
        encoder.info = replace(about, **measured._asdict())
    return encoder


def set_up_model(model: Any, config: AnyConfig) -> None:
    """Switch on gradient checkpointing and compilation where they are asked for."""
    if config.trainer.gradient_checkpointing:
        set_gradient_checkpointing(model)
    if config.trainer.compile:
        model.compile()  # in place: names and files stay as they are


def make_learner(
    build: Callable, model: Any, images: Images, config: AnyConfig, device: torch.device, side: Any, **more: Any
) -> Any:
    """Build a Learner with the largest loader batch that fits into memory, or the part that ``accumulate`` asks for."""
    size, parts = config.batch_size, config.trainer.accumulate
    if parts is not None and size % parts:
        raise SegaeError(f"accumulate must be a divisor of batch_size {size}, got {parts}")
    settings, loading = (settings_taken_by(function, config) for function in (build, data.make_loaders))
    loading |= {"device": device, "train_indices": images.train_indices, "rank": rank(), "world_size": world_size()}
    if images.cache == "stream" and loading["workers"] is None:  # they decide the order of a resumed stream
        loading["workers"] = earlier_run(config).get("workers")

    def make(batch: int) -> Any:
        loaders = data.make_loaders(images.train, images.valid, **{**loading, "batch_size": batch})
        return build(loaders, model, **{**settings, "accumulate": size // batch, **more})

    return largest_batch(make, size, image_size=side)[0] if parts is None else make(size // parts)


def keep_best(
    config: AnyConfig, images: Images, save: Callable[[Path], object], name: str, monitor: str
) -> KeepBest | None:
    """Make the callback that keeps the best epochs by ``config.monitor`` or this one; None without validation images.

    A setting that would do nothing then is refused.
    """
    if images.held_out:
        return KeepBest(Path(config.out) / f"{name}.safetensors", save, config.monitor or monitor, config.save_top_k)
    for setting, allowed in {"monitor": (None,), "save_top_k": (0, 1)}.items():
        if (given := getattr(config, setting)) not in allowed:
            raise SegaeError(f"{setting} must be {allowed[-1]} where there are no validation images, got {given}")
    if config.save_top_k:
        logger.info("no validation images: no epoch is known to be the best, and %s.safetensors is not written", name)
    return None


def settings_taken_by(function: Callable[..., Any], config: AnyConfig) -> dict[str, Any]:
    """The settings of a config and of its trainer that a function has arguments for, by name."""
    known = {**vars(config.trainer), **vars(config)}
    return {name: known[name] for name in inspect.signature(function).parameters if name in known}


def earlier_run(config: AnyConfig) -> dict[str, Any]:
    """What the run that is resumed noted about itself; empty where none is resumed."""
    content = run_on_main(lambda: read_json(Path(config.out) / CONFIG_FILE) if config.resume else None)
    return content.get("run", {}) if isinstance(content, dict) else {}


def write_skipped(
    folder: Path,
    skipped: data.SkippedFiles,
    failures: Iterable[tuple[Any, str]] = (),
    excluded: Iterable[tuple[Path, str]] = (),
) -> None:
    """Report what could not be read, in any rank, and list it with the excluded files in skipped.csv."""
    for part in gather_objects(list(failures)):
        skipped.extend(part)
    skipped.report()
    listed = data.SkippedFiles()
    listed.extend([*skipped.files, *excluded])
    run_on_main(lambda: listed.write(folder))


def picture_sheet(files: Sequence[Any], path: Path) -> None:
    """Draw the first image files row by row, numbered, as PNG."""
    pictures = read_pictures(files[: _COLUMNS**2])
    wide = min(_COLUMNS, len(pictures))
    pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % wide)
    ranks = [f"{start + 1} -" for start in range(0, len(pictures), wide)]
    contact_sheet({f"+ {place}": pictures[place::wide] for place in range(wide)}, path, row_labels=ranks)


def read_pictures(files: Iterable[Any], side: int = 160) -> list[np.ndarray]:
    """Image files as pictures of a sheet, uint8 (side, side, 3)."""
    return [data.resize_image(data.read_picture(Path(file)), side) for file in files]


@contextmanager
def open_results(config: Any, task: str, *files: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Within, the folder for results and the settings of features; unreadable files are listed at the end."""
    where, skipped = Path(config.out or f"runs/{task.replace(' ', '-')}"), data.SkippedFiles()
    about: dict[str, Any] = {"task": task, "files": [*files, "skipped.csv"], "overwrite": config.overwrite}
    out = open_result_folder(where, vars(config), **about)
    how = {name: getattr(config, name) for name in ("batch_size", "image_size") if hasattr(config, name)}
    with limit_threads(config.threads):
        yield out, how | {"device": choose_device(config.device), "skipped": skipped}
    write_skipped(out, skipped)


def write_result(path: Path, content: Any) -> None:
    """Write a table as CSV, pixels uint8 (H, W, 3) as PNG, or bytes as they are."""
    if isinstance(content, pd.DataFrame):
        content = content.to_csv(index=False).encode("utf-8", "surrogateescape")
    elif isinstance(content, np.ndarray) and content.ndim == 3:
        content = cv2.imencode(".png", content[..., ::-1])[1]
    write_atomically(path, content)


def choose_cache(config: AnyConfig, need: int, device: torch.device) -> str:
    """Choose where decoded images, which take ``need`` bytes, are kept: disk, gpu or none.

    The choice is the same in all ranks, which must all call this. A resumed run keeps it, because augmentation differs.
    Workers and an augmentation of one's own are refused for images on the GPU, which are prepared there; random crops
    need whole images.
    """
    asked, workers, own = config.trainer.cache, config.trainer.workers, not isinstance(config.augment, str)
    if config.resize == "crop":
        if asked not in ("auto", "none"):
            raise SegaeError(f"cache must be none where resize is crop, got {asked}")
        return "none"
    before = earlier_run(config).get("cache") if asked == "auto" else None
    chosen = before or asked
    if chosen == "gpu" and workers:
        raise SegaeError(f"workers must be 0 where images are kept on the GPU (cache gpu), got {workers}")
    if chosen == "gpu" and own:
        raise SegaeError("cache must be auto, disk or none for your own augmentation, which the CPU does, got gpu")
    if chosen == "auto":
        fits = device.type == "cuda" and need < _MAX_GPU_SHARE * torch.cuda.mem_get_info(device)[0]
        has_room = fits and not workers and not own
        chosen = "gpu" if all(gather_objects(has_room)) else "disk"
    return chosen


@dataclass(frozen=True, kw_only=True)
class Images:
    """What both trainings have."""

    train: Any  # augmented items
    valid: Any = None  # clean items of the validation images; None where there are none
    train_indices: Sequence[int] | None = None  # which items of ``train`` are an epoch; None for all
    cache: str  # disk, gpu, none or stream

    @property
    def held_out(self) -> int:
        """Number of validation images."""
        return 0 if self.valid is None else len(self.valid)

    def failures(self) -> list[tuple[Path, str]]:
        """What could not be read while training, as (path, reason)."""
        return [failure for part in (self.train, self.valid) for failure in getattr(part, "failures", ())]


@dataclass(frozen=True, kw_only=True)
class UnlabeledData(Images):
    """The images of a pretraining."""

    clean: Any  # clean training items, enough for BatchNorm statistics
    pictures: np.ndarray  # (n, H, W, C), a few images to look at, validation images where there are any
    names: Sequence[str]  # file names of all images; of a stream its shards
    count: int  # training images
    excluded: Sequence[tuple[Path, str]] = ()  # test images that were found among the files, as (path, reason)

    def clean_batches(self, batch_size: int) -> DataLoader:
        """Batches of clean images; a last one of a single image, which has no variance, is left out."""
        return DataLoader(self.clean, batch_size, drop_last=len(self.clean) > batch_size)


def load_unlabeled(
    config: PretrainConfig,
    info: EncoderInfo,
    method: Method,
    device: torch.device,
    skipped: data.SkippedFiles,
    report: data.ExclusionReport | None = None,
) -> UnlabeledData:
    """Load the images of a pretraining, without the test images of data sets among them, unless they are listed."""
    seed, form = config.trainer.seed, replace(info.format, size=config.image_size, resize=config.resize)
    look, random_crop = (form, info.mean, info.std), form.resize == "crop" and config.augment != "none"
    plain, changes = data.eval_transform(*look), {"augment": config.augment, "random_crop": random_crop}
    augment = data.pretrain_transform(*look, crop=not method.crops, **changes)
    if data.is_stream(config.roots):
        return _load_stream(config, form, augment, plain, skipped)
    if config.epoch_images is not None:
        raise SegaeError(f"epoch_images must be None where data are no stream, got {config.epoch_images}: use repeats")
    roots = [Path(root) for root in config.roots]
    if report is None:
        report = run_on_main(lambda: data.find_pretraining_images(roots, near_duplicates=config.near_duplicates))
    paths = report.kept
    cache = choose_cache(config, form.bytes_per_pixel * math.prod(form.shape) * len(paths), device)
    if cache != "none":
        cached = data.cache_images(paths, form, skipped)
        paths = cached.paths
    names = data.unique_names(paths)
    chosen = data.choose_by_hash(sorted(set(names)), config.val_fraction, seed, "validation")
    held_out = np.array([name in chosen for name in names])
    train, valid = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    clean = train[np.linspace(0, len(train) - 1, min(len(train), _CLEAN_IMAGES)).astype(int)]
    shown = valid if len(valid) else train
    shown = shown[np.linspace(0, len(shown) - 1, min(len(shown), _PICTURES)).astype(int)]
    known: dict[str, Any] = {"count": len(train), "cache": cache, "excluded": report.excluded}
    known["names"] = [path.name for path in paths]
    if config.domain_decoders:
        # of nested folders the inner one counts
        by_depth = sorted(enumerate(roots), key=lambda one: -len(one[1].parts))
        found: Any = [next(place for place, root in by_depth if path.is_relative_to(root)) for path in paths]
        if len(set(found)) < len(roots):
            raise SegaeError(f"data must be folders that each hold training images, got {', '.join(config.roots)}")
    # of an own transform nothing is known: None
    change = data.pretraining_changes(crop=not method.crops).get(str(config.augment))
    if cache == "none":
        # two lists: what replaces an unreadable training image must not be a validation image
        seen = data.before_random_crops(form, change) if random_crop else form
        known["train"] = data.LazyImageDataset(paths.take(train), seen, augment, seed, config.repeats)
        known["valid"] = data.LazyImageDataset(paths.take(valid), form, plain, seed) if len(valid) else None
        known["clean"] = data.LazyImageDataset(paths.take(clean), form, plain, seed)
        return UnlabeledData(pictures=_read_some(paths.take(shown), form), **known)
    images = cached.images
    dataset: Any = partial(data.CachedImageDataset, images)
    if config.domain_decoders:
        dataset = partial(data.CachedPairDataset, images, np.array(found))
    first, unchanged = dataset(augment, seed, config.repeats), dataset(plain, seed)
    known |= {"clean": Subset(unchanged, clean.tolist()), "pictures": images[shown]}
    if cache == "gpu":
        first = data.GPUImageDataset(images, None, change, *look[1:], device=device, seed=seed, repeats=config.repeats)
        unchanged = first.unchanged()
    indices = [place + turn * len(images) for turn in range(config.repeats) for place in train.tolist()]
    checked = Subset(unchanged, valid.tolist()) if len(valid) else None
    return UnlabeledData(train=first, train_indices=indices, valid=checked, **known)


def _load_stream(
    config: PretrainConfig, form: data.ImageFormat, augment: Any, plain: Any, skipped: data.SkippedFiles
) -> UnlabeledData:
    """Open shards; they have no validation images, and nothing distinguishes test images in them."""
    if config.trainer.cache not in ("auto", "none"):
        raise SegaeError(f"cache must be none for a stream, got {config.trainer.cache}")
    if config.patience is not None:
        raise SegaeError(f"patience must be None for a stream, which has no validation images, got {config.patience}")
    if config.repeats > 1 and config.epoch_images is None:
        raise SegaeError(f"repeats must be 1 for a stream, got {config.repeats}: give epoch_images")
    _require_streamable(form)
    images = None if config.epoch_images is None else config.epoch_images * config.repeats
    opened: dict[str, Any] = {"size": form, "seed": config.trainer.seed, "epoch_images": images}
    with argument_named("data", instead_of="sources"):
        place: dict[str, Any] = {"rank": rank(), "world_size": world_size()}
        stream = data.open_stream(config.roots, transform=augment, skipped=skipped, **opened, **place)
    count = config.epoch_images or stream.count or len(stream)
    sample = data.sample_stream(stream, min(count, _CLEAN_IMAGES))
    clean = data.CachedImageDataset(sample, plain, config.trainer.seed)
    known: dict[str, Any] = {"names": stream.sources, "count": count, "cache": "stream"}
    return UnlabeledData(train=stream, clean=clean, pictures=sample[:_PICTURES], **known)


def _require_streamable(form: data.ImageFormat) -> None:
    """Raise SegaeError unless the images of shards, which are pictures, can be read for a model."""
    if not form.is_rgb:
        found = f"{form.channels} channels of {'16 bits or floats' if form.value_range else '8 bits'}"
        raise SegaeError(f"weights must be of 8-bit RGB or gray images for a stream, got those of {found}")
    if form.resize == "crop":
        raise SegaeError("resize must be squash or letterbox for a stream, got crop")


def _read_some(paths: Sequence[Path], form: data.ImageFormat) -> np.ndarray:
    """The first readable images, (n, H, W, C)."""
    found: list[np.ndarray] = []
    for path in paths:
        with suppress(SegaeError):  # the datasets list it when they read it
            found.append(data.read_resized(path, form))
        if len(found) == _PICTURES:
            break
    return np.stack(found) if found else np.zeros((0, *form.shape, form.stored_channels), form.dtype)


@dataclass(frozen=True, kw_only=True)
class LabeledData(Images):
    """The images and masks of a fine-tuning."""

    names: Sequence[str]  # of the training images, where they are decoded once those that can be read; or of shards
    count: int  # training images
    labels: int  # training images that were asked for
    sample: data.CachedPairs  # decoded, unchanged training pairs; all of them unless they are decoded in every epoch
    checked: data.CachedPairs | None  # the same of the validation pairs; None where there are none


def load_labeled(
    config: FinetuneConfig,
    dataset: data.SegmentationDataset,
    info: EncoderInfo,
    form: data.ImageFormat,
    device: torch.device,
    skipped: data.SkippedFiles,
) -> LabeledData:
    """Load the training and validation images of a data set; its test split stays closed."""
    if isinstance(dataset, data.LabeledShards):
        return _load_labeled_stream(config, dataset, info, form, skipped)
    seed, look = config.trainer.seed, (form, info.mean, info.std)
    with argument_named("labels", instead_of="count"):
        train = data.label_subset(dataset.splits["train"], config.labels, seed)
    valid = dataset.splits.get("val")
    if not valid:
        train, valid = data.train_val_split(train, config.val_fraction, seed)
    need = (form.bytes_per_pixel + 1) * math.prod(form.shape)
    cache = choose_cache(config, need * (len(train) + len(valid)), device)
    lazy = cache == "none"
    decoded = slice(_SAMPLE if lazy else None)
    coding: dict[str, Any] = {"mask_values": dataset.mask_values, "ignore_values": dataset.ignore_values}
    sample = data.cache_pairs(train[decoded], form, skipped=skipped, **coding)
    checked = data.cache_pairs(valid[decoded], form, skipped=skipped, allow_empty=True, **coding) if valid else None
    if checked is not None and not checked.pairs:  # a handful of images, all of them unreadable
        checked = None
    known: dict[str, Any] = {"labels": len(train), "sample": sample, "checked": checked, "cache": cache}
    distinct = len(train) if lazy else len(sample.images)
    repeats = 1 if config.epoch_images is None else -(-config.epoch_images // distinct)

    def make(pairs: data.PairList, decoded: data.CachedPairs, augment: Any, repeats: int = 1) -> Any:
        cover = form.resize == "crop" and augment != "none"
        transform = data.train_transform(*look, augment=augment, random_crop=cover)
        if lazy:
            seen = data.before_random_crops(form, None) if cover else form
            return data.LazyPairDataset(pairs, seen, transform=transform, seed=seed, repeats=repeats, **coding)
        images, masks = decoded.images, decoded.masks
        if cache == "disk":
            return data.CachedPairDataset(images, masks, transform, seed, repeats)
        change = data.FINETUNING_CHANGES[augment]
        return data.GPUImageDataset(images, masks, change, *look[1:], device=device, seed=seed, repeats=repeats)

    first = make(train, sample, config.augment, repeats)
    second = None if checked is None else make(valid, checked, augment="none")
    names = (train if lazy else sample.pairs).names
    return LabeledData(train=first, valid=second, names=names, count=len(names), **known)


def _load_labeled_stream(
    config: FinetuneConfig,
    dataset: data.LabeledShards,
    info: EncoderInfo,
    form: data.ImageFormat,
    skipped: data.SkippedFiles,
) -> LabeledData:
    """Open labeled shards; validation images are those of ``val_shards``, decoded once."""
    if config.trainer.cache not in ("auto", "none"):
        raise SegaeError(f"cache must be none for a stream, got {config.trainer.cache}")
    if config.labels is not None:
        raise SegaeError(f"labels must be None for a stream, got {config.labels}: give epoch_images")
    _require_streamable(form)
    seed, look = config.trainer.seed, (form, info.mean, info.std)
    coding: dict[str, Any] = {"mask_values": dataset.mask_values, "ignore_values": dataset.ignore_values}
    opened: dict[str, Any] = {"size": form, "seed": seed, **coding}
    change = data.train_transform(*look, augment=config.augment)
    opened |= {"rank": rank(), "world_size": world_size(), "skipped": skipped}
    with argument_named("data", instead_of="sources"):
        stream = data.open_stream(dataset.source, transform=change, epoch_images=config.epoch_images, **opened)
    none, plain, checked = data.PairList(), data.eval_transform(*look), None
    sample = data.CachedPairs(*data.sample_pairs(stream, min(len(stream), _SAMPLE)), none)
    if config.val_shards is not None:
        opened |= {"rank": 0, "world_size": 1}
        with argument_named("val_shards", instead_of="sources"):
            held_out = data.open_stream(str(config.val_shards), transform=plain, epoch_images=_CLEAN_IMAGES, **opened)
        checked = data.CachedPairs(*data.sample_pairs(held_out, _CLEAN_IMAGES), none)
    valid = None if checked is None else data.CachedPairDataset(checked.images, checked.masks, plain, seed)
    count = config.epoch_images or stream.count or len(stream)
    known: dict[str, Any] = {"names": stream.sources, "count": count, "labels": count, "cache": "stream"}
    return LabeledData(train=stream, valid=valid, sample=sample, checked=checked, **known)
