"""Measure what a block of code costs: wall-clock seconds, peak memory, and a GPU's energy."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@dataclass
class Cost:
    """What a block used; filled when it ends.

    Attributes:
        seconds: wall-clock time.
        peak_memory_mb: in 10^6 bytes; on CUDA the most that torch held allocated, elsewhere the largest resident size
            of the process in the block (since its start, on systems that cannot reset it).
        energy_wh: watt-hours of the GPU's board, without the CPU's; None where nothing reports it, never estimated.
    """

    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    energy_wh: float | None = None


@contextmanager
def measure_cost(device: torch.device) -> Iterator[Cost]:
    """Measure a block: ``with measure_cost(device) as cost: ...``, then read ``cost.seconds``."""
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or not allowed
            Path("/proc/self/clear_refs").write_text("5")
    joules, started = gpu_energy(device), time.perf_counter()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost.peak_memory_mb = peak_memory_mb(device)
        cost.seconds = time.perf_counter() - started
        if joules is not None and (used := gpu_energy(device)) is not None:
            cost.energy_wh = (used - joules) / 3600


def gpu_energy(device: torch.device) -> float | None:
    """Read NVML's counter of the joules that a GPU's board has used since its driver was loaded (Volta and later).

    None for other devices, without the package nvidia-ml-py, or where the driver does not report it.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid  # torch's numbers change with CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError:
        return None


def peak_memory_mb(device: torch.device) -> float:
    """Read the peak memory so far in 10^6 bytes: allocated by torch on CUDA, else resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024 / 1e6
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) * (1 if sys.platform == "darwin" else 1024) / 1e6
