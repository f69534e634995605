"""When a training ends before its last epoch: after a number of steps, after a time, or at a plateau."""

# ruff: noqa: D102 - fastai's names of the events say when a method runs, and the class what for
import logging
import time
from abc import abstractmethod

from fastai.callback.core import Callback, CancelFitException, CancelTrainException

from segae._io import check_range, parse_duration
from segae.training.checkpoints import improves
from segae.training.distributed import run_on_main, world_size

logger = logging.getLogger("segae")


class StopEarly(Callback):
    """Ends the training cleanly once a limit is reached; an epoch cut short is logged but not saved."""

    order, run_valid = 200, False  # after all others have seen the batch, and after the epoch was logged

    @property
    @abstractmethod
    def reached(self) -> bool:
        """Whether no further step may follow."""

    @property
    @abstractmethod
    def limit(self) -> str:
        """How far the training came, and the setting that ended it."""

    def after_batch(self) -> None:
        if self.reached and self.learn.iter + 1 < self.learn.n_iter:
            self.learn.epoch_clock.cut = True
            raise CancelTrainException

    def after_epoch(self) -> None:
        if self.reached:
            raise CancelFitException


class StopAfterSteps(StopEarly):
    """Ends the training after a number of optimizer steps."""

    def __init__(self, max_steps: int) -> None:
        check_range("max_steps", max_steps, low=1, integer=True)
        self.max_steps = max_steps

    @property
    def reached(self) -> bool:
        return self.learn.epoch_clock.steps >= self.max_steps

    @property
    def limit(self) -> str:
        return f"{self.learn.epoch_clock.steps} optimizer steps (max_steps {self.max_steps})"


class StopAfterTime(StopEarly):
    """Ends the training after a time, counted from its first step in this process.

    An epoch that would not be finished in time, if it took as long as the one before, is not begun.
    """

    every = 20  # steps between two looks where several processes must agree

    def __init__(self, max_time: str) -> None:
        self.max_time, self.seconds = max_time, parse_duration("max_time", max_time)
        self.started: float | None = None
        self.expired = False

    @property
    def reached(self) -> bool:
        return self.expired

    @property
    def limit(self) -> str:
        return f"{time.monotonic() - (self.started or 0.0):.0f} seconds of training (max_time {self.max_time})"

    def before_fit(self) -> None:
        self.epoch_started = time.monotonic()
        self.started = self.epoch_started if self.started is None else self.started

    def before_train(self) -> None:
        self.epoch_started = time.monotonic()

    def after_batch(self) -> None:
        if world_size() == 1 or (self.learn.iter + 1) % self.every == 0:
            self._look()
        super().after_batch()

    def after_epoch(self) -> None:
        clock = self.learn.epoch_clock
        if clock.now + 1 < clock.end:
            self._look(ahead=time.monotonic() - self.epoch_started)
        super().after_epoch()

    def _look(self, ahead: float = 0.0) -> None:
        """Let rank 0 compare the time, in ``ahead`` seconds, with the limit."""
        left = self.seconds - ahead
        self.expired = self.expired or run_on_main(lambda: time.monotonic() - (self.started or 0.0) >= left)


class EarlyStopping(Callback):
    """Ends a phase cleanly after ``patience`` epochs of it in which the metric ``monitor`` improved by nothing.

    An improvement is one of a relative ``min_delta``. What another phase has learned does not count: a decoder that
    has learned all it can beside a frozen encoder does not keep the encoder from being trained. ``frozen_too`` says
    whether phases with a frozen encoder may end so. Unlike with fastai's EarlyStoppingCallback, a resumed run finds the
    plateau in its log again and trains no further.
    """

    order = 75  # after SaveResume, so that the last epoch is kept

    def __init__(
        self, patience: int, monitor: str = "valid_loss", *, frozen_too: bool = True, min_delta: float = 1e-3
    ) -> None:
        check_range("patience", patience, low=1, integer=True)
        self.patience, self.monitor, self.frozen_too, self.min_delta = patience, monitor, frozen_too, min_delta

    def before_fit(self) -> None:
        if not self.frozen_too and self.learn.opt.frozen_idx > 0:
            return
        best, since, clock = None, 0, self.learn.epoch_clock
        for row in clock.log:
            if row["phase"] == clock.phase and self.monitor in row:
                better = improves(self.monitor, row[self.monitor], best, self.min_delta)
                best, since = (row[self.monitor], 0) if better else (best, since + 1)
        if since >= self.patience and hasattr(self.learn, "epoch_log"):  # within segae.fit
            what = f"{self.monitor} has not improved for {since} epochs (patience {self.patience})"
            logger.info(f"{what}: phase {clock.phase} ends after epoch {len(clock.log)}")
            raise CancelFitException

    def after_epoch(self) -> None:
        clock = self.learn.epoch_clock
        if clock.log and clock.log[-1]["epoch"] == clock.now + 1:
            self.before_fit()
