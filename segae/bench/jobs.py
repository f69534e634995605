"""What a benchmark's workers do: one pretraining, or one fine-tuning and its scores; a failure is a result too."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segae.bench.grid import Cell
from segae.errors import SegaeError


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        cell: the run; of a pretraining, any run that needs it.
        pretraining: whether the pretraining is to be done and not the run itself.
        device: where it computes.
        log: file that takes what the work prints, and the traceback of an unexpected error.
        shown: whether the work prints to this process's own output instead.
    """

    cell: Cell
    pretraining: bool = False
    device: str = "auto"
    log: Path | None = None
    shown: bool = False

    @property
    def key(self) -> str:
        """Its identity within a benchmark."""
        return str(self.cell.pretraining) if self.pretraining else self.cell.settings

    @property
    def name(self) -> str:
        """For messages."""
        return f"pretraining of {self.cell.arm}, seed {self.cell.seed}" if self.pretraining else self.cell.name


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        row: the result row; empty for a pretraining or a failure.
        details: the lines of the files beside the rows, by file: per_image, confusion, curves.
        failure: why there is no result; empty where there is one.
        ours: whether the failure is a fault of segae and not one that a user can mend.
    """

    row: dict[str, Any] = field(default_factory=dict)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failure: str = ""
    ours: bool = False


def do(job: Job) -> Outcome:
    """Do the work; whatever goes wrong is told and not raised, but for an interruption by the user."""
    with _printing_to(None if job.shown else job.log):
        try:
            return _do(job)
        except SegaeError as error:
            return Outcome(failure=str(error))
        except Exception as error:
            if job.log is not None:
                job.log.parent.mkdir(parents=True, exist_ok=True)
                with job.log.open("a") as file:
                    file.write(traceback.format_exc())
            from segae.training.memory import full_memory  # it loads torch

            if reason := full_memory(error):
                return Outcome(failure=f"the memory is full: {reason}. {_smaller(job)}")
            return Outcome(failure=f"unexpected {type(error).__name__}: {error}", ours=True)


def _smaller(job: Job) -> str:
    """What to type where the memory is full."""
    at_once = job.cell.config.pretrain_batch_size if job.pretraining else job.cell.config.batch_size
    flag = "--pretrain-batch-size" if job.pretraining else "--batch-size"
    half = at_once // 2 if at_once and at_once > 1 else "N"  # a pretraining's may stand in its file
    return f"Wanted less at once: repeat the command with fewer --jobs, or begin in another --out with {flag} {half}."


def _do(job: Job) -> Outcome:
    from filelock import FileLock

    from segae.bench.guards import require_sound_run
    from segae.tasks.compare import pretrain_arm, run_arm, segment_folder
    from segae.tasks.details import details_of

    config, arm, seed = replace(job.cell.config, device=job.device), job.cell.arm, job.cell.seed
    folder = job.cell.pretraining if job.pretraining else segment_folder(config, arm, seed)
    assert folder is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    # what an earlier, killed benchmark left running may still be at it
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if job.pretraining:
            pretrain_arm(config, arm, seed)
            return Outcome()
        row = run_arm(config, arm, seed)
        if config.split != "test":
            return Outcome(row)
        require_sound_run(folder, row)
        details = details_of(folder, {name: str(value) for name, value in row.items()})
        files = {"per_image": details.per_image, "confusion": details.confusion, "curves": details.curve}
        return Outcome(row, {name: [dict(line) for line in lines] for name, lines in files.items()})


@contextlib.contextmanager
def _printing_to(log: Path | None) -> Iterator[None]:
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
        sys.stdout.flush()
