"""What a training cost: wall-clock seconds, peak memory and energy."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segae.training.distributed import gathered, this_place
from segae.training.power import energy_meter

ENERGY = "energy_wh"
"""The log's column with the energy of an epoch's training, in watt-hours; only epochs whose energy is known have it."""


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


@contextmanager
def energy_logged(learner: Any, device: torch.device) -> Iterator[None]:
    """Let the Learner's log say what each epoch's training used, where the device reports it (see ``metered``)."""
    with energy_meter(device) as joules, learner.added_cbs([EnergyLog(joules, device)]):
        yield


def energy_of(log: Sequence[Mapping[str, Any]]) -> float | str:
    """Watt-hours of a whole training, its parts before a resume included; "" where those of an epoch are not known."""
    parts = [row.get(ENERGY, "") for row in log]
    return "" if "" in parts else round(sum(parts), 6)


class EnergyLog:
    """Fills the log's column ``energy_wh``: of the seconds that the column ``seconds`` counts, so without validation.

    A Learner calls it with the name of each event, as it calls fastai's callbacks. Several processes add up their
    GPUs; of those that share a machine's CPU one counts it.

    Args:
        joules: from ``energy_meter``.
        device: that of this process.
    """

    name, order, learn = "energy_log", 50, None  # before the log writes its row

    def __init__(self, joules: Callable[[], float | None], device: torch.device) -> None:
        self.joules, self.shared = joules, device.type == "cpu"

    def __call__(self, event: str) -> None:
        """Look at the meter when an epoch's training begins and ends."""
        if event == "before_train":
            self.before = self.joules()
        elif event == "after_train":
            parts = gathered(self._used())
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                self.learn.epoch_clock.extra[ENERGY] = round(sum(known) / 3600, 6)  # type: ignore[attr-defined]

    def _used(self) -> float | None:
        if self.shared and this_place().local:
            return 0.0
        now = self.joules()
        return None if now is None or self.before is None else now - self.before


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
