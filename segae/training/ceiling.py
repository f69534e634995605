"""The ceiling of a training: its own step on a batch that never leaves the device, without a loader or a loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.training.pace import synchronise
from segae.training.schedule import set_encoder_mode

PHASES = ("corruption", "forward", "backward", "optimizer")


class TrainingStep:
    """One optimizer step of a Learner, over and over on one batch: no callback, no schedule, no loader.

    Model, loss, optimizer, autocast, corruption and penalty are the Learner's own; it is trained when this is called.
    Call ``freeze()`` or ``unfreeze()`` of the Learner before: a frozen encoder rests here as it does there. What a hard
    mask costs besides (two forward passes) is left out, and each batch is a step of its own, whatever is accumulated.

    Args:
        learner: from ``pretraining_learner`` or ``segmentation_learner``.
        batch: as its loaders give it: (image (B, 3, H, W),) or (image, mask (B, H, W)); moved to the model's device.
        seed: of the corruptions.

    Attributes:
        images: B.
        device: where the step computes.

    Example:
        >>> step = TrainingStep(learner, next(iter(learner.dls.train)))
        >>> measure_ceiling(step)
    """

    def __init__(self, learner: Any, batch: Sequence[Tensor], seed: int = 0) -> None:
        if learner.opt is None:
            learner.create_opt()
        learner.opt.set_hypers(lr=learner.lr, wd=learner.wd)  # a fit ends with a rate near zero
        self.model, self.optimizer, self.loss = learner.model, learner.opt, learner.loss_func
        self.device = next(self.model.parameters()).device
        layout = torch.channels_last if self.device.type in ("cpu", "cuda") else torch.contiguous_format
        image_bchw = batch[0].to(self.device).contiguous(memory_format=layout)
        self.batch = (image_bchw, *(part.to(self.device) for part in batch[1:]))
        self.images = len(image_bchw)
        self.halved = hasattr(learner, "bfloat16_autocast")
        self.penalty = learner.distance_penalty if hasattr(learner, "distance_penalty") else None
        self.corrupt = learner.corrupt_input if hasattr(learner, "corrupt_input") else None
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.model.train()
        set_encoder_mode(self.model, learner.encoder_mode.bn_mode, frozen=learner.opt.frozen_idx > 0)

    def __call__(self) -> Tensor:
        """Train one step; the loss before it, detached, not yet waited for."""
        loss = self.forward(*self.show())
        self.backward(loss)
        self.update()
        return loss.detach()

    def show(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What the model is called with, and what its output is compared with."""
        if self.corrupt is None:
            return self.batch[:1], self.batch[1:]
        clean_bchw = self.batch[0]
        corrupted = self.corrupt.objective.corruption(clean_bchw, self.generator)
        share, cut_b = self.corrupt.skip_dropout, None
        if share:
            cut_b = torch.rand(self.images, generator=self.generator, device=self.device) < share
        target_bchw = clean_bchw if corrupted.target_bchw is None else corrupted.target_bchw
        return self.corrupt.inputs(corrupted, cut_b), (target_bchw, corrupted.hidden_b1hw)

    def forward(self, inputs: tuple[Any, ...], targets: tuple[Any, ...]) -> Tensor:
        """The loss, under autocast where the Learner has it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.halved):
            return self.loss(self.model(*inputs), *targets)

    def backward(self, loss: Tensor) -> None:
        """Gradients, with the penalty's added."""
        loss.backward()
        if self.penalty is not None:
            self.penalty.after_backward()

    def update(self) -> None:
        """Move the weights and forget the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure_ceiling(
    step: Callable[[], Any],
    images: int | None = None,
    device: torch.device | None = None,
    *,
    warm_up: int = 10,
    steps: int = 40,
    repeats: int = 3,
) -> float:
    """Images per second that a step trains at most: the median of the repeats.

    Args:
        step: trains one batch when called, such as a ``TrainingStep``.
        images: in its batch; None asks ``step.images``.
        device: where it computes; None asks ``step.device``.
        warm_up: steps that are not timed, 0 or more.
        steps: timed steps in a repeat; the device is waited for before and after them, not between.
        repeats: 1 or more.

    Raises:
        SegaeError: a number is out of range.
    """
    if warm_up < 0 or steps < 1 or repeats < 1:
        raise SegaeError(
            f"{warm_up} warm-up steps and {repeats} repeats of {steps} steps were asked for; wanted 0 or more, 1 or "
            "more and 1 or more, such as measure_ceiling(step, warm_up=10, steps=40, repeats=3)."
        )
    count = step.images if images is None else images  # type: ignore[attr-defined]
    place: torch.device = step.device if device is None else device  # type: ignore[attr-defined]
    for _ in range(warm_up):
        step()
    rates = []
    for _ in range(repeats):
        synchronise(place)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(place)
        rates.append(count * steps / (time.perf_counter() - started))
    return statistics.median(rates)


def measure_phases(step: TrainingStep, *, warm_up: int = 10, steps: int = 20) -> dict[str, float]:
    """Where a step's time goes: the median milliseconds of each of ``PHASES``.

    The device is waited for after each phase, so on an accelerator their sum is above the time of a step that only
    queues its work.

    Args:
        step: to be timed; it trains.
        warm_up: steps that are not timed.
        steps: timed ones, 1 or more.
    """
    taken: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def timed(phase: str, work: Callable[[], Any]) -> Any:
        synchronise(step.device)
        started = time.perf_counter()
        result = work()
        synchronise(step.device)
        taken[phase].append(1000 * (time.perf_counter() - started))
        return result

    for _ in range(warm_up):
        step()
    for _ in range(steps):
        shown = timed("corruption", step.show)
        loss = timed("forward", partial(step.forward, *shown))
        timed("backward", partial(step.backward, loss))
        timed("optimizer", step.update)
    return {phase: statistics.median(values) for phase, values in taken.items()}
