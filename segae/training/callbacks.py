"""What segae adds to fastai's training loop, one small callback for each thing."""

from __future__ import annotations

import math
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException

from segae.errors import SegaeError
from segae.training.distributed import sum_gradients, summed, this_place
from segae.training.micro_batches import completes_step
from segae.training.run import epoch_seed, seed_everything
from segae.training.schedule import set_encoder_mode
from segae.training.sharing import part_of_batch, sampler_of
from segae.training.synchronised_batchnorm import Meeting


class EpochClock(Callback):
    """Counts epochs across phases and seeds each, so that a resumed run equals an uninterrupted one.

    Attributes:
        phase: name of the running phase.
        offset: epochs finished in earlier phases.
        epochs: epochs of all phases together; 0 where only the running phase is known.
        log: one dict per finished epoch, what log.csv holds.
        extra: further columns of the running epoch's row; callbacks fill it in ``after_validate``, or in
            ``after_epoch`` with an order below EpochLog's.
        failure: what stopped the training, to be raised once fastai has cleaned up.
    """

    order = -20

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.phase, self.offset, self.epochs = seed, "full", 0, 0
        self.log: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}
        self.failure: SegaeError | None = None
        self.running = False

    @property
    def frozen(self) -> bool:
        """Whether the first parameter group, the encoder, is frozen; the optimizer knows."""
        return self.learn.opt.frozen_idx > 0

    @property
    def now(self) -> int:
        """Index of the running epoch, counted over all phases."""
        return self.offset + self.learn.epoch

    @property
    def end(self) -> int:
        """How many epochs there will have been, as far as is known."""
        return max(self.epochs, self.offset + self.learn.n_epoch)

    def before_train(self) -> None:
        """Seed everything that draws numbers in this epoch."""
        self.running = True
        self.extra = {}
        # the processes draw other numbers for dropout; whatever else is random has a generator of its own
        seed_everything(epoch_seed(self.seed, self.now, this_place().rank))
        loader = self.learn.dls.train
        for part in (loader.dataset, sampler_of(loader)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(self.now)

    def stop(self, failure: SegaeError) -> None:
        """End the fit; ``segae.fit`` raises ``failure`` afterwards (fastai would rewrite its message)."""
        self.failure = failure
        raise CancelFitException


class EncoderMode(Callback):
    """Keeps the encoder's BatchNorm layers in the mode that was asked for, after fastai set the model's."""

    order = -9  # right after fastai's TrainEvalCallback

    def __init__(self, bn_mode: str) -> None:
        self.bn_mode = bn_mode

    def before_train(self) -> None:
        """Apply the mode for this epoch."""
        set_encoder_mode(self.learn.model, self.bn_mode, frozen=self.learn.epoch_clock.frozen)


class Bfloat16Autocast(Callback):
    """Runs forward and loss under bfloat16 autocast; weights and optimizer stay in float32."""

    order = 10

    context: Any = None

    def before_batch(self) -> None:
        """Enter autocast."""
        self.context = torch.autocast(next(self.learn.model.parameters()).device.type, dtype=torch.bfloat16)
        self.context.__enter__()

    def after_loss(self) -> None:
        """Leave autocast before the backward pass."""
        self.leave()

    def leave(self) -> None:
        """Leave autocast, also when a batch was interrupted inside it."""
        if self.context is not None:
            self.context.__exit__(None, None, None)
            self.context = None


class SumGradients(Callback):
    """Makes a step of several processes that of a single one on their images together.

    A loss is a mean over images, so each process weighs its own by its share of the global batch's images, and the
    gradients are summed before anything else looks at them. Not by DistributedDataParallel: it would wrap the model,
    whose names, hooks and ``encoder`` are used everywhere, anew for each phase, for parameters freeze and thaw.

    Args:
        meeting: of the model's BatchNorm layers.
    """

    order = -4  # before DistancePenalty, which must be added once; after StopOnNaN, which quotes the loss

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def before_batch(self) -> None:
        """Let the BatchNorm layers meet."""
        self.meeting.open = self.learn.training
        self.meeting.counts = part_of_batch(self.learn).count > 0

    def after_loss(self) -> None:
        """Weigh the loss."""
        if self.learn.training:
            part = part_of_batch(self.learn)
            self.learn.loss_grad = self.learn.loss_grad * (part.count / part.total)

    def after_backward(self) -> None:
        """Sum the gradients, those of accumulated batches together."""
        if completes_step(self.learn):
            sum_gradients(self.learn.model.parameters())

    def after_batch(self) -> None:
        """Close the meeting: what comes between steps may run in one process alone."""
        self.meeting.open = False


class StopOnNaN(Callback):
    """Ends the training when the loss is not a number, before a bad epoch could be saved.

    Looks every ``every`` steps, because reading a loss makes a GPU wait.
    """

    order = -5

    def __init__(self, every: int = 20) -> None:
        self.every = every

    def before_train(self) -> None:
        """Start a new epoch's sum."""
        self.total = 0.0
        self.steps = 0

    def after_loss(self) -> None:
        """Add up; look now and then."""
        if not self.learn.training:
            return
        self.total = self.total + self.learn.loss_grad.detach()
        self.steps += 1
        if self.steps % self.every == 0:
            self._look()

    def after_train(self) -> None:
        """Look once more, and at the weights too, before the epoch counts as finished."""
        self._look()
        # one answer for all parameters: each would make a GPU wait; what is no number is least and most at once
        weights = [parameter.detach() for parameter in self.learn.model.parameters() if parameter.numel()]
        if not torch.isfinite(torch.stack([end for weight in weights for end in torch.aminmax(weight)])).all():
            self._stop("the weights became infinite or no number in the last step")

    def _look(self) -> None:
        # of all processes, so that they stop together; a sum with an infinite or no number in it stays one
        if not math.isfinite(float(summed(torch.as_tensor(self.total)))):
            self._stop(f"the loss became {float(self.learn.loss_grad.detach()):g} by step {self.steps}")

    def _stop(self, what: str) -> None:
        clock = self.learn.epoch_clock
        clock.running = False
        clock.stop(
            SegaeError(
                f"{what} of epoch {clock.now + 1}; training stopped and the checkpoint of the last good epoch is kept. "
                f"Start again with a smaller learning rate (it was {self._rate():g}; try --lr with a third of yours)."
            )
        )

    def _rate(self) -> float:
        return max(group["lr"] for group in self.learn.opt.hypers)
