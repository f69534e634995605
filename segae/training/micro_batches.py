"""Optimizer steps over more images than fit in memory at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from fastai.callback.core import Callback, CancelBatchException

from segae.errors import SegaeError
from segae.training.sharing import EpochSampler, sampler_of


class Accumulate(Callback):
    """Adds the gradients of several batches of the loader before each step of the optimizer.

    A step is that of one batch with all their images, whose mean the loss is, but for BatchNorm: it normalises each
    small batch by its own statistics. The learning rate moves with the steps.

    Args:
        batches: of the loader to a step, 1 or more. The last step of an epoch takes those that are left.

    Raises:
        SegaeError: ``batches`` is below 1.
    """

    order, run_valid = 50, False  # before fastai's ParamScheduler, which sets the rates by pct_train

    def __init__(self, batches: int) -> None:
        if batches < 1:
            raise SegaeError(f"{batches} batches to a step were asked for; 1 or more are wanted.")
        self.batches = batches

    def before_batch(self) -> None:
        """Count the progress of training in steps, so that all batches of a step have its rates."""
        done = (self.learn.iter // self.batches) / math.ceil(self.learn.n_iter / self.batches)
        self.learn.pct_train = (self.learn.epoch + done) / self.learn.n_epoch

    def after_loss(self) -> None:
        """Weigh the batch by its share of the step's images."""
        if self.learn.training:
            self.learn.loss_grad = self.learn.loss_grad * self._share()

    def before_step(self) -> None:
        """Go on to the next batch, gradients kept, unless the step is complete."""
        if not self.completes_step:
            raise CancelBatchException

    @property
    def completes_step(self) -> bool:
        """Whether the running batch is the last one of a step."""
        return (self.learn.iter + 1) % self.batches == 0 or self.learn.iter + 1 == self.learn.n_iter

    def _share(self) -> float:
        first = self.learn.iter - self.learn.iter % self.batches
        last = min(first + self.batches, self.learn.n_iter)
        sampler = sampler_of(self.learn.dl)
        if not isinstance(sampler, EpochSampler):  # a stream, whose batches are all of one size
            return 1 / (last - first)
        return sampler.part(self.learn.iter).total / sum(sampler.part(batch).total for batch in range(first, last))


def completes_step(learner: Any) -> bool:
    """Whether the optimizer moves after the running batch of a Learner, and its gradients are all there."""
    return not hasattr(learner, "accumulate") or learner.accumulate.completes_step


def largest_that_fits(batch_size: int, attempt: Callable[[int], object]) -> int:
    """The largest part of a batch that a device has the memory for: the batch, its half, a quarter ...

    Args:
        batch_size: images of an optimizer step.
        attempt: trains on so many images; raises torch.OutOfMemoryError where they are too many.

    Returns:
        A divisor of ``batch_size``, so that every step has equal parts.

    Raises:
        SegaeError: not even the smallest part fits.
    """
    count = batch_size
    while True:
        try:
            attempt(count)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        else:
            return count
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks of the larger sizes would stay in the way
        if count % 2 or count == 2:  # a single image has no variance for BatchNorm
            raise SegaeError(
                f"not even {count} images fit into the device's memory ({reason}). Use --activation-checkpointing, a "
                "smaller --image-size, a smaller encoder, or a --batch-size that is a power of 2."
            )
        count //= 2
