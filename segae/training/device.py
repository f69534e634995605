"""Choose the device of a run and prepare the process for it: cuDNN, the C library's allocator, CPU threads."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import cv2
import torch

from segae._io import check_range
from segae.errors import SegaeError

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h
_OTHER_LIBRARY = AttributeError, OSError, TypeError  # TypeError: Windows opens no library without a name


def choose_device(name: str = "auto") -> torch.device:
    """Turn ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto`` (CUDA, then MPS, then the CPU) into a device.

    SegaeError if the device is missing: a silent fallback to the CPU would turn minutes into hours.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name not in available and not (name == "cuda" and "cuda:0" in available):
        raise SegaeError(f"device must be auto or one of this machine's, {', '.join(available)}, got {name!r}")
    return torch.device(name)


def available_devices() -> tuple[str, ...]:
    """Return the names of this machine's devices, the fastest kind first; ``cpu`` is always the last."""
    # is_available first: device_count alone can be positive where the driver does not work
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ("mps",) if torch.backends.mps.is_available() else ()
    return (*(f"cuda:{index}" for index in range(count)), *mps, "cpu")


def prepare_device(device: torch.device) -> None:
    """Switch this process to faster settings with the same results; for commands, never for constructors.

    On CUDA, cuDNN tries its algorithms on each new input size and keeps the fastest. On a CPU, glibc's malloc keeps
    freed blocks for the next step: to map and zero them again took a tenth of a U-Net's. The peak does not change.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    elif device.type == "cpu":
        with suppress(*_OTHER_LIBRARY):
            mallopt = ctypes.CDLL(None).mallopt
            # in this order: large blocks in mappings of their own while nothing may be trimmed cost twice the step
            if mallopt(_M_MMAP_MAX, 0):
                mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def keep_memory_shared() -> Iterator[None]:
    """Within, share what is in memory now with worker processes that are started, instead of copying it bit by bit."""
    gc.collect()
    with suppress(*_OTHER_LIBRARY):
        ctypes.CDLL(None).malloc_trim(0)  # what glibc's malloc kept goes back to the kernel
    gc.freeze()  # a garbage collection would write to the pages of each object
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def limit_threads(threads: int | None = None) -> Iterator[None]:
    """Use a given number of CPU threads within, in torch and in OpenCV; restore both numbers afterwards.

    ``threads`` is 1 to 1024. None keeps torch's number (OMP_NUM_THREADS or the cores) and gives OpenCV the same.
    """
    if threads is not None:
        check_range("threads", threads, low=1, high=1024, integer=True)
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads or before[0])
    cv2.setNumThreads(threads or before[0])
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
