"""What segae adds to fastai's training loop, one small callback for each thing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.metrics import Metric
from tqdm import tqdm

from segae.errors import SegaeError
from segae.files import write_atomically
from segae.objectives.presets import Objective
from segae.training.checkpoint import save_resume_file
from segae.training.evaluation import softmax_winner
from segae.training.metrics import confusion_matrix
from segae.training.run import epoch_seed, seed_everything
from segae.training.schedule import set_encoder_mode


class EpochClock(Callback):
    """Counts epochs across phases and seeds each, so that a resumed run equals an uninterrupted one.

    Attributes:
        phase: name of the running phase.
        offset: epochs finished in earlier phases.
        log: one dict per finished epoch, what log.csv holds.
        failure: what stopped the training, to be raised once fastai has cleaned up.
    """

    order = -20

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.phase, self.offset, self.frozen = seed, "full", 0, False
        self.log: list[dict[str, Any]] = []
        self.failure: SegaeError | None = None
        self.running = False

    @property
    def now(self) -> int:
        """Index of the running epoch, counted over all phases."""
        return self.offset + self.learn.epoch

    def before_train(self) -> None:
        """Seed everything that draws numbers in this epoch."""
        self.running = True
        seed_everything(epoch_seed(self.seed, self.now))
        loader = self.learn.dls.train
        for part in (loader.dataset, loader.sampler):
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


class CorruptInput(Callback):
    """Shows the model a corrupted image and asks for the clean one.

    A validation epoch always draws the same corruption, so its losses can be compared between epochs.
    """

    def __init__(self, objective: Objective, seed: int = 0) -> None:
        self.objective, self.corruption_seed = objective, seed

    def _seed(self, epoch: int) -> None:
        device = next(self.learn.model.parameters()).device
        self.generator = torch.Generator(device).manual_seed(epoch_seed(self.corruption_seed, epoch))

    def before_train(self) -> None:
        """Start this epoch's own stream of random numbers."""
        self._seed(self.learn.epoch_clock.now)

    def before_validate(self) -> None:
        """Start the one stream that all validation epochs share."""
        self._seed(2**31)

    def before_batch(self) -> None:
        """Replace (image,) by input (corrupted,) and target (image, hidden)."""
        clean_bchw = self.learn.xb[0]
        corrupted = self.objective.corruption(clean_bchw, self.generator)
        self.learn.xb = (corrupted.image_bchw,)
        self.learn.yb = (clean_bchw, corrupted.hidden_b1hw)


class Bfloat16(Callback):
    """Runs forward and loss under bfloat16 autocast; weights and optimizer stay in float32."""

    order = 10

    def before_batch(self) -> None:
        """Enter autocast."""
        self.context = torch.autocast(next(self.learn.model.parameters()).device.type, dtype=torch.bfloat16)
        self.context.__enter__()

    def after_loss(self) -> None:
        """Leave autocast before the backward pass."""
        self.context.__exit__(None, None, None)


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
        """Look once more before the epoch counts as finished."""
        self._look()

    def _look(self) -> None:
        if not math.isfinite(float(self.total)):
            clock = self.learn.epoch_clock
            clock.running = False
            clock.stop(
                SegaeError(
                    f"the loss became {float(self.learn.loss_grad.detach()):g} by step {self.steps} of epoch "
                    f"{clock.now + 1}; training stopped and the checkpoint of the last good epoch is kept. Start "
                    f"again with a smaller learning rate (it was {self._rate():g}; try --lr with a third of yours)."
                )
            )

    def _rate(self) -> float:
        return max(group["lr"] for group in self.learn.opt.hypers)


class EpochLog(Callback):
    """Keeps one row per finished epoch, writes log.csv and calls ``report`` with the row."""

    order = 60

    def __init__(self, path: Path | None = None, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path, self.report = path, report

    def before_train(self) -> None:
        """Start the clock and the running mean of the loss."""
        self.started = time.perf_counter()
        self.loss_sum: Any = 0.0
        self.images = 0

    def after_batch(self) -> None:
        """Weigh each batch's loss by its size."""
        if self.learn.training:
            size = len(self.learn.xb[0])
            self.loss_sum = self.loss_sum + self.learn.loss.detach() * size
            self.images += size

    def after_train(self) -> None:
        """Stop the clock: validation does not count as training time."""
        self.seconds = time.perf_counter() - self.started

    def after_epoch(self) -> None:
        """Write the row, unless this epoch was skipped or failed."""
        clock = self.learn.epoch_clock
        if not clock.running:
            return
        clock.log.append(self._row(clock))
        if self.path is not None:
            self._write(clock, self.path)
        if self.report is not None:
            self.report(clock.log[-1])

    def _row(self, clock: EpochClock) -> dict[str, Any]:
        rates = [group["lr"] for group in self.learn.opt.hypers]
        row = {
            "epoch": clock.now + 1,
            "phase": clock.phase,
            "train_loss": float(self.loss_sum) / max(self.images, 1),
            "lr_encoder": 0.0 if clock.frozen else float(rates[0]),
            "lr_head": float(rates[-1]),
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / max(self.seconds, 1e-9), 2),
        }
        if len(self.learn.dls.valid):
            values = self.learn.recorder.metrics  # fastai's means over the validation set
            row["valid_loss"] = float(self.learn.recorder.loss.value)
            row.update({metric.name: float(metric.value) for metric in values})
        return row

    def _write(self, clock: EpochClock, path: Path) -> None:
        columns = list(clock.log[-1])
        lines = [",".join(columns)] + [",".join(str(row.get(name, "")) for name in columns) for row in clock.log]
        try:
            write_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))
        except SegaeError as failure:
            clock.running = False
            clock.stop(failure)


class SaveResume(Callback):
    """Writes model, optimizer, log and position after every finished epoch."""

    order = 70  # after the log has its row

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_epoch(self) -> None:
        """Save, unless this epoch was skipped or failed."""
        clock = self.learn.epoch_clock
        if not clock.running:
            return
        clock.running = False
        try:
            save_resume_file(
                self.path,
                {
                    "epochs_done": clock.now + 1,
                    "model": self.learn.model.state_dict(),
                    "optimizer": self.learn.opt.state_dict(),
                    "log": clock.log,
                },
            )
        except SegaeError as failure:
            clock.stop(failure)


class ProgressBar(Callback):
    """One bar per training epoch on standard error; silent when that is not a terminal."""

    order = 80

    def before_train(self) -> None:
        """Open the bar."""
        clock = self.learn.epoch_clock
        self.bar = tqdm(
            total=len(self.learn.dls.train),
            desc=f"epoch {clock.now + 1} ({clock.phase})",
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def after_batch(self) -> None:
        """Move it."""
        if self.learn.training:
            self.bar.update()

    def after_fit(self) -> None:
        """Close it, also after an interruption."""
        if getattr(self, "bar", None) is not None:
            self.bar.close()

    def after_train(self) -> None:
        """Close it."""
        self.bar.close()


class MeanIoU(Metric):
    """Mean IoU over the whole validation set, as fastai's Recorder wants it; classes from the logits."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.confusion = torch.zeros(self.classes, self.classes, dtype=torch.int64)

    def accumulate(self, learn: Any) -> None:
        """Add a batch: logits (B, K, H, W) against class indices (B, H, W)."""
        self.confusion += confusion_matrix(softmax_winner(learn.pred), learn.yb[0], self.classes).cpu()

    @property
    def value(self) -> float:
        """Mean IoU in [0, 1]; a class in neither truth nor prediction is left out."""
        hits = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return float((hits / union)[union > 0].mean())

    @property
    def name(self) -> str:
        """Column name in the log."""
        return "miou"
