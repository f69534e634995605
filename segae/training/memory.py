"""Out-of-memory errors, and the largest batch that a device has the memory for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from fastai.learner import Learner
from torch import Tensor

from segae.errors import OutOfMemoryError
from segae.image_format import ImageFormat, Size
from segae.training.distributed import gather_objects, world_size
from segae.training.schedule import set_encoder_mode

logger = logging.getLogger("segae")

_FULL = (  # messages where torch has no error type: its CPU allocators (Linux and Windows), MPS, CUDA outside its cache
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_ADVICE = "Use a smaller batch_size or image_size, gradient accumulation, gradient checkpointing, or a smaller encoder."


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an error of a full memory, of the device or of the machine, from all others."""
    return isinstance(error, OutOfMemoryError) or _reason(error) is not None


def _reason(error: BaseException) -> str | None:
    """The line of an error's message that is about memory; None for other errors."""
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        # fastai puts lines of its own before the message of an error in a callback
        found = next((line for line in lines if "memory" in line.lower()), lines[0])
        return (found or type(error).__name__)[:300]
    full = (line[:300] for line in lines if any(words in line for words in _FULL))
    return next(full, None) if isinstance(error, RuntimeError) else None


@contextmanager
def out_of_memory_as_error(advice: str = _ADVICE) -> Iterator[None]:
    """Raise a full memory within as ``segae.errors.OutOfMemoryError``, with ``advice``; other errors pass unchanged."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise OutOfMemoryError(f"the memory is full ({reason}). {advice}") from error


def largest_batch(make_learner: Callable[[int], Learner], batch_size: int, *, image_size: Size) -> tuple[Learner, int]:
    """Make a Learner with the largest batch that fits into the GPU's memory: ``batch_size``, its half, its quarter ...

    Other devices do not report a full memory reliably, so all of ``batch_size`` is taken there. ``make_learner`` takes
    the number of images in a loader's batch; it and ``batch_size``, of an optimizer step, count those of all ranks.
    ``image_size`` is a side in pixels, or height and width. Also returned is the number of images, a divisor of
    ``batch_size``.
    """
    learner, world = make_learner(batch_size), world_size()
    if learner.dls.device.type != "cuda":
        return learner, batch_size
    own = halve_until_fit(batch_size // world, lambda count: trial_step(learner, count, image_size))
    count = min(gather_objects(own)) * world  # all ranks must agree
    if count == batch_size:
        return learner, batch_size
    logger.warning("%d images do not fit into the GPU's memory at once: %d at a time", batch_size, count)
    return make_learner(count), count


def halve_until_fit(count: int, attempt: Callable[[int], object]) -> int:
    """Call ``attempt`` with a number of images, its half, its quarter ... until it raises no torch.OutOfMemoryError."""
    while True:
        try:
            attempt(count)
            return count
        except torch.OutOfMemoryError as error:
            reason = _reason(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks of the larger sizes would stay in the way
        if count % 2 or count == 2:  # a single image has no variance for BatchNorm
            raise OutOfMemoryError(f"batch_size must split into parts that fit, got {count} ({reason}). {_ADVICE}")
        count //= 2


def trial_step(learner: Learner, count: int, image_size: Size) -> None:
    """Run forward and backward of a Learner's whole model on black images, with AdamW's two moments allocated.

    The moments stay from the first optimizer step to the end of a training, so every batch has to fit beside them.
    Weights, BatchNorm statistics, gradients and random numbers are restored. The Learner must not be fitted yet.
    """
    model, device = learner.model, learner.dls.device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    learner.unfreeze()
    model.train()
    set_encoder_mode(model, learner.encoder_mode.bn_mode, frozen=False)
    moments: list[Tensor] = []
    try:
        moments += [torch.empty_like(weight) for weight in model.parameters() if weight.requires_grad for _ in range(2)]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            channels = getattr(getattr(model.encoder, "info", None), "in_channels", 3)
            _trial_loss(learner, torch.zeros(count, channels, *ImageFormat(image_size).shape, device=device)).backward()
    finally:
        moments.clear()
        model.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        learner.opt = None  # the first phase makes another one


def _trial_loss(learner: Learner, images: Tensor) -> Tensor:
    """Loss of a Learner's model on images, computed as in its training."""
    images, corrupt = images.contiguous(memory_format=torch.channels_last), getattr(learner, "corrupt_input", None)
    inputs, named, targets = (images,), {}, (images[:, 0].long(),)
    if corrupt is not None:
        corrupted = corrupt.method.corrupt(images, torch.Generator(images.device).manual_seed(0))
        inputs, named, targets = corrupt.arguments(corrupted, images)
    with learner.autocast():
        prediction = learner.model(*inputs, **named)
        targets = (targets[0][:, 0, 0],) if prediction.ndim == 2 else targets  # a class for each image
        return learner.loss_func(prediction, *targets)
