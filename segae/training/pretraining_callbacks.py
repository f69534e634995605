"""fastai callbacks of pretraining: corrupted input, L2-SP penalty, collapse monitor, diagnostics."""

# ruff: noqa: D102 - fastai's names of the events say when a method runs, and the class what for
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model
from torch import Tensor, nn

from segae._io import check_range
from segae.errors import SegaeError
from segae.evaluation import feature_std, pooled_features, rankme
from segae.methods.base import Method
from segae.methods.corruptions import Corrupted, PatchDifficulty, average_patches
from segae.models.encoder import evaluation_mode
from segae.training.callbacks import AddedLoss
from segae.training.distributed import all_reduce, broadcast_state, gather_objects, rank, run_on_main, world_size
from segae.training.run import epoch_seed

logger = logging.getLogger("segae")

_VALIDATION = 2**31  # in place of an epoch's index: the one stream of random numbers that all validations share


class CorruptInput(Callback):
    """Gives the model a corrupted image, and the loss the clean one or the target that the corruption names.

    The model is called as model(image, mask) where its forward takes ``mask`` (1 = hidden), else as model(image). All
    validations draw the same corruption, so that their losses can be compared.

    In the last epoch ``hard_mask_fraction`` of the hidden patches are chosen by their loss (arXiv 2512.06981), which
    costs two more forward passes; the share rises from 0, because early losses say more about the network than about
    the image. Where a mask hides less than half, an unmeasured patch counts as easy. ``skip_dropout`` is the share of
    the training images whose skip connections are cut, so that the decoder needs the encoder's deepest map.
    """

    def __init__(
        self, method: Method, model: nn.Module, seed: int = 0, hard_mask_fraction: float = 0, skip_dropout: float = 0
    ) -> None:
        check_range("hard_mask_fraction", hard_mask_fraction, low=0, high=1)
        check_range("skip_dropout", skip_dropout, low=0, high=1)
        if hard_mask_fraction and method.mask_patch is None:
            raise SegaeError(f"hard_mask_fraction must be 0 for a method without patches, got {method.name}")
        if skip_dropout and not getattr(model, "has_skips", False):
            raise SegaeError(f"skip_dropout must be 0 for a decoder without skip connections, got {skip_dropout}")
        self.method, self.corruption_seed, self.skip_dropout = method, seed, skip_dropout
        self.hard_mask_fraction, self.fraction = hard_mask_fraction, 0.0
        inputs = inspect.signature(model.forward).parameters
        self.takes_mask, self.takes_visible = "mask" in inputs, "visible" in inputs
        self.has_domains, self.domain = bool(getattr(getattr(model, "info", None), "domains", ())), dict[str, Tensor]()

    def _seed(self, epoch: int) -> None:
        device = next(self.learn.model.parameters()).device
        self.generator = torch.Generator(device).manual_seed(epoch_seed(self.corruption_seed, epoch, rank()))

    def before_train(self) -> None:
        clock = self.learn.epoch_clock
        if self.method.frozen_encoder and self.learn.opt.frozen_idx == 0:
            clock.stop(SegaeError(f"phases must keep the encoder frozen for {self.method.name}, got {clock.phase}"))
        self._seed(clock.now)
        self.fraction = self.hard_mask_fraction * min(clock.now / (clock.end - 1) if clock.end > 1 else 1.0, 1.0)

    def before_validate(self) -> None:
        self._seed(_VALIDATION)
        self.fraction = 0.0

    def before_batch(self) -> None:
        clean = self.learn.xb[0]
        self.domain = {"domain": self.learn.yb[0]} if self.has_domains and self.learn.yb else {}
        difficulty = self._difficulty(clean) if self.fraction > 0 else None
        corrupted = self.method.corrupt(clean, self.generator, difficulty)
        self.learn.xb, self.learn.model_kwargs, self.learn.yb = self.arguments(corrupted, clean)
        if hasattr(self.learn, "gather_preds") and self.takes_mask:  # whose inputs are to be images alone
            self.learn.xb, self.learn.model_kwargs["mask"] = self.learn.xb[:1], corrupted.mask
        self.clean = clean
        if self.skip_dropout and self.learn.training:
            drawn = torch.rand(len(clean), generator=self.generator, device=self.generator.device)
            self.learn.model_kwargs["drop_skips"] = drawn < self.skip_dropout

    def after_batch(self) -> None:
        self.learn.model_kwargs = {}
        if not self.learn.training:  # for metrics, get_preds and pictures, after the loss
            self.learn.pred = self.method.to_image(self.learn.pred.float(), self.learn.xb[0], self.clean)
            self.learn.yb = (self.clean,)

    def arguments(self, corrupted: Corrupted, clean: Tensor) -> tuple[Any, dict[str, Any], tuple[Tensor, Any]]:
        """Return the model's arguments, those that go by name, and what the loss compares the prediction with."""
        inputs = (corrupted.image, corrupted.mask) if self.takes_mask else (corrupted.image,)
        named = {**self.domain, **({"visible": corrupted.visible} if self.takes_visible else {})}
        return inputs, named, (clean if corrupted.target is None else corrupted.target, corrupted.mask)

    def _difficulty(self, clean: Tensor) -> PatchDifficulty:
        # from two masks: one alone would choose the patches that it hid again
        first = self._trial(clean, None)
        rest = PatchDifficulty(torch.where(first.isnan(), 1.0, float("nan")), 1.0)  # hides first what was visible
        return PatchDifficulty(torch.stack([first, self._trial(clean, rest)]).nanmean(dim=0), self.fraction)

    @torch.no_grad()
    def _trial(self, clean: Tensor, difficulty: PatchDifficulty | None) -> Tensor:
        """The error (B, rows, columns) of the patches that one mask hides, NaN of visible ones."""
        trial, patch = self.method.corrupt(clean, self.generator, difficulty), self.method.mask_patch
        assert trial.mask is not None  # the method has a mask_patch
        assert patch is not None
        (inputs, named, targets), model = self.arguments(trial, clean), get_model(self.learn.model)
        with evaluation_mode(model), self.learn.autocast():
            prediction = model(*inputs, **named)
        error = self.method.squared_error(prediction, targets[0])
        mean = average_patches(error.mean(dim=1, keepdim=True), patch)
        return torch.where(average_patches(trial.mask.float(), patch) > 0, mean, float("nan"))[:, 0]


class CodePenalty(AddedLoss):
    """Adds the method's penalty on the code to the loss."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def watched(self) -> nn.Module:
        return get_model(self.learn.model).bottleneck

    def added(self, output: Tensor) -> Tensor | None:
        with evaluation_mode(model := get_model(self.learn.model)):  # without the statistics of a batch
            return self.method.penalty(output, model.code, self.learn.xb[0])


class DistancePenalty(Callback):
    """Holds the encoder near its start: L2-SP (arXiv 1802.01483).

    The gradient is that of loss + weight/2 * sum (p - p_start)^2 over the encoder's parameters, added after the
    backward pass: the loss in the log stays the method's. The start is the encoder (on its device) at construction,
    which a resumed run repeats before it loads the resume file. A frozen encoder is left alone.
    """

    def __init__(self, encoder: nn.Module, weight: float) -> None:
        self.weight = weight
        self.parameters = list(encoder.parameters())
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        broadcast_state(self.start)

    @torch.no_grad()
    def after_backward(self) -> None:
        pairs = zip(self.parameters, self.start, strict=True)
        moving = [(p.grad, p, start) for p, start in pairs if p.grad is not None]
        averaging = getattr(self.learn, "average_gradients", None)
        if moving and (averaging is None or averaging.completes_step):
            gradients, parameters, starts = (list(part) for part in zip(*moving, strict=True))
            torch._foreach_add_(gradients, torch._foreach_sub(parameters, starts), alpha=self.weight)


class RankMeMonitor(Callback):
    """Columns ``rankme`` and ``feature_std``: whether the encoder still tells the first 256 validation images apart.

    A warning is logged once when the rank falls below 2, or the spread below a thousandth of its first value. With
    fewer than 2 validation images there are no columns, with fewer than 8 no warning: so few show no collapse.
    """

    order = -1  # before CorruptInput: the clean images
    images, warned = 256, False

    def before_validate(self) -> None:
        self.pooled: list[Tensor] = []
        self.left = -(-self.images // world_size()) if self.learn.epoch_clock.running else 0

    def before_batch(self) -> None:
        if not self.learn.training and self.left > 0:
            with evaluation_mode(encoder := get_model(self.learn.model).encoder), torch.no_grad():
                self.pooled.append(pooled_features(encoder, self.learn.xb[0][: self.left]))
            self.left -= len(self.pooled[-1])

    def after_validate(self) -> None:
        pooled = [features for parts in gather_objects([part.cpu() for part in self.pooled]) for features in parts]
        if sum(map(len, pooled)) < 2:
            return
        features, clock = torch.cat(pooled), self.learn.epoch_clock
        score, spread = rankme(features), feature_std(features)
        clock.extra.update(rankme=round(score, 4), feature_std=float(f"{spread:.4g}"))
        first = next((row["feature_std"] for row in clock.log if "feature_std" in row), spread)
        if len(features) >= 8 and not self.warned and (score < 2 or spread < 1e-3 * first):
            self.warned = True
            logger.warning(
                f"the encoder's features have collapsed in epoch {clock.now + 1}: RankMe {score:.2f}, feature_std "
                f"{spread:.3g} (first {first:.3g}). Pretrain with a smaller learning rate."
            )


class BottleneckDiagnostics(Callback):
    """Columns ``r2`` and ``bottleneck_ratio``: whether predictions are any good, and whether they need the deepest map.

    Both are of the first validation batch; low values after the last epoch are logged as a warning. r2 is 1 - loss /
    loss of a prediction of zeros. bottleneck_ratio is the loss with the images' deepest feature maps exchanged, over
    the loss: 1 means that the decoder does without them, because its skip connections carry enough, and the encoder's
    last stage learns nothing. A model without ``encode`` and ``decode``, or a single image, has no such column.
    """

    def before_validate(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)  # loss, that of zeros; loss, that with exchanged maps

    @torch.no_grad()
    def after_loss(self) -> None:
        if self.learn.training or self.learn.iter or not self.learn.epoch_clock.running:
            return
        model, (images, *mask), loss = get_model(self.learn.model), self.learn.xb, float(self.learn.loss)
        terms = [loss, self._loss(torch.zeros_like(self.learn.pred)), 0.0, 0.0]
        if hasattr(model, "decode") and hasattr(model, "has_skips") and len(images) > 1:
            with self.learn.autocast():
                *others, deepest = model.encode(images, *mask)
                more = {"mask": mask[0] if mask else None, "domain": self.learn.model_kwargs.get("domain", 0)}
                terms[2:] = loss, self._loss(model.decode([*others, deepest.roll(1, 0)], **more))
        self.sums = torch.tensor(terms, dtype=torch.float64) * len(images)

    def _loss(self, prediction: Tensor) -> float:
        return float(self.learn.loss_func(prediction, *self.learn.yb))

    def after_validate(self) -> None:
        clock = self.learn.epoch_clock
        loss, zeros, same, exchanged = all_reduce(self.sums).tolist()
        found = {"r2": 1 - loss / zeros} if zeros > 0 else {}
        found |= {"bottleneck_ratio": exchanged / same} if same > 0 else {}
        clock.extra.update({name: round(value, 4) for name, value in found.items()})
        if clock.now + 1 < clock.end or rank():
            return
        if found.get("r2", 1.0) < 0.02:
            logger.warning(
                f"the decoder's output is hardly closer to its target than zeros are (r2 {found['r2']:.3f} of 1). "
                "Pretrain longer, start from ImageNet weights, or take another method."
            )
        elif found.get("bottleneck_ratio", 2.0) < 1.01:
            logger.warning(
                "the decoder does as well with another image's deepest feature map (ratio "
                f"{found['bottleneck_ratio']:.3f}): the encoder's last stage learned little, its others did. Pretrain "
                "longer, or set skip_dropout to 0.5."
            )


class ProbeCallback(Callback):
    """Column ``probe_miou``: what ``probe`` gives for the encoder after every ``every``-th epoch and the last one.

    Training is not disturbed: modes are restored, and each epoch seeds itself before it draws a number.
    """

    order = 55  # before EpochLog

    def __init__(self, probe: Callable[[nn.Module], float], every: int = 1) -> None:
        check_range("probe_every", every, low=1, integer=True)
        self.probe, self.every = probe, every

    def after_epoch(self) -> None:
        clock = self.learn.epoch_clock
        if clock.running and ((clock.now + 1) % self.every == 0 or clock.now + 1 == clock.end):
            with evaluation_mode(model := get_model(self.learn.model)):
                clock.extra["probe_miou"] = run_on_main(lambda: round(float(self.probe(model.encoder)), 6))
