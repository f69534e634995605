"""A few seconds of a real training, timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segae.training.cost import ENERGY, energy_logged, measured
from segae.training.fit import fit
from segae.training.forecast import PhasePace
from segae.training.pace import TimedLoader
from segae.training.power import metered
from segae.training.schedule import Phase


@dataclass(frozen=True)
class Trial:
    """What the timed epochs cost.

    Attributes:
        phases: pace of each phase.
        validation_s_per_image: 0 without validation images.
        between_s: seconds of an epoch beside training and validation.
        peak_memory_mb: in 10^6 bytes.
        watts: mean power of the timed training, as the log's column ``energy_wh`` counts it, or None.
        power_source: what reported it, or why nothing did.
        log: rows of the epochs.
    """

    phases: tuple[PhasePace, ...]
    validation_s_per_image: float
    between_s: float
    peak_memory_mb: float
    watts: float | None
    power_source: str
    log: list[dict[str, Any]]


def try_out(learner: Any, phases: Sequence[Phase], device: torch.device, seconds: float, folder: Path) -> Trial:
    """Train a Learner for some seconds as ``segae.fit`` does, with its log and its checkpoint, and time it.

    Every phase is tried, a last one for longest. A phase has at least one timed batch, so a slow model takes longer
    than was asked for.

    Args:
        learner: from ``pretraining_learner`` or ``segmentation_learner``, on a sample of the images.
        phases: of the planned training.
        device: where it computes.
        seconds: of timed training, above 0.
        folder: where log and checkpoint may be written.
    """
    train, valid = learner.dls.loaders[:2]
    timed_valid = TimedLoader(valid, device, skip=1, limit_s=seconds / 4)
    paces, between, log = [], [], []
    with metered(device) as power:
        pass  # only what it is read from: the pauses of so short a training are no part of its power
    with measured(device) as cost, energy_logged(learner, device):
        for phase in phases:
            share = seconds / 4 if phase is not phases[-1] else seconds * (5 - len(phases)) / 4
            timed = TimedLoader(train, device, skip=10 if device.type == "cuda" else 2, limit_s=share)
            learner.dls.loaders[:2] = [timed, timed_valid]
            while not timed.images or timed.seconds < share:
                before, started = timed.total_s + timed_valid.total_s, time.perf_counter()
                log = fit(
                    learner, [replace(phase, epochs=1)], log_csv=folder / "log.csv", resume_file=folder / "resume.pt"
                )
                spent = timed.total_s + timed_valid.total_s - before
                between.append(time.perf_counter() - started - spent)
            paces.append(_pace(phase, timed))
    learner.dls.loaders[:2] = [train, valid]
    looked_at = timed_valid.images_per_second if timed_valid.images else timed_valid.total_images / timed_valid.total_s
    return Trial(
        tuple(paces),
        1 / looked_at if len(valid) else 0.0,
        statistics.median(between),
        cost.peak_memory_mb,
        _watts(log),
        power.source,
        log,
    )


def _watts(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean power of the training of these epochs; None where that of one is not known."""
    if any(ENERGY not in row for row in log):
        return None
    return 3600 * sum(row[ENERGY] for row in log) / max(sum(row["seconds"] for row in log), 1e-9)


def _pace(phase: Phase, timed: TimedLoader) -> PhasePace:
    per_image = timed.seconds / timed.images
    skipped_s, skipped_images = timed.total_s - timed.seconds, timed.total_images - timed.images
    return PhasePace(phase.name, phase.epochs, per_image, max(skipped_s - skipped_images * per_image, 0.0))
