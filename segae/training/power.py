"""The electrical power that a device draws, where it says so: a GPU by its driver, a CPU by its energy counters."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread

import torch

POWERCAP = Path("/sys/class/powercap")
_INTERVAL_S = 0.5
_COUNTER_INTERVAL_S = 20.0  # the smallest counters start again after 65 kJ, minutes of full load
_LONGEST_GAP_S = 30.0  # without a reading; what a GPU drew in a longer one is not known


@dataclass
class Power:
    """Filled when the metered block ends.

    Attributes:
        watts: mean over the block; None where nothing reports it. It is never estimated.
        source: what reported it, or why nothing did.
        samples: readings of the GPU so far.
    """

    watts: float | None = None
    source: str = ""
    samples: list[float] = field(default_factory=list)


@contextmanager
def metered(device: torch.device, powercap: Path = POWERCAP) -> Iterator[Power]:
    """Measure the mean power over the block.

    Of CUDA devices it is that of the board, read twice a second from ``nvidia-smi``; the CPU beside it is not in it. Of
    a CPU it is that of its packages, idle cores included, from the counters that Linux has for Intel and AMD (RAPL;
    on most systems only root may read them).

    Args:
        device: whose power counts.
        powercap: the folder of the counters.
    """
    if device.type == "cuda":
        yield from _meter_gpu(device)
    elif device.type == "cpu":
        yield from _meter_cpu(powercap)
    else:
        yield Power(source=f"{device.type} reports no power")


def _meter_gpu(device: torch.device) -> Iterator[Power]:
    power, stop = Power(), Event()
    name = _gpu_name(device)

    def sample() -> None:
        while (watts := read_gpu_power(name)) is not None:
            power.samples.append(watts)
            if stop.wait(_INTERVAL_S):
                return

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield power
    finally:
        stop.set()
        thread.join()
        # the first reading is from before the work began
        readings = power.samples[1:] or power.samples
        power.watts = sum(readings) / len(readings) if readings else None
        power.source = "GPU board, nvidia-smi" if readings else "nvidia-smi reports no power of this GPU"


def _gpu_name(device: torch.device) -> str:
    """What nvidia-smi knows the device by: torch's own numbers change with CUDA_VISIBLE_DEVICES."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return str(device.index or 0) if uuid is None else f"GPU-{uuid}"


def read_gpu_power(name: str) -> float | None:
    """Watts that an NVIDIA board draws now; None if its driver does not say."""
    command = ["nvidia-smi", f"--id={name}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout)
    return None


def _meter_cpu(powercap: Path) -> Iterator[Power]:
    power = Power()
    before, started = read_cpu_energy(powercap), time.perf_counter()
    try:
        yield power
    finally:
        seconds, after = time.perf_counter() - started, read_cpu_energy(powercap)
        if (joules := _counted(before, after)) is not None:
            power.watts, power.source = joules / seconds, "CPU packages, RAPL"
        else:
            there = any(_packages(powercap))
            power.source = "this CPU's energy counters may be read by root only" if there else "no energy counter"


def read_cpu_energy(powercap: Path = POWERCAP) -> dict[str, tuple[float, float]]:
    """Joules that each CPU package has used, and the value after which its counter starts again; empty if unreadable.

    ``psys`` domains contain packages, so only packages count.
    """
    found = {}
    for folder in _packages(powercap):
        try:
            used, end = (float((folder / file).read_text()) for file in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):
            return {}
        found[folder.name] = (used / 1e6, (end + 1) / 1e6)
    return found


def _counted(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> float | None:
    """Joules between two looks at the counters, which start again at their ends; None where one could not be read."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[name][0] - before[name][0]) % after[name][1] for name in after)


def _packages(powercap: Path) -> Iterator[Path]:
    for folder in sorted(powercap.glob("intel-rapl:*")):  # the name on AMD too
        with suppress(OSError):
            if re.fullmatch(r"intel-rapl:\d+", folder.name) and (folder / "name").read_text().startswith("package"):
                yield folder


@contextmanager
def energy_meter(device: torch.device, powercap: Path = POWERCAP) -> Iterator[Callable[[], float | None]]:
    """Meter a device for as long as the block runs.

    Reading it neither waits for the device nor asks it anything: a thread looks at a GPU's power twice a second.
    What counts is said at ``metered``; nothing is started where nothing is reported.

    Args:
        device: whose energy counts.
        powercap: the folder of a CPU's counters.

    Yields:
        A function that gives the joules used since the block began, or None where they are not known.
    """
    meter: _GpuEnergy | _CpuEnergy | None = None
    if device.type == "cuda":
        meter = _GpuEnergy(_gpu_name(device))
    elif device.type == "cpu":
        meter = _CpuEnergy(powercap)
    if meter is None or meter.joules() is None:
        yield lambda: None
        return
    stop, look = Event(), meter.look
    pause = _INTERVAL_S if device.type == "cuda" else _COUNTER_INTERVAL_S

    def watch() -> None:
        while not stop.wait(pause):
            look()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield meter.joules
    finally:
        stop.set()
        thread.join()


class _GpuEnergy:
    """The sum of a board's power over time, each reading held until the next."""

    def __init__(self, name: str) -> None:
        self.name, self.lock, self.used = name, Lock(), 0.0
        watts = read_gpu_power(name)
        self.known, self.watts, self.read_at = watts is not None, watts or 0.0, time.perf_counter()

    def look(self) -> None:
        """Take a reading; without one that before it holds a little longer."""
        watts, now = read_gpu_power(self.name), time.perf_counter()
        with self.lock:
            self.known = self.known and now - self.read_at <= _LONGEST_GAP_S
            if watts is not None:
                self.used += self.watts * (now - self.read_at)
                self.watts, self.read_at = watts, now

    def joules(self) -> float | None:
        """Used so far; None where they are not known."""
        with self.lock:
            since = time.perf_counter() - self.read_at
            return self.used + self.watts * since if self.known and since <= _LONGEST_GAP_S else None


class _CpuEnergy:
    """What the counters of the CPU's packages have counted."""

    def __init__(self, powercap: Path) -> None:
        self.powercap, self.lock, self.used = powercap, Lock(), 0.0
        self.last = read_cpu_energy(powercap)

    def look(self) -> None:
        """Add what was counted since the last look; a counter that cannot be read any more makes all unknown."""
        with self.lock:
            now = read_cpu_energy(self.powercap)
            joules = _counted(self.last, now)
            self.used += joules or 0.0
            self.last = {} if joules is None else now

    def joules(self) -> float | None:
        """Used so far; None where they are not known."""
        self.look()
        return self.used if self.last else None
