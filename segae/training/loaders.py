"""Batches for a fastai Learner: in which order, how many at once, and how they get to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastai.data.core import DataLoaders
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from segae.errors import SegaeError
from segae.training.distributed import require_divisible, this_place
from segae.training.sharing import EpochBatches, EpochSampler, turns
from segae.training.threads import compute_alone, give_way
from segae.training.workers import choose_workers


def make_loaders(
    train: Dataset,
    valid: Dataset | None,
    *,
    batch_size: int,
    device: torch.device,
    workers: int | None = 0,
    seed: int = 0,
    train_indices: Sequence[int] | None = None,
    epoch_images: int | None = None,
    accumulate: int = 1,
) -> DataLoaders:
    """Data loaders for a Learner.

    Args:
        train: items as from ``segae.data.batches``: an image, or (image, mask).
        valid: the same for validation; None or empty: no validation loss is computed.
        batch_size: images in a batch, 1 or more, of all processes together where there are several. No training batch
            is a single image (BatchNorm cannot estimate a variance from it): ``EpochSampler`` says what becomes of one.
        device: where batches go.
        workers: processes that load images; 0 loads in the training process, right for cached images on a CPU. None
            lets ``segae.training.workers.choose_workers`` decide for each of the two.
        seed: decides the order of the training images.
        train_indices: the items of ``train`` that an epoch goes through; None takes all.
        epoch_images: training images of an epoch, in place of ``train_indices``; where ``train`` has fewer ``distinct``
            ones they come several times, all almost equally often, and ``train`` must repeat them.
        accumulate: batches of an optimizer step.

    Raises:
        SegaeError: the batch size is below 1, or an epoch is to have more images than ``train`` has items, or none.
    """
    if batch_size < 1:
        raise SegaeError(f"batch size is {batch_size}; it must be 1 or more, for example --batch-size 16.")
    if workers is not None and workers < 0:
        raise SegaeError(f"workers is {workers}; it must be 0 or more, for example --workers 4.")
    stream = isinstance(train, IterableDataset)
    indices: Sequence[int] = () if stream else range(len(train)) if train_indices is None else train_indices  # type: ignore[arg-type]
    if epoch_images is not None:
        indices = _distinct(train, epoch_images)
    held_out: Any = [] if valid is None else valid
    place = this_place()
    share = require_divisible(batch_size, place, batch_size * accumulate)
    begin = give_way if device.type == "cpu" else compute_alone
    common: dict[str, Any] = {"collate_fn": _collate, "worker_init_fn": begin}
    pinned = device.type == "cuda"

    def load(data: Any, order: Sequence[int], seed: int | None, drop_single: bool, images: int | None) -> DataLoader:
        if isinstance(data, IterableDataset):  # a stream has its own order, and its own share for each process
            return DataLoader(data, share, pin_memory=pinned, **common, **_working(workers, data, device, None))
        sampler = EpochSampler(order, seed, batch_size, place, drop_single, images, batch_size * accumulate)
        how = {**common, **_working(workers, data, device, len(sampler))}
        # what lies on a device already cannot be pinned
        return DataLoader(data, batch_sampler=EpochBatches(sampler), pin_memory=pinned and not _on_device(data), **how)

    trained = load(train, indices, seed, True, epoch_images)
    dls = DataLoaders(trained, load(held_out, range(len(held_out)), None, False, None))
    dls._device = device  # torch's loaders have no device; without this fastai takes a GPU whenever there is one
    return dls


def _working(workers: int | None, data: Any, device: torch.device, images: int | None) -> dict[str, Any]:
    count = choose_workers(data, device, images) if workers is None else workers
    return {"num_workers": count, "persistent_workers": count > 0}  # starting them anew would cost time in every epoch


def _distinct(train: Any, images: int) -> range:
    distinct = getattr(train, "distinct", len(train))
    if turns(images, distinct) * distinct > len(train):
        raise SegaeError(
            f"an epoch is to have {images} images, and the data set has only {len(train)} items, of {distinct} images; "
            f"make it with repeats={turns(images, distinct)}."
        )
    return range(distinct)


def _on_device(data: Any) -> bool:
    """Whether it is ``DeviceImages``, or a subset of them."""
    return getattr(data, "device", getattr(getattr(data, "dataset", None), "device", None)) is not None


def _collate(items: list | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Stack to a tuple of tensors, also for single images: fastai would take a bare batch apart.

    ``DeviceImages`` gives whole batches, which pass as they are.
    """
    if isinstance(items, tuple):
        return items
    if isinstance(items[0], tuple):
        return tuple(torch.stack([torch.as_tensor(item[part]) for item in items]) for part in range(len(items[0])))
    return (torch.stack(items),)
