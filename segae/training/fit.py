"""Run phases on a Learner, and take them up again where an interrupted run stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError
from segae.training.batchnorm import batches_of_several
from segae.training.callbacks import Bfloat16Autocast, EpochClock, SumGradients
from segae.training.checkpoint import load_resume_file
from segae.training.distributed import make_equal, once, this_place
from segae.training.memory import training_memory
from segae.training.recording import EpochLog, ProgressBar, SaveResume
from segae.training.schedule import Phase
from segae.training.synchronised_batchnorm import synchronised_batchnorm

if TYPE_CHECKING:
    from fastai.learner import Learner


def fit(
    learner: Learner,
    phases: Sequence[Phase],
    *,
    log_csv: Path | None = None,
    resume_file: Path | None = None,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a Learner through the phases.

    Args:
        learner: from ``pretraining_learner`` or ``segmentation_learner``.
        phases: from ``make_phases``.
        log_csv: where the per-epoch log goes; None writes none.
        resume_file: written after every epoch; None writes none.
        resume: go on after the last epoch in ``resume_file``. On a CPU the result is bit for bit that of an
            uninterrupted run with as many processes.
        report: called with each epoch's row.

    Several processes, joined by ``segae.training.distributed.joined``, train one model: all call this with the same
    arguments, the first one reads and writes the files, and the result is that of one process but for rounding.

    Returns:
        The log: a dict per epoch with epoch (1-based), phase, train_loss, lr_encoder, lr_head, images, seconds,
        images_per_second and, with validation images, valid_loss and miou.

    Raises:
        SegaeError: the loss is not a number, the memory is full, or a file could not be written. What was saved stays.
    """
    clock: EpochClock = learner.epoch_clock
    done, optimizer_state = 0, None
    if resume and resume_file is not None:
        state = once(lambda: load_resume_file(resume_file))
        done, optimizer_state, clock.log = state["epochs_done"], state["optimizer"], state["log"]
        _load_model(learner, state["model"], resume_file)
        if "streams" in state:
            streams = state["streams"]
            learner.dls.train.dataset.load_state_dict(streams[this_place().rank % len(streams)], streams)
    extra = [EpochLog(log_csv, report), ProgressBar()]
    if resume_file is not None:
        extra.append(SaveResume(resume_file))
    clock.offset = 0 if done else len(clock.log)  # a second fit of the same learner counts on
    clock.epochs = clock.offset + sum(phase.epochs for phase in phases)
    make_equal(learner.model)
    try:
        with training_memory(learner, resume_file), batches_of_several(), ExitStack() as stack:
            if this_place().world > 1:
                extra.append(SumGradients(stack.enter_context(synchronised_batchnorm(learner.model))))
            for context in (learner.added_cbs(extra), learner.no_logging(), learner.no_bar()):
                stack.enter_context(context)
            for phase in phases:
                start = min(max(done - clock.offset, 0), phase.epochs)
                if start < phase.epochs:
                    _run_phase(learner, phase, start, optimizer_state)
                clock.offset += phase.epochs
    finally:
        for callback in learner.cbs:
            if isinstance(callback, Bfloat16Autocast):
                callback.leave()
    return clock.log


def print_epoch(row: dict[str, Any]) -> None:
    """One line for a finished epoch."""
    parts = [f"epoch {row['epoch']:3d} {row['phase']:<8}", f"train loss {row['train_loss']:.4f}"]
    if "valid_loss" in row:
        parts.append(f"valid loss {row['valid_loss']:.4f}")
    if "miou" in row:
        parts.append(f"valid mIoU {row['miou']:.3f}")
    if "probe_miou" in row:
        parts.append(f"probe mIoU {row['probe_miou']:.3f}")
    print("  ".join([*parts, f"{row['images_per_second']:.0f} images/s"]), flush=True)


def _run_phase(learner: Learner, phase: Phase, start: int, optimizer_state: dict[str, Any] | None) -> None:
    clock: EpochClock = learner.epoch_clock
    clock.phase, clock.failure = phase.name, None
    (learner.unfreeze if phase.train_encoder else learner.freeze)()  # both start with a fresh optimizer state
    if start and optimizer_state is not None:
        learner.opt.load_state_dict(optimizer_state)
    groups = len(learner.opt.param_lists)
    rates = [phase.lr_encoder, phase.lr_head][-groups:]
    learner.fit_one_cycle(
        phase.epochs,
        rates,
        pct_start=phase.warmup,
        div=phase.start_divisor,
        start_epoch=start,
    )
    if clock.failure is not None:
        raise clock.failure


def _load_model(learner: Learner, state: dict[str, Any], path: Path) -> None:
    try:
        learner.model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SegaeError(
            f"{path} is of another model: {str(error).splitlines()[-1].strip()}. Start again with --overwrite."
        ) from error
