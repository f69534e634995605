"""The measurement of one cell of throughput.py: ceiling, segae and peers in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import Peer

import segae
from segae.training.ceiling import TrainingStep, measure_ceiling, measure_phases
from segae.training.cost import measured
from segae.training.pace import TimedLoader
from segae.training.sharing import sampler_of

WARM_UP = 10
"""Steps before the first timed one."""


@dataclass(frozen=True)
class Rates:
    """What was measured, one value for each round there and back.

    Attributes:
        ceiling: images per second of the step alone.
        segae: images per second of whole epochs.
        peers: images per second of each peer.
        data_wait: share of segae's epochs, in [0, 1], in which the loop waited for a batch.
        peak_memory_mb: of segae's first epoch, before there are peers; on a CPU that of this process alone, without
            the workers'.
    """

    ceiling: list[float]
    segae: list[float]
    peers: list[tuple[Peer, list[float]]]
    data_wait: float
    peak_memory_mb: float


def measure_rates(learner: Any, device: torch.device, rounds: int, make_peers: Callable[[], list[Peer]]) -> Rates:
    """Measure all of them, by turns.

    A round goes there and back: ceiling, segae, peers, then the same in reverse. What a machine's pace loses or gains
    steadily meanwhile (heat, neighbours) falls on all of them alike; in one order alone it would end up in their ratio.
    A turn of the ceiling has as many steps as an epoch, so both take as long. An epoch of a few steps shows mostly what
    every epoch costs once, so give it as many images as a small data set has.

    Args:
        learner: segae's, without validation images.
        device: where it trains.
        rounds: there and back.
        make_peers: called once segae's memory is known.
    """
    timed = TimedLoader(learner.dls.train, device)
    learner.dls.loaders[0] = timed
    batch, steps = next(iter(timed.loader)), len(timed.loader)
    with measured(device) as cost:
        run_epoch(learner, timed)  # the first one, which starts workers and fills caches, does not count
    peers = make_peers()
    for peer in peers:
        peer.rate()
    measure_ceiling(TrainingStep(learner, batch), warm_up=WARM_UP, steps=1, repeats=1)
    timed.waited_s = timed.worked_s = timed.images = 0
    # what ran before leaves its data in the CPU's caches, and an accelerator clocks down while others decode
    warm_up = 1 if device.type == "cpu" else WARM_UP

    def step() -> TrainingStep:  # a new one each time: an epoch leaves the model in the mode of its (empty) validation
        return TrainingStep(learner, batch)

    def epoch() -> float:
        if warm_up > 1:
            measure_ceiling(step(), warm_up=warm_up - 2, steps=1, repeats=1)
        return run_epoch(learner, timed)  # whose first batch is not timed either

    turns = [
        lambda: measure_ceiling(step(), warm_up=warm_up, steps=steps, repeats=1),
        epoch,
        *(peer.rate for peer in peers),
    ]
    ceiling, rates, *others = zip(*(_there_and_back(turns) for _ in range(rounds)), strict=True)
    learner.dls.loaders[0] = timed.loader
    named = list(zip(peers, map(list, others), strict=True))
    return Rates(list(ceiling), list(rates), named, timed.wait_share, cost.peak_memory_mb)


def _there_and_back(turns: list[Callable[[], float]]) -> list[float]:
    """Each turn's rate over its two times, which do the same work: the harmonic mean."""
    there = [turn() for turn in turns]
    back = [turn() for turn in reversed(turns)][::-1]
    return [statistics.harmonic_mean(pair) for pair in zip(there, back, strict=True)]


def run_epoch(learner: Any, timed: TimedLoader) -> float:
    """Images per second of one epoch, from the first question for a batch to the last line of the log.

    It is the second of its ``fit``: in the first one, cut down to a single batch here, the optimizer makes its moments,
    which happens once in a training.
    """
    sampler, ends = sampler_of(timed.loader), []
    whole, timed.skip = sampler.batches, 1
    sampler.batches = 1

    def ended(row: Mapping[str, Any]) -> None:  # noqa: ARG001
        ends.append(time.perf_counter())
        sampler.batches = whole

    with tempfile.TemporaryDirectory() as folder:
        phases = segae.make_phases(freeze_epochs=0, epochs=2, lr=1e-3)
        log = segae.fit(learner, phases, log_csv=Path(folder) / "log.csv", report=ended)
    return log[-1]["images"] / (ends[-1] - timed.started)


def time_phases(learner: Any, steps: int = 20) -> dict[str, float]:
    """Milliseconds of a step in each of its parts."""
    return measure_phases(TrainingStep(learner, next(iter(learner.dls.train))), warm_up=1, steps=steps)
