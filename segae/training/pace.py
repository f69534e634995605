"""How long a training waits for its batches, measured from outside of the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch


class TimedLoader:
    """Hands a loader's batches on, and keeps the time that each side takes; whatever else is asked of it, it passes on.

    The first batches of its life can be left out, because they start workers and fill the allocator. On an
    accelerator, whose work is only queued, the device is waited for where the timing begins and where an epoch ends.

    Args:
        loader: gives batches, tuples whose first tensor has one row for each image.
        device: where they are worked on.
        skip: batches, over all epochs, that are handed on without being timed.
        limit_s: seconds of timed batches after which an epoch is cut short; every epoch has one batch at least.

    Attributes:
        waited_s: seconds in which the consumer waited for timed batches.
        worked_s: seconds between them.
        images: in timed batches.
        total_s: seconds from the first question for a batch to the end, timed or not, summed over epochs.
        total_images: in all batches.
        started: ``time.perf_counter()`` at which the last epoch's first batch was asked for.
    """

    def __init__(self, loader: Any, device: torch.device, *, skip: int = 0, limit_s: float = math.inf) -> None:
        self.loader, self.device, self.skip, self.limit_s = loader, device, skip, limit_s
        self.waited_s = self.worked_s = self.total_s = self.started = 0.0
        self.images = self.total_images = 0

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # asked for by copy and pickle before there is one
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.started = asked = time.perf_counter()
        for batch in self.loader:
            given = time.perf_counter()
            timed = self.skip <= 0
            yield batch
            self.total_images += len(batch[0])
            self.skip -= 1
            if self.skip == 0:
                synchronise(self.device)  # what was queued so far must not end up in a timed batch
            done = time.perf_counter()
            if timed:
                self.waited_s += given - asked
                self.worked_s += done - given
                self.images += len(batch[0])
            if self.seconds >= self.limit_s:
                break
            asked = time.perf_counter()
        left = time.perf_counter()
        synchronise(self.device)
        ended = time.perf_counter()
        self.total_s += ended - self.started
        if self.images:
            self.worked_s += ended - left

    @property
    def seconds(self) -> float:
        """Of all timed batches."""
        return self.waited_s + self.worked_s

    @property
    def images_per_second(self) -> float:
        """Of the timed batches; not a number while there are none."""
        return self.images / self.seconds if self.images else math.nan

    @property
    def wait_share(self) -> float:
        """Share of the time, in [0, 1], in which the consumer waited; not a number while there is no timed batch."""
        return self.waited_s / self.seconds if self.images else math.nan


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that was queued for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
