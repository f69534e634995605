"""Tell a full memory from a fault, and say what to type then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segae.errors import SegaeError
from segae.training.distributed import this_place

# what torch says where it has no type of its own for it: its allocators for the CPU (Linux and Windows) and for MPS
_FULL = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of")


def full_memory(error: BaseException) -> str | None:
    """What an exception says about a full memory; None where it speaks of anything else."""
    lines = str(error).splitlines() or [""]
    known = [line for line in lines if any(words in line for words in _FULL)]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        # fastai puts lines of its own before the message of an error in a callback
        known = [line for line in lines if "memory" in line.lower()] or [lines[0] or type(error).__name__]
    elif not isinstance(error, RuntimeError):
        return None
    return known[0].strip()[:300] if known else None


@contextmanager
def training_memory(learner: Any, resume_file: Path | None) -> Iterator[None]:
    """Turn a memory that is full in the middle of a training into advice; the finished epochs stay as they are.

    Args:
        learner: what is trained.
        resume_file: where finished epochs are saved, in a run folder; None if they are not.

    Raises:
        SegaeError: in place of an error that says that the memory is full; every other one passes.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = full_memory(error)
        if reason is None:
            raise
        raise SegaeError(_advice(learner, resume_file, reason)) from error


@contextmanager
def prediction_memory(images: int) -> Iterator[None]:
    """The same for a forward pass, or what follows it, over so many images at once."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = full_memory(error)
        if reason is None:
            raise
        fewer = f"--batch-size {images // 2} (segae evaluate and segae predict), or " if images > 1 else ""
        raise SegaeError(
            f"the memory is full: {images} image(s) at once are too many ({reason}). Wanted fewer at once, or more "
            f"memory. Repeat the command with {fewer}--device cpu."
        ) from error


def _advice(learner: Any, resume_file: Path | None, reason: str) -> str:
    clock, world = learner.epoch_clock, this_place().world
    each = getattr(learner.dls.train.batch_sampler, "batch_size", 1)
    at_once, parts = each * world, learner.accumulate.batches if hasattr(learner, "accumulate") else 1
    flags = ["--activation-checkpointing"]
    if each % 2 == 0 and each > 2:  # a single image has no variance for BatchNorm
        flags.insert(0, f"--micro-batch {at_once // 2}")
    done = len(clock.log)
    kept = f"The {done} finished epoch(s) are kept. " if done and resume_file is not None else ""
    return (
        f"the memory is full in epoch {done + 1}: {at_once} images at once, in batches of {at_once * parts}, are too "
        f"many ({reason}). Wanted fewer at once, or less kept of each. {kept}{_how(resume_file, flags)}"
    )


def _how(resume_file: Path | None, flags: list[str]) -> str:
    """The line to type; by the run's configuration, because segae compare trains too and has no such flags."""
    if resume_file is None:
        return f"Train with {' or '.join(flags)}, a smaller image size or a smaller encoder."
    config = resume_file.parent / "config.json"
    try:
        task = str(json.loads(config.read_text())["task"]).lower()
    except (OSError, ValueError, KeyError):
        return f"Repeat the command with --resume and {' or '.join(flags)}."
    more = f" (or {flags[1]})" if len(flags) > 1 else ""
    return f"Type segae {task} --config {config} --resume {flags[0]}{more}."
