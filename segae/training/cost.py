"""What a training cost: wall-clock seconds and peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Cost:
    """Filled when the measured block ends.

    Attributes:
        seconds: wall-clock time of the block.
        peak_memory_mb: on CUDA the most that torch held allocated; elsewhere the largest resident size of the
            process in the block (on systems that cannot reset it: since the process started), in 10^6 bytes.
    """

    seconds: float = 0.0
    peak_memory_mb: float = 0.0


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure the time and the peak memory of the block."""
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_resident_peak()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            cost.peak_memory_mb = torch.cuda.max_memory_allocated(device) / 1e6
        else:
            cost.peak_memory_mb = _resident_peak() / 1e6
        cost.seconds = time.perf_counter() - started


def _reset_resident_peak() -> None:
    with suppress(OSError):  # not Linux, or not allowed: the peak then counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")


def _resident_peak() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) if sys.platform == "darwin" else float(peak) * 1024
