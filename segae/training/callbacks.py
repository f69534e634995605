"""fastai callbacks of every training: epochs and seeds, encoder mode, NaN stop, log, progress, pictures."""

# ruff: noqa: D102 - fastai's names of the events say when a method runs, and the class what for
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.metrics import Metric
from fastai.torch_core import find_bs, get_model
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from segae._io import check_range, write_atomically
from segae.data.loaders import set_epoch
from segae.errors import SegaeError
from segae.evaluation.metrics import confusion_matrix, mean_iou
from segae.models import SMP_DECODERS, Classifier, build_autoencoder
from segae.models.inference import argmax_classes
from segae.training.cost import peak_memory_mb
from segae.training.distributed import all_reduce, rank, run_on_main, world_size
from segae.training.run import epoch_seed, seed_everything
from segae.training.schedule import set_encoder_mode

logger = logging.getLogger("segae")


def spans_phases(callback: Callback) -> bool:
    """Whether a callback, such as fastai's CSVLogger, must not start over with each phase of a training."""
    return isinstance(callback, CSVLogger | SaveModelCallback) or getattr(type(callback), "spans_phases", False)


class EpochClock(Callback):
    """Counts epochs across phases and seeds each, so that a resumed run equals an uninterrupted one."""

    order = -20

    def __init__(self, seed: int = 0) -> None:
        check_range("seed", seed, low=0, high=2**32 - 1, integer=True)
        self.seed, self.phase = seed, "full"
        self.offset = self.epochs = self.steps = 0  # epochs of earlier phases, of all phases; optimizer steps so far
        self.log: list[dict[str, Any]] = []  # a row per finished epoch
        self.extra: dict[str, Any] = {}  # further columns of this epoch's row, from callbacks before EpochLog
        self.mean_loss = float("nan")  # mean training loss of the epoch when it was last read
        self.running = self.cut = False  # the epoch will be logged; it ended before its last step
        self.failure: SegaeError | None = None

    @property
    def now(self) -> int:
        """Index of the running epoch, counted over all phases."""
        return self.offset + self.learn.epoch

    @property
    def end(self) -> int:
        """Number of epochs of all phases, as far as is known."""
        return max(self.epochs, self.offset + self.learn.n_epoch)

    def before_train(self) -> None:
        self.running, self.cut, self.extra = True, False, {}
        # each rank draws other numbers for dropout; whatever else is random has a generator of its own
        seed_everything(epoch_seed(self.seed, self.now, rank()))
        set_epoch(self.learn.dls.train, self.now)

    def after_step(self) -> None:
        self.steps += 1

    def after_epoch(self) -> None:
        self.learn.recorder.log[0] = self.now  # in fastai's table and CSVLogger, where each phase would begin with 0

    def after_fit(self) -> None:
        self.running = False  # what follows, such as get_preds, is no part of an epoch

    def stop(self, failure: SegaeError) -> None:
        """End the fit without keeping this epoch; ``fit`` raises ``failure``, whose message fastai would rewrite."""
        self.running, self.failure = False, failure
        raise CancelFitException


class EncoderMode(Callback):
    """Keeps the encoder's BatchNorm layers in their mode."""

    order = -9  # right after fastai's TrainEvalCallback, which sets the mode of the whole model

    def __init__(self, bn_mode: str) -> None:
        self.bn_mode = bn_mode

    def before_train(self) -> None:
        set_encoder_mode(get_model(self.learn.model), self.bn_mode, frozen=self.learn.opt.frozen_idx > 0)


class StopOnNaN(Callback):
    """Ends the training when the loss is not a number, before a bad epoch could be saved."""

    order = -5

    def __init__(self, every: int = 20) -> None:
        self.every = every  # steps between two looks: reading a loss makes a GPU wait

    def before_train(self) -> None:
        self.total, self.batches = torch.zeros(()), 0

    def after_loss(self) -> None:
        if self.learn.training:
            loss = self.learn.loss_grad.detach()
            self.total, self.batches = self.total.to(loss.device) + loss, self.batches + 1
            if self.batches % self.every == 0:
                self._look()

    def after_train(self) -> None:
        self._look()
        if all_reduce(torch.tensor(float(not all_finite(self.learn.model.state_dict().values())))):
            self._stop("the weights became infinite or NaN in the last step")

    def _look(self) -> None:
        # of all ranks, so that they stop together; a sum that contains NaN or infinity stays so
        total = float(all_reduce(self.total))
        self.learn.epoch_clock.mean_loss = total / max(self.batches * world_size(), 1)
        if not math.isfinite(total):
            self._stop(f"the loss became {float(self.learn.loss_grad.detach()):g} by step {self.batches}")

    def _stop(self, what: str) -> None:
        if hasattr(self.learn, "lr_finder"):  # which raises the rate until this happens
            raise CancelFitException
        clock, lr = self.learn.epoch_clock, max(float(group["lr"]) for group in self.learn.opt.hypers)
        message = f"{what} of epoch {clock.now + 1}, at a learning rate of {lr:g}; the last good epoch is kept. "
        clock.stop(SegaeError(f"{message}lr must be smaller for this training: start again with a third of yours"))


def all_finite(values: Iterable[Any]) -> bool:
    """Tell whether all tensors are finite, with one wait for the GPU; other values count as finite."""
    floating = [v.detach() for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.numel()]
    # NaN is both the minimum and the maximum of its tensor
    ends = [end.float() for value in floating for end in torch.aminmax(value)]
    return not ends or bool(torch.isfinite(torch.stack(ends)).all())


class EpochLog(Callback):
    """Keeps a row per finished epoch, of all ranks together, in log.csv and for ``report``; and a bar on a terminal."""

    order, remove_on_fetch = 60, True

    def __init__(self, path: Path | None, report: Callable[[dict[str, Any]], object]) -> None:
        self.path, self.report, self.bar = path, report, tqdm(disable=True)

    def before_train(self) -> None:
        clock, batches = self.learn.epoch_clock, len(self.learn.dls.train)
        if self.bar.disable and rank() == 0:  # disable=None: unless standard error is a terminal
            self.bar = tqdm(total=(clock.end - clock.now) * batches, unit="batch", disable=None, leave=False)
        self.bar.set_description(f"epoch {clock.now + 1}/{clock.end} ({clock.phase})", refresh=False)
        self.started = time.perf_counter()
        self.sums: dict[bool, list[Any]] = {True: [0.0, 0], False: [0.0, 0]}  # of losses and images, by training

    def after_batch(self) -> None:
        size, sums = find_bs(self.learn.xb), self.sums[self.learn.training]
        sums[:] = sums[0] + self.learn.loss.detach() * size, sums[1] + size
        if self.learn.training and not self.bar.disable:
            speed = sums[1] * world_size() / max(time.perf_counter() - self.started, 1e-9)
            text = f"{speed:.0f} images/s, loss {self.learn.epoch_clock.mean_loss:.4f}"
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()

    def after_train(self) -> None:
        self.seconds = time.perf_counter() - self.started

    def after_validate(self) -> None:  # before a callback tries further images, as TensorBoardCallback does
        own = [[float(loss), count] for loss, count in self.sums.values()]
        self.totals = all_reduce(torch.tensor(own, dtype=torch.float64)).tolist()
        metrics = self.learn.recorder.metrics if self.totals[1][1] else []
        self.values = {metric.name: float(metric.value) for metric in metrics}

    def after_epoch(self) -> None:
        clock = self.learn.epoch_clock
        if not clock.running:
            return
        clock.log.append(run_on_main(self._row))
        text, path = pd.DataFrame(clock.log).to_csv(index=False).encode(), self.path
        try:
            if path is not None:
                run_on_main(lambda: write_atomically(path, text))
        except SegaeError as failure:
            clock.stop(failure)
        if rank() == 0:
            self.bar.clear()
            self.report(clock.log[-1])

    def _row(self) -> dict[str, Any]:
        clock, rates = self.learn.epoch_clock, [float(group["lr"]) for group in self.learn.opt.hypers]
        # in a frozen epoch bn_mode "train" still moves BatchNorm's affine parameters, at the encoder's rate
        trained = any(parameter.requires_grad for parameter in self.learn.opt.param_lists[0])
        (loss, images), (valid_loss, valid_images) = self.totals
        row = {
            "epoch": clock.now + 1,
            "phase": clock.phase,
            "train_loss": loss / max(images, 1),
            "lr_encoder": rates[0] if trained else 0.0,
            "lr_head": rates[-1],
            "images": int(images),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(images / max(self.seconds, 1e-9), 2),
            "peak_memory_mb": round(peak_memory_mb(self.learn.dls.device), 1),
        }
        if valid_images:
            row["valid_loss"] = valid_loss / valid_images
            row.update(self.values)
        return {**row, **clock.extra}


def epoch_line(row: dict[str, Any]) -> str:
    """Describe a finished epoch, a row of the log, in one line."""
    names = {"train_loss": "train loss", "valid_loss": "valid loss", "miou": "mIoU"}
    names |= {"accuracy": "accuracy", "probe_miou": "probe mIoU"}
    parts = [f"{name} {row[column]:.4f}" for column, name in names.items() if column in row]
    speed = f"{row['images_per_second']:.0f} images/s  {row['peak_memory_mb']:.0f} MB"
    return "  ".join([f"epoch {row['epoch']:3d} {row['phase']:<8}", *parts, speed])


class DrawPictures(Callback):
    """Calls functions that draw the training as it is after an epoch, at most once in ``every`` seconds."""

    order = 90

    def __init__(self, draws: Sequence[Callable[[], object]], every: float = 60.0) -> None:
        self.draws, self.every, self.drawn_at = list(draws), every, time.monotonic()

    def after_epoch(self) -> None:
        if rank() or time.monotonic() - self.drawn_at < self.every:
            return
        for draw in self.draws:
            try:
                draw()
            except (OSError, RuntimeError, ValueError) as error:
                logger.warning("a picture could not be drawn (%s); the training goes on without it", error)
        self.drawn_at = time.monotonic()


class MeanIoU(Metric):
    """Mean IoU over the whole validation set as a fastai metric; classes from the logits."""

    name, score = "miou", staticmethod(mean_iou)

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        self.confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    def accumulate(self, learn: Any) -> None:
        seen = confusion_matrix(argmax_classes(learn.pred), learn.yb[0], self.num_classes)
        self.confusion = self.confusion.to(seen.device) + seen

    @property
    def value(self) -> float:
        return self.score(all_reduce(self.confusion.cpu()))


class Accuracy(MeanIoU):
    """Share of the images whose class is right, over the whole validation set, as a fastai metric."""

    name, score = "accuracy", staticmethod(lambda confusion: float(confusion.trace() / confusion.sum()))


class AddedLoss(Callback):
    """Adds to the loss what ``added`` makes of the output of the layer ``watched``, both of a subclass."""

    order = 1  # after BottleneckDiagnostics, which compares losses without it

    def before_fit(self) -> None:
        self.handle = self.watched().register_forward_hook(lambda _layer, _inputs, made: setattr(self, "kept", made))

    def after_loss(self) -> None:
        if (added := self.added(self.kept)) is not None:
            self.learn.loss_grad = self.learn.loss_grad + added
            self.learn.loss = self.learn.loss_grad.detach().clone()

    def after_fit(self) -> None:
        self.handle.remove()


class ReconstructionTask(AddedLoss):
    """Multi-task training: adds ``weight`` times the mean squared error of a reconstruction (Le et al., NeurIPS 2018).

    A head predicts the normalized image: from the output of a segmenter's decoder a 3x3 convolution, from a
    classifier's maps the plain decoder of an autoencoder. It is a part of the model and of a resume file until the end
    of training; the model that is saved has none. The validation loss is the task's.
    """

    spans_phases, run_valid = True, False

    def __init__(self, weight: float) -> None:
        check_range("reconstruction_weight", weight, low=0)
        self.weight = weight

    def after_create(self) -> None:
        model: Any = self.learn.model
        decoder = getattr(getattr(model, "info", None), "decoder", type(model).__name__)
        if not isinstance(model, Classifier) and decoder not in SMP_DECODERS:
            raise SegaeError(f"decoder must be one of smp for reconstruction_weight, got {decoder}")
        channels = model.encoder.info.in_channels
        if isinstance(model, Classifier):
            self.source, head = "encoder", build_autoencoder(model.encoder, out_channels=channels).decoder
        else:
            last = model.segmentation_head[0]
            self.source, head = "decoder", nn.Conv2d(last.in_channels, channels, 3, padding=1)
        model.reconstruction = head.to(self.learn.dls.device).to(memory_format=torch.channels_last)

    def watched(self) -> nn.Module:
        return get_model(self.learn.model).get_submodule(self.source)

    def added(self, output: Any) -> Tensor:
        images = self.learn.xb[0]
        with self.learn.autocast():
            made = get_model(self.learn.model).reconstruction(output)
        made = functional.interpolate(made.float(), images.shape[-2:], mode="bilinear")  # some decoders end at stride 4
        return self.weight * functional.mse_loss(made, images)

    def after_fit(self) -> None:
        super().after_fit()
        self.detach()

    def detach(self) -> nn.Module | None:
        """Remove the head, also where no epoch was left to train; return it."""
        return get_model(self.learn.model)._modules.pop("reconstruction", None)

    @contextmanager
    def without_head(self) -> Iterator[None]:
        """Within, the model is as it will be saved."""
        head = self.detach()
        try:
            yield
        finally:
            if head is not None:
                get_model(self.learn.model).reconstruction = head
