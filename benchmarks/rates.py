"""The measurement of one cell of throughput.py: ceiling, segae and peers in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
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
Turn = Callable[[], tuple[float, ...]]
"""Gives one rate, or the ceiling's and segae's."""


@dataclass(frozen=True)
class Rates:
    """What was measured, one value for each round there and back.

    Attributes:
        ceiling: images per second of the step alone.
        segae: images per second of whole epochs.
        over_ceiling: an epoch's rate over its ceiling.
        in_epochs: whether the ceiling's steps came between those of an epoch.
        peers: images per second of each peer.
        data_wait: share of segae's epochs, in [0, 1], in which the loop waited for a batch.
        peak_memory_mb: of segae's first epoch, before there are peers; on a CPU that of this process alone, without
            the workers'.
    """

    ceiling: list[float]
    segae: list[float]
    over_ceiling: list[float]
    in_epochs: bool
    peers: list[tuple[Peer, list[float]]]
    data_wait: float
    peak_memory_mb: float


class CeilingBetween:
    """Hands a timed loader's batches on and, after each, trains its ceiling's step twice while the epoch's clock rests.

    The second of the two is timed: it follows a step on the same batch, as a ceiling's steps do. A machine whose pace
    changes by a tenth within seconds disturbs an epoch and its ceiling alike only in turns this short. Not for loaders
    that prepare batches meanwhile, which would get ahead.

    Args:
        timed: the loader; its time between batches is cleared of these steps.
        make_step: the ceiling's, asked for anew in each epoch.

    Attributes:
        images: that the timed ceiling's steps have trained.
        seconds: that they took.
        paused_s: seconds of all of these steps.
    """

    def __init__(self, timed: TimedLoader, make_step: Callable[[], TrainingStep]) -> None:
        self.timed, self.make_step = timed, make_step
        self.images, self.seconds, self.paused_s = 0, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        if name == "timed":  # asked for by copy before there is one
            raise AttributeError(name)
        return getattr(self.timed, name)

    def __len__(self) -> int:
        return len(self.timed)

    def __iter__(self) -> Iterator[Any]:
        step = None
        for batch in self.timed:
            yield batch
            if self.timed.skip > 0:  # a batch that is not timed
                continue
            paused = time.perf_counter()
            step = step or self.make_step()
            step()
            started = time.perf_counter()
            step()
            ended = time.perf_counter()
            self.images += step.images
            self.seconds += ended - started
            self.paused_s += ended - paused
            self.timed.worked_s -= ended - paused


def measure_rates(learner: Any, device: torch.device, rounds: int, make_peers: Callable[[], list[Peer]]) -> Rates:
    """Measure all of them, by turns.

    A round goes there and back: ceiling, segae, peers, then the same in reverse. What a machine's pace loses or gains
    steadily meanwhile (heat, neighbours) falls on all of them alike; in one order alone it would end up in their ratio.
    A turn of the ceiling has as many steps as an epoch, so both take as long; where nothing is prepared in the
    background, the two take turns within an epoch (``CeilingBetween``). An epoch of a few steps shows mostly what
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

    def ceiling() -> tuple[float]:
        return (measure_ceiling(step(), warm_up=warm_up, steps=steps, repeats=1),)

    def epoch() -> tuple[float]:
        if warm_up > 1:
            measure_ceiling(step(), warm_up=warm_up - 2, steps=1, repeats=1)
        return (run_epoch(learner, timed),)  # whose first batch is not timed either

    def both() -> tuple[float, float]:
        between = CeilingBetween(timed, step)
        learner.dls.loaders[0] = between
        rate = run_epoch(learner, timed, between)
        learner.dls.loaders[0] = timed
        return between.images / between.seconds, rate

    in_epochs = takes_turns_in_epochs(timed.loader, device)
    own: list[Turn] = [ceiling, epoch] if not in_epochs else [both, epoch] if peers else [both]
    turns = [*own, *(partial(_alone, peer) for peer in peers)]
    found = [list(values) for values in zip(*(_there_and_back(turns) for _ in range(rounds)), strict=True)]
    learner.dls.loaders[0] = timed.loader
    over_ceiling = [rate / most for most, rate in zip(*found[:2], strict=True)]
    named = list(zip(peers, found[len(found) - len(peers) :], strict=True))
    beside_peers = found[-len(peers) - 1]
    return Rates(found[0], beside_peers, over_ceiling, in_epochs, named, timed.wait_share, cost.peak_memory_mb)


def takes_turns_in_epochs(loader: Any, device: torch.device) -> bool:
    """Whether nothing goes on while an epoch rests: no worker prepares batches, no device has work in its queue."""
    return device.type == "cpu" and loader.num_workers == 0


def _alone(peer: Peer) -> tuple[float]:
    return (peer.rate(),)


def _there_and_back(turns: list[Turn]) -> list[float]:
    """Each turn's rates over its two times, which do the same work: the harmonic means."""
    there = [turn() for turn in turns]
    back = [turn() for turn in reversed(turns)][::-1]
    return [statistics.harmonic_mean(pair) for pair in zip(chain(*there), chain(*back), strict=True)]


def run_epoch(learner: Any, timed: TimedLoader, between: CeilingBetween | None = None) -> float:
    """Images per second of one epoch, from the first question for a batch to the last line of the log.

    It is the second of its ``fit``: in the first one, cut down to a single batch here, the optimizer makes its moments,
    which happens once in a training. What an epoch rests in between does not count.
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
    paused_s = 0.0 if between is None else between.paused_s
    return log[-1]["images"] / (ends[-1] - timed.started - paused_s)


def time_phases(learner: Any, steps: int = 20) -> dict[str, float]:
    """Milliseconds of a step in each of its parts."""
    return measure_phases(TrainingStep(learner, next(iter(learner.dls.train))), warm_up=1, steps=steps)
