"""Keep the weights of the best epochs of a training, by a validation metric, beside those of the last one."""

# ruff: noqa: D102 - fastai's names of the events say when a method runs, and the class what for
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback

from segae._io import check_range, require_choice
from segae.errors import SegaeError
from segae.training.distributed import rank, run_on_main

logger = logging.getLogger("segae")

HIGHER_IS_BETTER = {"valid_loss": False, "miou": True, "accuracy": True, "probe_miou": True}
"""The columns of a log by which an epoch can be the best one."""
TOP_FILE = re.compile(r"top_(\d+)\.(safetensors|json)")


def improves(monitor: str, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    """Whether a value of a metric is better than the best one so far, by a relative ``min_delta``; NaN never is."""
    if best is None or not math.isfinite(value):
        return math.isfinite(value)
    gain = value - best if HIGHER_IS_BETTER[monitor] else best - value
    return gain > min_delta * abs(best)


def best_epochs(rows: Iterable[Mapping[str, Any]], monitor: str) -> list[Mapping[str, Any]]:
    """Sort the rows of a log by a metric, the best first, of equal ones the earliest; rows without it are left out."""
    require_choice("monitor", monitor, HIGHER_IS_BETTER)
    sign = -1 if HIGHER_IS_BETTER[monitor] else 1
    return sorted(
        (row for row in rows if math.isfinite(row.get(monitor, math.nan))),
        key=lambda row: (sign * row[monitor], row["epoch"]),
    )


class KeepBest(Callback):
    """Keeps the weights of the best finished epoch, and of the ``top_k`` best ones in files top_EPOCH.safetensors.

    Files are written after the resume file, and again if a run was killed in between: they are always of epochs that a
    resumed run knows.

    Args:
        path: file of the best epoch; the others stand beside it.
        save: writes the model as it is to a path, in rank 0.
        monitor: a column of the log, of ``HIGHER_IS_BETTER``.
        top_k: 0 keeps no file, 1 the best epoch alone.
    """

    order = 72  # after SaveResume, before EarlyStopping

    def __init__(self, path: Path, save: Callable[[Path], object], monitor: str, top_k: int = 1) -> None:
        require_choice("monitor", monitor, HIGHER_IS_BETTER)
        check_range("save_top_k", top_k, low=0, integer=True)
        self.path, self.save, self.monitor, self.top_k = path, save, monitor, top_k
        self.kept = 0  # the last epoch that was looked at

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The row of the best finished epoch; None before there is one."""
        return next(iter(self._ranking()), None)

    @property
    def files(self) -> list[Path]:
        """The files that are there, the best epoch's first."""
        others = [self._top(row) for row in self._ranking()] if self.top_k > 1 else []
        return [path for path in [self.path, *others] if self.top_k and path.is_file()]

    def finish(self) -> dict[str, Any]:
        """Keep the last epoch where it is to be, and say for metrics.json which one was the best; all ranks call it."""
        self.keep()
        found, row = {"monitor": self.monitor, "best_epoch": None, "best_value": None}, self.best
        if row is not None:
            found |= {"best_epoch": row["epoch"], "best_value": row[self.monitor]}
            where = f", kept in {self.path.name}" if self.files else ""
            text = "best %s %.4f after epoch %d%s; all other results are of the last epoch"
            logger.info(text, self.monitor, row[self.monitor], row["epoch"], where)
        elif self.top_k:
            logger.info("no epoch was finished: %s is not written", self.path.name)
        return found

    def before_fit(self) -> None:
        self._keep_or_stop()

    def after_epoch(self) -> None:
        clock = self.learn.epoch_clock
        if clock.log and clock.log[-1]["epoch"] == clock.now + 1:
            self._keep_or_stop()

    def keep(self) -> None:
        """Write and delete what the log asks for, once after each finished epoch; all ranks call this."""
        clock, ranking = self.learn.epoch_clock, self._ranking()
        last = clock.log[-1]["epoch"] if clock.log else 0
        if clock.cut or last == self.kept or not self.top_k:
            return
        self.kept = last
        kept = ranking[: self.top_k]
        paths = [self._top(row) for row in kept if row["epoch"] == last and self.top_k > 1]
        paths += [self.path] if kept and kept[0]["epoch"] == last else []
        for path in paths:
            run_on_main(lambda path=path: self.save(path))  # type: ignore[misc]
        if rank() == 0:
            epochs = {row["epoch"] for row in kept} if self.top_k > 1 else set()
            for path in self.path.parent.glob("top_*"):
                if (found := TOP_FILE.fullmatch(path.name)) and int(found[1]) not in epochs:
                    path.unlink(missing_ok=True)

    def _keep_or_stop(self) -> None:
        try:
            self.keep()
        except SegaeError as failure:
            self.learn.epoch_clock.stop(failure)

    def _ranking(self) -> list[Mapping[str, Any]]:
        clock = self.learn.epoch_clock
        return best_epochs(clock.log[:-1] if clock.cut else clock.log, self.monitor)

    def _top(self, row: Mapping[str, Any]) -> Path:
        return self.path.with_name(f"top_{row['epoch']}.safetensors")
