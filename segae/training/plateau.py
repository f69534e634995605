"""When a training has stopped learning: a rule about its own losses, which no label and no test image enters."""

from __future__ import annotations

from collections.abc import Sequence


def at_plateau(losses: Sequence[float], patience: int, min_delta: float) -> bool:
    """Whether the last ``patience`` losses all failed to lie below the best one before them by ``min_delta`` of it."""
    best, since = float("inf"), 0
    for loss in losses:
        if best == float("inf") or best - loss > min_delta * abs(best):
            best, since = loss, 0
        else:
            since += 1
    return since >= patience
