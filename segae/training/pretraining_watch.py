"""What a pretraining is watched by: collapse of the features, a probe, a plateau of the validation loss."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from fastai.callback.core import Callback, CancelFitException
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.training.distributed import gathered, once, summed, this_place
from segae.training.forward import evaluating
from segae.training.plateau import at_plateau
from segae.training.rank import effective_rank, feature_spread, pooled_features
from segae.training.sharing import Part, part_of_batch

logger = logging.getLogger("segae")


class FeatureRank(Callback):
    """Columns ``feature_rank`` and ``feature_std``: whether the dense encoder still tells clean images apart.

    Both are of the first 256 validation images, through the encoder in evaluation mode; see
    ``segae.training.rank``. A warning is logged once when the rank falls below 2, or the spread below a
    thousandth of its first value. With fewer than 2 validation images there are no columns, with fewer than 8
    no warning: so few say nothing of a collapse.
    """

    order = -1  # before CorruptInput: the clean images
    images = 256

    def __init__(self, every: int = 1) -> None:
        self.every, self.warned = every, False

    def before_validate(self) -> None:
        """Start a new collection."""
        self.pooled: list[Tensor] = []

    def before_batch(self) -> None:
        """Pass the batch's clean images through the encoder, until there are enough."""
        clock = self.learn.epoch_clock
        if self.learn.training or not clock.running or (clock.now + 1) % self.every:
            return
        part = part_of_batch(self.learn)
        wanted = min(part.count, self.images - part.before - part.first)
        if wanted > 0:
            with evaluating(encoder := self.learn.model.encoder), torch.no_grad():
                self.pooled.append(pooled_features(encoder, self.learn.xb[0][:wanted]))

    def after_validate(self) -> None:
        """Fill the columns."""
        own = [features_bc.cpu() for features_bc in self.pooled]
        pooled = [features_bc for parts in gathered(own) for features_bc in parts]
        features_nc = torch.cat(pooled) if pooled else torch.empty(0)
        if len(features_nc) < 2:
            return
        rank, spread = effective_rank(features_nc), feature_spread(features_nc)
        clock = self.learn.epoch_clock
        clock.extra.update(feature_rank=round(rank, 4), feature_std=float(f"{spread:.4g}"))
        first = next((row["feature_std"] for row in clock.log if "feature_std" in row), spread)
        if len(features_nc) >= 8 and not self.warned and (rank < 2 or spread < 1e-3 * first):
            self.warned = True
            logger.warning(
                f"the encoder's features have collapsed in epoch {clock.now + 1}: effective rank {rank:.2f}, standard "
                f"deviation over images {spread:.3g} (first {first:.3g}). Pretrain with a smaller --lr."
            )


class WhatIsUsed(Callback):
    """Columns ``skill`` and ``deepest_use``: whether the answers are any good, and whether the encoder's end is needed.

    Both are of the first validation batch, with the corruption that all validation epochs share.

    skill: 1 - loss / loss of an answer of zeros. 0 means that nothing was learnt.
    deepest_use: the loss with the images' deepest feature maps exchanged, over the loss. 1 means that the decoder does
    without them, because its skip connections tell it enough: the encoder's last stage then learns nothing. A model
    whose features cannot be exchanged (no ``encode`` and ``decode``), or a single image, has no such column.

    After the last epoch a warning says so where the skill is below 0.02 or the use below 1.01.
    """

    order = 12  # after autocast was left

    def before_validate(self) -> None:
        """Start anew."""
        self.found: dict[str, float] = {}

    def after_loss(self) -> None:
        """Measure, on the first validation batch of an epoch."""
        clock = self.learn.epoch_clock
        if self.learn.training or self.learn.iter or not clock.running:
            return
        part = part_of_batch(self.learn)
        loss, zeros = float(self.learn.loss), self._loss(torch.zeros_like(self.learn.pred))
        exchanged = self._exchanged(part)
        terms = [loss, zeros, 0.0 if exchanged is None else exchanged]
        sums = summed(torch.tensor(terms, dtype=torch.float64) * part.count).tolist()
        self.found = {"skill": 1 - sums[0] / max(sums[1], 1e-12)}
        if exchanged is not None:
            self.found["deepest_use"] = sums[2] / max(sums[0], 1e-12)

    @torch.no_grad()
    def _exchanged(self, part: Part) -> float | None:
        """The loss with each image's deepest map replaced by the next one's, in the batch of all processes."""
        model, (image_bchw, *more) = self.learn.model, self.learn.xb[:2]
        if not (hasattr(model, "decode") and hasattr(model, "has_skips") and part.total > 1):
            return None
        halved = hasattr(self.learn, "bfloat16_autocast")
        with torch.autocast(image_bchw.device.type, torch.bfloat16, enabled=halved):
            *others, deepest_bchw = model.encode(image_bchw, *more)
            every_bchw = torch.cat(gathered(deepest_bchw[: part.count].cpu()))
            other_bchw = every_bchw.roll(1, 0)[part.first : part.first + len(image_bchw)]
            return self._loss(model.decode([*others, other_bchw.to(deepest_bchw)], *more))

    def after_validate(self) -> None:
        """Fill the columns."""
        clock = self.learn.epoch_clock
        clock.extra.update({name: round(value, 4) for name, value in self.found.items()})
        if self.found and clock.now + 1 == clock.end and this_place().first:
            self._warn(clock.extra)

    def _loss(self, answer_bchw: Tensor) -> float:
        return float(self.learn.loss_func(answer_bchw, *self.learn.yb))

    @staticmethod
    def _warn(found: dict[str, float]) -> None:
        if found["skill"] < 0.02:
            logger.warning(
                f"the decoder's answers are no better than zeros (skill {found['skill']:.3f}): this pretraining has "
                "learnt nothing. Pretrain longer, start from --init imagenet, or take another --objective."
            )
        elif found.get("deepest_use", 2.0) < 1.01:
            logger.warning(
                f"the decoder does without the encoder's deepest feature map (use {found['deepest_use']:.3f}, 1 is "
                "none): its skip connections tell it enough, and the encoder's last stage was not trained. Try "
                "--skip-dropout 0.5, or --decoder plain."
            )


class ProbeCurve(Callback):
    """Column ``probe_miou``: a probe's score after every ``every``-th epoch and the last one.

    Training is not disturbed: modes are restored, and each epoch seeds itself before it draws a number.

    Args:
        probe: from the model's encoder to a score, for example ``segae.training.probe.linear_probe`` on a
            labelled split.
        every: in epochs, 1 or more.
    """

    order = 55  # before EpochLog

    def __init__(self, probe: Callable[[nn.Module], float], every: int = 1) -> None:
        if every < 1:
            raise SegaeError(f"probe_every is {every}; wanted 1 or more epochs, for example --probe-every 5.")
        self.probe, self.every = probe, every

    def after_epoch(self) -> None:
        """Ask the probe, unless this epoch was skipped or failed."""
        clock = self.learn.epoch_clock
        if clock.running and ((clock.now + 1) % self.every == 0 or clock.now + 1 == clock.end):
            with evaluating(self.learn.model):
                clock.extra["probe_miou"] = once(lambda: round(float(self.probe(self.learn.model.encoder)), 6))


class StopOnPlateau(Callback):
    """Ends a phase cleanly once the validation reconstruction loss no longer falls; the last phase ends the training.

    It never looks at labels or test images, and compares epochs of one phase only: a decoder that has learnt what
    it can beside a frozen encoder does not keep the encoder from being trained. A resumed run finds the plateau in
    its log again and trains no further.

    Args:
        patience: epochs without an improvement after which training ends, 1 or more.
        min_delta: the smallest relative improvement that counts, 0 or more.
    """

    order = 75  # after SaveResume, so that the last epoch is kept

    def __init__(self, patience: int, min_delta: float = 1e-3) -> None:
        if patience < 1 or min_delta < 0:
            raise SegaeError(
                f"patience is {patience} and min_delta {min_delta}; wanted 1 or more epochs and a share of 0 or more, "
                f"for example --patience 10."
            )
        self.patience, self.min_delta = patience, min_delta

    def before_fit(self) -> None:
        """Do not go on with a phase that had ended."""
        self._look()

    def after_epoch(self) -> None:
        """Look at the log, unless this epoch was skipped."""
        clock = self.learn.epoch_clock
        if clock.log and clock.log[-1]["epoch"] == clock.now + 1:
            self._look()

    def _look(self) -> None:
        clock = self.learn.epoch_clock
        losses = [row["valid_loss"] for row in clock.log if row["phase"] == clock.phase and "valid_loss" in row]
        if at_plateau(losses, self.patience, self.min_delta):
            logger.info(
                f"the validation loss has not fallen by {self.min_delta:g} of itself for {self.patience} epochs: "
                f"phase {clock.phase} ends after epoch {clock.log[-1]['epoch']}"
            )
            raise CancelFitException
