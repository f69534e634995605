"""Run the phases of a training on a Learner, and resume an interrupted run bit for bit."""

import hashlib
import io
import logging
import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from torch.utils._pytree import tree_leaves, tree_map

from segae._io import write_atomically
from segae.errors import CheckpointError, SegaeError
from segae.training.callbacks import EpochClock, EpochLog, all_finite, epoch_line, spans_phases
from segae.training.device import keep_memory_shared
from segae.training.distributed import broadcast_state, run_on_main, sync_batchnorm
from segae.training.memory import out_of_memory_as_error
from segae.training.schedule import Phase
from segae.training.stopping import StopEarly

logger = logging.getLogger("segae")

_MAGIC = b"segae-resume-2 "  # then the hexadecimal digest of what follows the line's end
_KEYS = {"epochs_done", "steps", "model", "optimizer", "log"}


def fit(
    learner: Learner,
    phases: Sequence[Phase],
    *,
    log_csv: Path | None = None,
    resume_file: Path | None = None,
    resume: bool = False,
    report: Callable[[dict[str, Any]], object] | None = None,
) -> pd.DataFrame:
    """Train a Learner through the phases, with a progress bar on a terminal.

    Several processes, joined by ``init_distributed``, call this with the same arguments; rank 0 has the files.

    Args:
        learner: from ``pretraining_learner`` or ``segmentation_learner``.
        phases: from ``pretraining_phases`` or ``freeze_finetune_phases``.
        log_csv: where the log goes after every epoch; None writes none.
        resume_file: written after every epoch; None writes none.
        resume: go on after the last epoch in ``resume_file``; on a CPU, with as many threads and processes, the result
            is bit for bit that of an uninterrupted run.
        report: called with each epoch's row; None logs its ``epoch_line`` at INFO.

    Returns:
        The log, a row per epoch: epoch (1-based), phase, train_loss, lr_encoder, lr_head, images, seconds,
        images_per_second, peak_memory_mb; with validation images valid_loss, and miou or what pretraining measures.

    Raises:
        SegaeError: the loss is not a number, the memory is full, or a file could not be written. What was saved stays.
        CheckpointError: the resume file is missing, damaged or of another model.
    """
    clock: EpochClock = learner.epoch_clock
    done, optimizer = 0, None
    if resume and resume_file is not None:
        state = run_on_main(lambda: load_resume_file(resume_file))
        done, optimizer, clock.log, clock.steps = (state[key] for key in ("epochs_done", "optimizer", "log", "steps"))
        try:
            learner.model.load_state_dict(state["model"], strict=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"resume_file must be of this model, got {resume_file}: {reason}") from error
    log = EpochLog(log_csv, report or (lambda row: logger.info(epoch_line(row))))
    clock.offset = 0 if done else len(clock.log)  # a second fit of the same learner counts on
    clock.epochs = clock.offset + sum(phase.epochs for phase in phases)
    learner.model = sync_batchnorm(learner.model, learner.dls.device)
    broadcast_state(learner.model.state_dict().values())
    limits = [callback for callback in learner.cbs if isinstance(callback, StopEarly)]
    saving = [SaveResume(resume_file)] if resume_file is not None else []
    # fastai's own loaders keep theirs one level down; one that does not say may have some
    workers = any(getattr(getattr(one, "fake_l", one), "num_workers", 1) for one in learner.dls)
    try:
        with (
            keep_memory_shared() if workers else nullcontext(),
            out_of_memory_as_error(),
            learner.added_cbs([log, *saving]),
            learner.no_logging(),
            learner.no_bar(),
        ):
            for phase in phases:
                start = min(max(done - clock.offset, 0), phase.epochs)
                if start < phase.epochs and not any(limit.reached for limit in limits):
                    clock.phase = phase.name
                    (learner.unfreeze if phase.train_encoder else learner.freeze)()  # both create the optimizer
                    if start and optimizer is not None:
                        learner.opt.load_state_dict(optimizer)
                    rates = [phase.lr_encoder, phase.lr_head][-len(learner.opt.param_lists) :]
                    curve = {"pct_start": phase.warmup, "div": phase.start_divisor}
                    learner.hidden_events |= {"after_fit"}
                    learner.fit_one_cycle(phase.epochs, rates, **curve, start_epoch=start)
                    learner.hidden_events |= {"before_fit"}
                clock.offset += phase.epochs
            for callback in learner.cbs.sorted("order").filter(spans_phases) if learner.hidden_events else ():
                callback("after_fit")
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        # torch's BatchNorm, which cannot estimate a variance
        raise SegaeError(f"batch_size must be >= 2 in every training batch, or images larger ({error})") from error
    finally:
        log.bar.close()
        learner.hidden_events.clear()
    for limit in [limit for limit in limits if limit.reached][: len(clock.log)]:
        logger.info("stopped after %s", limit.limit)
    return pd.DataFrame(clock.log)


class SaveResume(Callback):
    """Writes model, optimizer, log and position after every finished epoch."""

    order = 70  # after the log has its row

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_epoch(self) -> None:
        """Save, unless this epoch was skipped, cut short or failed."""
        clock, learn = self.learn.epoch_clock, self.learn
        if not clock.running or clock.cut:
            return
        clock.running = False
        content = {"epochs_done": clock.now + 1, "steps": clock.steps, "log": clock.log}
        content |= {"model": learn.model.state_dict(), "optimizer": learn.opt.state_dict()}
        try:
            run_on_main(lambda: save_resume_file(self.path, content))
        except SegaeError as failure:
            clock.stop(failure)


def save_resume_file(path: Path, content: dict[str, Any]) -> None:
    """Write finite tensors and plain values with a checksum, atomically; reading them back runs no code."""
    _require_finite(path, content)
    buffer = io.BytesIO()  # in memory: writing to a full disk itself, torch would raise a RuntimeError
    # fastai's schedules leave NumPy scalars
    torch.save(tree_map(lambda value: value.item() if isinstance(value, np.generic) else value, content), buffer)
    data = buffer.getbuffer()
    header = _MAGIC + hashlib.blake2b(data, digest_size=16).hexdigest().encode() + b"\n"
    write_atomically(path, lambda file: (file.write(header), file.write(data)))


def load_resume_file(path: Path) -> dict[str, Any]:
    """Read what ``save_resume_file`` wrote, tensors on the CPU.

    CheckpointError if there is no such file, a byte has changed, or it holds code or tensors that are not finite.
    """
    try:
        header, _, body = path.read_bytes().partition(b"\n")
        if header != _MAGIC + hashlib.blake2b(body, digest_size=16).hexdigest().encode():
            raise CheckpointError(f"resume_file must be undamaged, got {path}, whose checksum differs")
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise CheckpointError(f"resume_file must be one that fit wrote, got {path}: {error}") from error
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        raise CheckpointError(f"resume_file must be one that fit wrote, got {path} with other content")
    _require_finite(path, content)
    return content


def _require_finite(path: Path, content: dict[str, Any]) -> None:
    if not all_finite(tree_leaves([content.get("model"), content.get("optimizer")])):
        raise CheckpointError(f"{path} must hold finite weights, got infinite or NaN ones")
