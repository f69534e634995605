"""What pretraining adds to a step of fastai's training loop: the corrupted input, and a pull to the start."""

from __future__ import annotations

from typing import Any

import torch
from fastai.callback.core import Callback
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.objectives.corruption import Corrupted, Hardness
from segae.objectives.presets import Objective
from segae.training.forward import evaluating, model_inputs, sparse_stride, takes_hidden, visible_blocks
from segae.training.hard_masks import mask_patch, patch_errors, share_at, squared_error
from segae.training.micro_batches import completes_step
from segae.training.pretraining_checks import check_skip_dropout
from segae.training.run import epoch_seed
from segae.training.sharing import part_of_batch, shared_draws


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
        skip_dropout: share of the images of a training batch, in [0, 1], whose skip connections are cut, so that
            the encoder's deepest map has to say what the decoder needs.
    """

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        seed: int = 0,
        hard_mask_share: float = 0.0,
        skip_dropout: float = 0.0,
    ) -> None:
        if not 0 <= hard_mask_share <= 1:
            raise SegaeError(
                f"hard_mask_share is {hard_mask_share}; a share in [0, 1] is wanted, for example --hard-mask-share 0.5."
            )
        check_skip_dropout(model, skip_dropout)
        self.objective, self.corruption_seed, self.hard_mask_share = objective, seed, hard_mask_share
        self.skip_dropout = skip_dropout
        self.with_hidden, self.stride = takes_hidden(model), sparse_stride(model)
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
        self.learn.xb = self.inputs(corrupted, self._cut(len(clean_bchw)) if self.learn.training else None)
        target_bchw = clean_bchw if corrupted.target_bchw is None else corrupted.target_bchw
        self.learn.yb = (target_bchw, corrupted.hidden_b1hw)

    def inputs(self, corrupted: Corrupted, cut_b: Tensor | None = None) -> tuple[Any, ...]:
        """What the model is called with."""
        return model_inputs(
            corrupted.image_bchw,
            corrupted.hidden_b1hw,
            with_hidden=self.with_hidden,
            cut_b=cut_b,
            visible=visible_blocks(corrupted.visible, self.stride),
        )

    def _cut(self, images: int) -> Tensor | None:
        """Which images have to do without skip connections, (B,) on the model's device."""
        if not self.skip_dropout:
            return None
        with shared_draws(self.generator, part_of_batch(self.learn)):
            drawn_b = torch.rand(images, generator=self.generator, device=self.generator.device)
        return drawn_b < self.skip_dropout

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
        inputs = self.inputs(trial)
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
