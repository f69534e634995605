"""How many processes prepare the images of a training."""

from __future__ import annotations

import multiprocessing
import os
import sys
from operator import length_hint
from typing import Any

import torch
from torch.utils.data import IterableDataset

from segae.data.live import LiveImages, LivePairs
from segae.training.distributed import this_place

MOST_WORKERS = 8
# images of an epoch for each worker. A forked one is there at once; a new interpreter imports torch for three
# seconds, in which one process decodes some 500 photographs
_IMAGES_EACH = {"fork": 32}
_IMAGES_EACH_OTHERWISE = 512


def choose_workers(data: Any, device: torch.device, images: int | None = None) -> int:
    """How many worker processes should prepare the items of a data set, where nobody has said it.

    As many as this process has cores, 8 at most, for what is decoded each time (``LiveImages``, ``LivePairs``), for
    a stream, and for cached images on a CUDA device. None, which is 0, for images on the device, for cached images on
    a CPU, whose augmentation costs a hundredth of the training, for a handful of images, and for training on a single
    core. Processes that a launcher started on this machine share its cores.

    What comes out of a data set with an index does not depend on the number. The order of a stream does, so a run
    keeps the number that it began with.

    Args:
        data: items to train or validate on.
        device: where the training computes.
        images: of an epoch of this process; None counts the items.

    Returns:
        From 0 to 8; for a stream no more than this process has shards.
    """
    stream, live = isinstance(data, IterableDataset), isinstance(data, LiveImages | LivePairs)
    on_device = getattr(data, "device", None) is not None
    cores = cores_of_process()
    if on_device or not (stream or live or device.type == "cuda") or (cores == 1 and device.type == "cpu"):
        return 0
    if multiprocessing.current_process().daemon:  # which may have no children
        return 0
    start = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    images = length_hint(data, sys.maxsize) if images is None else images  # a sweep over a stream has no known length
    deserved = images // _IMAGES_EACH.get(start, _IMAGES_EACH_OTHERWISE)
    return min(MOST_WORKERS, cores, deserved, *([shards_of_process(data)] if hasattr(data, "shards") else []))


def cores_of_process() -> int:
    """CPU cores that this process may use, 1 or more: those it is bound to, shared with the launcher's others here."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    world = this_place().world
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    return max(bound // here, 1)


def shards_of_process(stream: Any) -> int:
    """How many shards of a ``ShardImages`` each process has at least; each worker wants one."""
    return len(stream.shards) // this_place().world
