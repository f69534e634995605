"""DataLoaders for a fastai Learner: order, batches, worker processes, pinned memory and the share of each rank."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import cv2
import torch
from fastai.data.core import DataLoaders
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from segae._io import check_range
from segae.data.streaming import StreamDataset
from segae.errors import SegaeError

_MOST_WORKERS = 8
# images of an epoch for each worker; a new interpreter takes three seconds to import torch
_IMAGES_EACH = {"fork": 32, "spawn": 512, "forkserver": 512}


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of one rank, in an order that depends on (seed, epoch) alone.

    An epoch is every index once; or as many `images` from passes through all indices, each pass in another order. In
    pass p the index i is called i + p * (number of indices): a dataset with as many `repeats` takes that for the same
    image, augmented differently.

    Each rank takes a contiguous part of every batch of `batch_size`. With a seed the parts are equal and none is a
    single image, from which BatchNorm cannot estimate a variance: what is left over is left out. Without a seed the
    order is that of `indices`, and nothing is left out.
    """

    def __init__(
        self, indices: Sequence[int], seed: int | None, batch_size: int, rank: int, world_size: int, images: int | None
    ) -> None:
        self.indices, self.seed, self.batch_size, self.epoch = indices, seed, batch_size, 0
        self.rank, self.world_size = rank, world_size
        count = len(indices) if images is None else images
        self._passes = -(-count // max(len(indices), 1))
        rest = count % batch_size
        if seed is not None:
            rest -= rest % world_size
            rest = 0 if rest == world_size < batch_size < count else rest
        self.sizes = [batch_size] * (count // batch_size) + [rest] * (rest > 0)  # of the global batches
        if len(self.sizes) > 1 and rest and rest < world_size:  # each rank needs an image
            self.sizes[-2:] = [batch_size + rest]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        count = len(self.indices)
        order = list(range(count * self._passes))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            passes = [number * count + torch.randperm(count, generator=generator) for number in range(self._passes)]
            order = torch.cat(passes).tolist()
        for end, size in zip(accumulate(self.sizes), self.sizes, strict=True):
            each, more = divmod(size, self.world_size)
            first = end - size + min(self.rank * each + min(self.rank, more), size - 1)
            chosen = order[first : first + max(each + (self.rank < more), 1)]
            yield chosen if self._passes > 1 else [int(self.indices[place]) for place in chosen]

    def __len__(self) -> int:
        return len(self.sizes)


def make_loaders(
    train: Any,
    valid: Any | None,
    *,
    batch_size: int,
    device: torch.device,
    workers: int | None = 0,
    seed: int = 0,
    train_indices: Sequence[int] | None = None,
    epoch_images: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoaders:
    """Make the data loaders of a Learner; batches are (images,) or (images, masks).

    Args:
        train: a dataset of `segae.data`: items are an image, or (image, mask).
        valid: the same for validation; None or empty: no validation loss is computed.
        batch_size: images of a batch, all ranks together.
        device: where batches go.
        workers: processes that load images; 0 loads in the training process; None: as `choose_workers` says.
        seed: of the order of the training images, as in `EpochBatchSampler`.
        train_indices: the items of `train` that an epoch goes through; None: all.
        epoch_images: training images of an epoch, in place of `train_indices`; where `train` has fewer `distinct` ones
            they come several times, all almost equally often, and `train` must repeat them.
        rank: of this process.
        world_size: number of processes; each gets an equal share of every training batch.

    Raises:
        SegaeError: a number is out of range, or an epoch is to have more images than `train` has items.
    """
    check_range("batch_size", batch_size, low=world_size, integer=True)
    if batch_size % world_size:
        raise SegaeError(f"batch_size must be a multiple of the {world_size} processes, got {batch_size}")
    if workers is not None:
        check_range("workers", workers, low=0, integer=True)
    indices = range(len(train)) if train_indices is None else train_indices
    if isinstance(train, StreamDataset):  # has its own order, and its own share for each rank
        train.batch_size = batch_size // world_size
        indices, epoch_images = range(len(train) * world_size), None
    elif epoch_images is not None:
        distinct = getattr(train, "distinct", len(train))
        check_range("epoch_images", epoch_images, low=1, high=len(train) // max(distinct, 1) * distinct, integer=True)
        indices = range(distinct)
    held_out: Any = [] if valid is None else valid
    order = EpochBatchSampler(indices, seed, batch_size, rank, world_size, epoch_images)
    if not order.sizes:
        count = len(indices)
        raise SegaeError(f"train must have at least {world_size} image(s), got {count} for batch_size {batch_size}")
    fixed = EpochBatchSampler(range(len(held_out)), None, batch_size, rank, world_size, None)
    dls = DataLoaders(_make_loader(train, order, device, workers), _make_loader(held_out, fixed, device, workers))
    dls._device = device  # torch's loaders have no device; without this fastai takes a GPU whenever there is one
    return dls


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Choose the epoch of a loader's order and augmentation, before its first batch is asked for."""
    for part in (_unwrapped(loader.dataset), getattr(loader, "batch_sampler", None)):
        getattr(part, "set_epoch", lambda _: None)(epoch)


def _make_loader(data: Any, sampler: EpochBatchSampler, device: torch.device, workers: int | None) -> DataLoader:
    if workers is None:
        workers = choose_workers(data, device, sum(sampler.sizes) // sampler.world_size, world_size=sampler.world_size)
    order: dict[str, Any] = {"batch_sampler": sampler}
    if isinstance(data, StreamDataset):
        check_range("workers", workers, high=data.shard_count // sampler.world_size)  # each needs a shard
        order = {"batch_size": data.batch_size}
    return DataLoader(
        data,
        **order,
        collate_fn=_collate,
        num_workers=workers,
        persistent_workers=workers > 0,  # starting them again would cost time in every epoch
        worker_init_fn=partial(_prepare_worker, yields=device.type == "cpu"),
        # what lies on a device already cannot be pinned
        pin_memory=device.type == "cuda" and getattr(_unwrapped(data), "device", None) is None,
    )


def choose_workers(dataset: Any, device: torch.device, count: int | None = None, *, world_size: int = 1) -> int:
    """Choose the number of worker processes for a dataset, from 0 to 8; only the order of a stream depends on it.

    As many as this process has cores, for images that are decoded each time and for cached images on a CUDA device.
    None for images on the device, for cached images on a CPU, whose augmentation costs a hundredth of the training, for
    a handful of images (`count` in an epoch of this process), and for training on a single core.
    """
    source, daemon = _unwrapped(dataset), multiprocessing.current_process().daemon  # which may have no children
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if world_size > 1:  # the processes of a launcher share the cores of their machine
        cores = max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), 1)
    on_cpu, decodes = device.type != "cuda", getattr(source, "decodes", False)
    if daemon or getattr(source, "device", None) is not None or (on_cpu and (cores == 1 or not decodes)):
        return 0
    start = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    deserved = (len(dataset) if count is None else count) // _IMAGES_EACH[start]
    shards = [source.shard_count // world_size] if isinstance(source, StreamDataset) else []
    return min(_MOST_WORKERS, cores, deserved, *shards)


def _prepare_worker(worker: int, yields: bool) -> None:  # noqa: ARG001 - torch calls it with the worker's number
    """Let a worker process compute in one thread: its kind already keeps the other cores busy.

    Where the training computes on the CPU, each of its threads waits for the slowest: a worker that takes a core from
    one of them for a moment holds up all. With `yields`, at the lowest priority, it decodes while a core is idle.
    """
    gc.freeze()  # a collection would write to each object there is, and so copy the pages shared with the parent
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # no pool at all, also where a forked worker inherited one whose threads are gone
    if yields and hasattr(os, "nice"):
        os.nice(19)


def _unwrapped(dataset: Any) -> Any:
    return _unwrapped(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _collate(items: list | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Stack to a tuple of tensors, also for single images: fastai would take a bare batch apart."""
    if isinstance(items, tuple):  # GPUImageDataset gives whole batches
        return items
    if isinstance(items[0], tuple):
        return tuple(torch.stack([torch.as_tensor(item[part]) for item in items]) for part in range(len(items[0])))
    return (torch.stack(items),)
