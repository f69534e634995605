"""What a training leaves behind while it runs: a log, a resume file, a progress bar, a validation score."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.metrics import Metric
from tqdm import tqdm

from segae.errors import SegaeError
from segae.files import write_atomically
from segae.training.callbacks import EpochClock
from segae.training.checkpoint import save_resume_file
from segae.training.distributed import gathered, once, summed, this_place
from segae.training.evaluation import softmax_winner
from segae.training.metrics import confusion_matrix
from segae.training.sharing import part_of_batch


class EpochLog(Callback):
    """Keeps one row per finished epoch, writes log.csv and calls ``report`` with the row.

    A row is that of all processes together; the first one writes and reports it.
    """

    order = 60

    def __init__(self, path: Path | None = None, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path, self.report = path, report

    def before_train(self) -> None:
        """Start the clock and the running mean of the loss."""
        self.started = time.perf_counter()
        self.sums: dict[bool, list[Any]] = {True: [0.0, 0], False: [0.0, 0]}  # of losses and images, by training

    def after_batch(self) -> None:
        """Weigh each batch's loss by its size."""
        size = part_of_batch(self.learn).count
        if size:
            sums = self.sums[self.learn.training]
            sums[0] = sums[0] + self.learn.loss.detach() * size
            sums[1] += size

    def after_train(self) -> None:
        """Stop the clock: validation does not count as training time."""
        self.seconds = time.perf_counter() - self.started

    def after_epoch(self) -> None:
        """Write the row, unless this epoch was skipped or failed."""
        clock = self.learn.epoch_clock
        if not clock.running:
            return
        metrics = self.learn.recorder.metrics if len(self.learn.dls.valid) else []
        for metric in metrics:
            if isinstance(metric, MeanIoU):
                metric.join()
        sums = summed(torch.tensor([[float(loss), count] for loss, count in self.sums.values()], dtype=torch.float64))
        clock.log.append(once(lambda: self._row(clock, sums.tolist(), metrics)))
        if self.path is not None:
            self._write(clock, self.path)
        if self.report is not None and this_place().first:
            self.report(clock.log[-1])

    def _row(self, clock: EpochClock, sums: list[list[float]], metrics: Sequence[Metric]) -> dict[str, Any]:
        rates = [group["lr"] for group in self.learn.opt.hypers]
        # in a frozen epoch bn_mode "train" still moves BatchNorm's affine parameters, at the encoder's rate
        rests = not any(parameter.requires_grad for parameter in self.learn.opt.param_lists[0])
        (loss, images), (valid_loss, valid_images) = sums
        row = {
            "epoch": clock.now + 1,
            "phase": clock.phase,
            "train_loss": loss / max(images, 1),
            "lr_encoder": 0.0 if rests else float(rates[0]),
            "lr_head": float(rates[-1]),
            "images": int(images),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(images / max(self.seconds, 1e-9), 2),
        }
        if valid_images:
            row["valid_loss"] = valid_loss / valid_images
            row.update({metric.name: float(metric.value) for metric in metrics})
        return {**row, **clock.extra}

    def _write(self, clock: EpochClock, path: Path) -> None:
        columns = list(dict.fromkeys(name for row in clock.log for name in row))  # some come in some epochs only
        lines = [",".join(columns)] + [",".join(str(row.get(name, "")) for name in columns) for row in clock.log]
        try:
            once(lambda: write_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode())))
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
        content = {
            "epochs_done": clock.now + 1,
            "model": self.learn.model.state_dict(),
            "optimizer": self.learn.opt.state_dict(),
            "log": clock.log,
        }
        stream = self.learn.dls.train.dataset
        if hasattr(stream, "state_dict"):
            content["streams"] = gathered(stream.state_dict())  # each process reads another part
        try:
            once(lambda: save_resume_file(self.path, content))
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
            disable=None if this_place().first else True,  # None: silent where nobody watches
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
        if not part_of_batch(learn).count:
            return
        seen = confusion_matrix(softmax_winner(learn.pred), learn.yb[0], self.classes)
        self.confusion = self.confusion.to(seen.device) + seen

    def join(self) -> None:
        """Add up what all processes have seen; once, after the last batch."""
        self.confusion = summed(self.confusion.cpu())

    @property
    def value(self) -> float:
        """Mean IoU in [0, 1]; a class in neither truth nor prediction is left out."""
        confusion = self.confusion.cpu().double()  # not every device has double precision
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        return float((hits / union)[union > 0].mean())

    @property
    def name(self) -> str:
        """Column name in the log."""
        return "miou"
