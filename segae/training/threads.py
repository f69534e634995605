"""How many CPU threads compute at once, in torch and in OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from segae.errors import SegaeError

_LOWEST = 19  # more is the same


@contextmanager
def with_threads(count: int | None = None) -> Iterator[None]:
    """So many CPU threads within, in torch and in OpenCV, and afterwards as many as before.

    Args:
        count: 1 or more. None keeps torch's number, which is that of OMP_NUM_THREADS or of the cores, and gives OpenCV
            as many: it does not look at OMP_NUM_THREADS.

    Raises:
        SegaeError: the number is below 1.

    Example:
        >>> with with_threads(1):
        ...     torch.get_num_threads()
        1
    """
    if count is not None and count < 1:
        raise SegaeError(f"threads is {count}; 1 or more is wanted, for example --threads 2. None takes all cores.")
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    _set(count or before[0], count or before[0])
    try:
        yield
    finally:
        _set(*before)


def set_threads(count: int) -> None:
    """From now on so many CPU threads in this process, and in those it starts."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    _set(count, count)


def compute_alone(worker: int) -> None:  # noqa: ARG001 - torch calls it with the worker's number
    """Let a worker process of a DataLoader compute in one thread: its kind already keeps the other cores busy.

    torch does the same with its own threads; OpenCV would start as many in each worker as there are cores.
    """
    _set(1, 0)  # of OpenCV 0: no pool at all, also where a forked worker inherited one whose threads are gone


def give_way(worker: int) -> None:
    """Let a worker process compute in one thread, and only when the training leaves a core idle (Unix).

    Where the training itself computes on the CPU, each of its threads waits for the slowest: a worker that takes a core
    from one of them for a moment holds up all. At the lowest priority it decodes while the training waits for it.
    """
    compute_alone(worker)
    if hasattr(os, "nice"):
        os.nice(_LOWEST)


def _set(torch_threads: int, opencv_threads: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(torch_threads)
    cv2.setNumThreads(opencv_threads)
