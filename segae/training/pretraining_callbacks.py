"""What pretraining adds to fastai's training loop: the corrupted input, a penalty, diagnostics, a stop rule."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from fastai.callback.core import Callback, CancelFitException
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.objectives.corruption import Corrupted, Hardness
from segae.objectives.presets import Objective
from segae.training.distributed import gathered, once
from segae.training.forward import evaluating, model_inputs, takes_hidden
from segae.training.hard_masks import mask_patch, patch_errors, share_at, squared_error
from segae.training.micro_batches import completes_step
from segae.training.plateau import at_plateau
from segae.training.rank import effective_rank, feature_spread, pooled_features
from segae.training.run import epoch_seed
from segae.training.sharing import part_of_batch, shared_draws

logger = logging.getLogger("segae")


class CorruptInput(Callback):
    """Shows the model a corrupted image and asks for the clean one, or for what the corruption names as target.

    A validation epoch always draws the same corruption, so its losses can be compared between epochs.

    Args:
        objective: corruption and loss.
        model: called as model(image, hidden) where its forward takes ``hidden_b1hw``, else as model(image).
        seed: decides the corruptions, together with the epoch.
        hard_mask_share: share of the hidden patches, in [0, 1], that the last epoch chooses by their loss
            (arXiv 2512.06981); it rises from 0 in the first. Each training batch then costs two more forward
            passes; where the mask hides less than half, a patch may be unmeasured and then counts as easy.
    """

    def __init__(self, objective: Objective, model: nn.Module, seed: int = 0, hard_mask_share: float = 0.0) -> None:
        if not 0 <= hard_mask_share <= 1:
            raise SegaeError(
                f"hard_mask_share is {hard_mask_share}; a share in [0, 1] is wanted, for example --hard-mask-share 0.5."
            )
        self.objective, self.corruption_seed, self.hard_mask_share = objective, seed, hard_mask_share
        self.with_hidden = takes_hidden(model)
        self.patch = mask_patch(objective.corruption) if hard_mask_share > 0 else 0
        self.share = 0.0

    def _seed(self, epoch: int) -> None:
        device = next(self.learn.model.parameters()).device
        self.generator = torch.Generator(device).manual_seed(epoch_seed(self.corruption_seed, epoch))

    def before_train(self) -> None:
        """Start this epoch's own stream of random numbers; refuse to train an encoder that must rest."""
        clock = self.learn.epoch_clock
        if self.objective.frozen_encoder and not clock.frozen:
            clock.running = False
            clock.stop(
                SegaeError(
                    f"objective {self.objective.name} trains the decoder alone, and this phase would train the encoder "
                    "too. Use make_pretraining_phases(..., frozen_encoder=True)."
                )
            )
        self._seed(clock.now)
        self.share = share_at(clock.now, clock.end, self.hard_mask_share)

    def before_validate(self) -> None:
        """Start the one stream that all validation epochs share; their masks never follow the loss."""
        self._seed(2**31)
        self.share = 0.0

    def before_batch(self) -> None:
        """Replace (image,) by input (corrupted, hidden) and target (target, hidden)."""
        clean_bchw = self.learn.xb[0]
        hardness = self._hardness(clean_bchw) if self.share > 0 else None
        corrupted = self._corrupt(clean_bchw, hardness)
        self.learn.xb = model_inputs(corrupted.image_bchw, corrupted.hidden_b1hw, with_hidden=self.with_hidden)
        target_bchw = clean_bchw if corrupted.target_bchw is None else corrupted.target_bchw
        self.learn.yb = (target_bchw, corrupted.hidden_b1hw)

    def _corrupt(self, clean_bchw: Tensor, hardness: Hardness | None) -> Corrupted:
        with shared_draws(self.generator, part_of_batch(self.learn)):
            return self.objective.corruption(clean_bchw, self.generator, hardness)

    def _hardness(self, clean_bchw: Tensor) -> Hardness:
        """The error of every patch, from two masks: with one alone, a share of 1 would hide the same patches again."""
        first_brc = self._trial(clean_bchw, None)
        rest = Hardness(torch.where(first_brc.isnan(), 1.0, float("nan")), 1.0)  # hides first what was visible
        both_tbrc = torch.stack([first_brc, self._trial(clean_bchw, rest)])
        return Hardness(both_tbrc.nanmean(dim=0), self.share)

    @torch.no_grad()
    def _trial(self, clean_bchw: Tensor, hardness: Hardness | None) -> Tensor:
        """The error of the patches that one mask hides, measured without leaving a trace in the model."""
        trial = self._corrupt(clean_bchw, hardness)
        assert trial.hidden_b1hw is not None  # mask_patch found a mask
        inputs = model_inputs(trial.image_bchw, trial.hidden_b1hw, with_hidden=self.with_hidden)
        halved = hasattr(self.learn, "bfloat16_autocast")
        with evaluating(self.learn.model), torch.autocast(clean_bchw.device.type, torch.bfloat16, enabled=halved):
            prediction_bchw = self.learn.model(*inputs)
        target_bchw = clean_bchw if trial.target_bchw is None else trial.target_bchw
        error_bchw = squared_error(self.objective.reconstruction, prediction_bchw, target_bchw)
        return patch_errors(error_bchw, trial.hidden_b1hw, self.patch)


class DistancePenalty(Callback):
    """Holds the encoder near its start: L2-SP (arXiv 1802.01483).

    The gradient is that of loss + weight/2 * sum (p - p_start)^2 over the encoder's parameters. It is added after
    the backward pass, so the loss in the log stays the objective's; AdamW scales it together with the rest of the
    gradient. The start is the encoder as it is at construction, which a resumed run repeats before it loads
    the resume file. A frozen encoder is left alone.

    Args:
        encoder: already on its device; its weights are copied.
        weight: above 0.
    """

    def __init__(self, encoder: nn.Module, weight: float) -> None:
        self.weight = weight
        self.parameters = list(encoder.parameters())
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add weight * (p - p_start) to every gradient, once to a step."""
        if not completes_step(self.learn):
            return
        moving = [
            (p.grad, p, start) for p, start in zip(self.parameters, self.start, strict=True) if p.grad is not None
        ]
        if moving:
            gradients, parameters, starts = (list(part) for part in zip(*moving, strict=True))
            torch._foreach_add_(gradients, torch._foreach_sub(parameters, starts), alpha=self.weight)


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
                self.pooled.append(pooled_features(encoder, self.learn.xb[0][:wanted]).cpu())

    def after_validate(self) -> None:
        """Fill the columns."""
        pooled = [features_bc for parts in gathered(self.pooled) for features_bc in parts]
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
