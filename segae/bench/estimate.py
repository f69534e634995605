"""How long a benchmark will take, from about ten seconds of each kind of its runs."""

from __future__ import annotations

import contextlib
import gc
import io
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segae.bench.benchmark import Bench
from segae.bench.engine import share_of_cores
from segae.bench.grid import Cell
from segae.errors import SegaeError
from segae.tasks.arms import own_settings, parse_arm, pretraining_of
from segae.tasks.plan import Plan
from segae.tasks.plan import run as plan
from segae.tasks.scoring import VAL_FRACTION
from segae.training.forecast import Forecast, in_words
from segae.training.threads import with_threads

TRIED_S = 10.0
"""Seconds of training that are timed of each kind of run."""


@dataclass(frozen=True)
class StandIns:
    """How many images there will be, where drawn ones stand in for them.

    Attributes:
        train: of the training split.
        test: of the test split.
        unlabelled: further ones for pretraining.
    """

    train: int
    test: int
    unlabelled: int = 0


@dataclass(frozen=True)
class Estimate:
    """What is known of the time before the start.

    Attributes:
        work_s: of everything that could be tried, one after the other.
        longest_s: of the longest run with the pretraining that it waits for.
        pretrainings: how many are to be done.
        unknown: of each kind that could not be tried how many there are, and why.
    """

    work_s: float
    longest_s: float
    pretrainings: int
    unknown: Mapping[str, tuple[int, str]]

    def seconds(self, at_once: int) -> float:
        """With so many at once, which helps no run that is alone."""
        return max(self.work_s / at_once, self.longest_s)


def tell_estimate(config: Bench, missing: Sequence[Cell], stand_ins: StandIns | None = None) -> None:
    """Try out each kind of run as the benchmark will do it, and print how long all of them will take.

    Raises:
        SegaeError: a device of this machine is not there. Whatever else goes wrong is printed.
    """
    from segae.bench.planning import jobs_of
    from segae.training.device import choose_device

    jobs = jobs_of(config)
    alone = config.engine == "local" and jobs == 1
    for device in config.devices if config.engine == "local" else ():
        choose_device(device)
    with with_threads(config.threads if alone else share_of_cores(jobs, config.threads)):
        found = estimate(missing, config.devices[0], stand_ins)
    at_once = max(1, min(jobs, len(missing)))
    work = _counted(len(missing), "run")
    if found.pretrainings:
        work += f" and {_counted(found.pretrainings, 'pretraining')}"
    together = f" with {at_once} at once" if at_once > 1 else ""
    print(f"{work} to be done: {_time(found, at_once)}{together}.")
    for kind, (count, why) in found.unknown.items():
        print(f"  unknown for {count} x {kind}: {why}")
    print("Interrupt and repeat the command as you like; --no-estimate starts without this.", flush=True)


def estimate(cells: Sequence[Cell], device: str, stand_ins: StandIns | None = None) -> Estimate:
    """Try out each kind of these runs, and of the pretrainings that they miss, on this device.

    A kind that cannot be tried costs nothing but the knowledge of its time: the run itself will tell what is wrong.
    """
    from segae.training.run import DONE_FILE

    trials = _Trials(device, stand_ins)
    waiting: dict[Path, float] = {}
    runs_s, longest_s = 0.0, 0.0
    for cell in cells:
        before_s = 0.0
        if cell.pretraining and not (cell.pretraining / DONE_FILE).exists():
            if cell.pretraining not in waiting:
                waiting[cell.pretraining] = trials.pretraining(cell)
            before_s = waiting[cell.pretraining]
        run_s = trials.run(cell)
        runs_s += run_s
        longest_s = max(longest_s, before_s + run_s)
    decode_s = sum(trials.decode_s.values())  # once: later runs find the decoded images
    unknown = {kind: (trials.counts[kind], why) for kind, why in trials.failed.items()}
    return Estimate(runs_s + sum(waiting.values()) + decode_s, longest_s + decode_s, len(waiting), unknown)


class _Trials:
    """What ``segae plan`` forecasts of each kind, once; 0 seconds for what cannot be tried."""

    def __init__(self, device: str, stand_ins: StandIns | None) -> None:
        self.device, self.stand_ins = device, stand_ins
        self.decode_s: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._known: dict[str, Forecast | None] = {}

    def run(self, cell: Cell) -> float:
        """Seconds of a fine-tuning and its scoring, without decoding."""
        tried = own_settings(cell.config, parse_arm(cell.arm))
        forecast = self._forecast(
            f"{tried.encoder}, {tried.decoder}, {tried.freeze_epochs} + {tried.epochs} epochs",
            kind="segment",
            data=(tried.data,),
            classes=tried.classes,
            images=self.stand_ins and self.stand_ins.train,
            encoder=tried.encoder,
            decoder=tried.decoder,
            image_size=tried.image_size,
            batch_size=tried.batch_size,
            freeze_epochs=tried.freeze_epochs,
            epochs=tried.epochs,
            val_fraction=0.0,
        )
        if forecast is None:
            return 0.0
        train, scored = self._sizes(cell)
        self._decoding("segment", forecast.decode_s * (1 + scored / train))
        # a look at an image is about a third of a training step, and the pictures are about as many as training draws
        scoring_s = scored / forecast.images_per_second / 3 + forecast.finish_s
        return forecast.total_s - forecast.decode_s + scoring_s

    def pretraining(self, cell: Cell) -> float:
        """Seconds of the pretraining that a run waits for, without decoding."""
        wanted, arm = pretraining_of(cell.config, parse_arm(cell.arm), cell.seed), cell.arm.partition("@")[0]
        forecast = self._forecast(
            f"pretraining of {arm} on {wanted.encoder}",
            kind="pretrain",
            data=wanted.data,
            images=self.stand_ins and self.stand_ins.train + self.stand_ins.unlabelled,
            encoder=wanted.encoder,
            decoder=wanted.decoder,
            objective=wanted.objective,
            image_size=wanted.image_size,
            batch_size=wanted.batch_size,
            epochs=wanted.epochs,
            repeats=wanted.repeats,
        )
        if forecast is None:
            return 0.0
        self._decoding("pretrain", forecast.decode_s)
        return forecast.total_s - forecast.decode_s

    def _forecast(self, what: str, **planned: Any) -> Forecast | None:
        """The forecast of a kind of run; None where it cannot be tried."""
        self.counts[what] += 1
        if what not in self._known:
            self._known[what] = None
            if self.stand_ins:
                planned |= {"data": (), "classes": ()}
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # its table
                    self._known[what] = plan(Plan(**planned, device=self.device, seconds=TRIED_S))
            except Exception as error:  # whatever it is, the other kinds can be run
                self.failed[what] = _why(error)
            _forget()
        return self._known[what]

    def _sizes(self, cell: Cell) -> tuple[int, int]:
        """Images that are trained on and scored."""
        if self.stand_ins:
            return self.stand_ins.train, self.stand_ins.test
        splits = cell.used.labelled[2]
        train = len(splits["train"])
        return train, len(splits["test"]) if cell.config.split == "test" else round(VAL_FRACTION * train)

    def _decoding(self, kind: str, seconds: float) -> None:
        self.decode_s[kind] = max(self.decode_s.get(kind, 0.0), seconds)


def told_before_download(config: Bench, root: Path) -> Bench:
    """Tell how long it will take before Oxford-IIIT Pets are downloaded; drawn pictures stand in for them.

    Returns:
        The configuration, without the estimate where it was told.
    """
    from segae.bench.planning import cells_of, grids_of
    from segae.data.oxford_pets import ARCHIVES
    from segae.data.pretraining import find_pretraining_images
    from segae.tasks.trial import draw_stand_ins

    if not config.estimate or all((root / f".{archive}.unpacked").exists() for archive in ARCHIVES):
        return config
    further = len(find_pretraining_images(config.unlabelled)) if config.unlabelled else 0
    pets = StandIns(train=3680, test=3669, unlabelled=further)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base, grids = grids_of(replace(config, data=draw_stand_ins(Path(folder) / "drawn", size=64)))
        print("Oxford-IIIT Pets will be downloaded (0.8 GB); until then drawn pictures stand in for them.")
        tell_estimate(config, cells_of(base, grids, pets.train), pets)
    return replace(config, estimate=bool(config.tune))  # the search for settings is other work, told on its own


def _time(found: Estimate, at_once: int) -> str:
    if not found.unknown:
        return f"about {in_words(found.seconds(at_once))}"
    return f"about {in_words(found.seconds(at_once))} for what could be tried" if found.work_s else "no time is known"


def _why(error: Exception) -> str:
    """In words; what is said of a full memory is advice for a single training, and none for a benchmark."""
    from segae.training.memory import full_memory

    if reason := full_memory(error) or full_memory(error.__cause__ or error):
        return f"the memory is full: {reason}"
    return str(error) if isinstance(error, SegaeError) else f"unexpected {type(error).__name__}: {error}"


def _forget() -> None:
    """Give the memory of a trial back before the next one."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
