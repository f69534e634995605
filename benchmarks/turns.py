"""Two ways of the same work, timed in pairs, there and back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from segae.training.pace import synchronise


@dataclass(frozen=True)
class Pairs:
    """What was measured, one value for each pair.

    Attributes:
        on_s: seconds of a step of the first way.
        off_s: seconds of a step of the second.
    """

    on_s: list[float]
    off_s: list[float]

    @property
    def ratios(self) -> list[float]:
        """Time of the first way over that of the second."""
        return [on / off for on, off in zip(self.on_s, self.off_s, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        on_ms, off_ms = (1000 * statistics.median(values) for values in (self.on_s, self.off_s))
        spread = f"{min(self.ratios):.3f} to {max(self.ratios):.3f}"
        return f"{on_ms:9.2f} ms against {off_ms:9.2f} ms, ratio {self.ratio:.3f} ({spread} in {len(self.on_s)} pairs)"


def time_pairs(
    on: Callable[[], Any],
    off: Callable[[], Any],
    pairs: int,
    device: torch.device,
    *,
    steps: int = 1,
    warm_up: int = 2,
) -> Pairs:
    """Time both ways by turns; every second pair begins with the second one.

    What a machine's pace loses or gains steadily meanwhile then falls on both alike.

    Args:
        on: does one step of the first way.
        off: does one step of the second.
        pairs: 1 or more.
        device: waited for before and after each turn.
        steps: in a turn; an accelerator's queue wants several.
        warm_up: pairs before them that do not count.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(-warm_up, pairs):
        for way in (True, False) if turn % 2 else (False, True):
            work = on if way else off
            synchronise(device)
            started = time.perf_counter()
            for _ in range(steps):
                work()
            synchronise(device)
            if turn >= 0:
                seconds[way].append((time.perf_counter() - started) / steps)
    return Pairs(seconds[True], seconds[False])
