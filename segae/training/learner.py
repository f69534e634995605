"""fastai Learners for pretraining and segmentation, without host-device synchronization in the training loop."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from fastai.callback import schedule  # noqa: F401 - gives Learner its fit_one_cycle and fine_tune
from fastai.callback.progress import ProgressCallback  # noqa: F401 - gives Learner its no_bar
from fastai.data.core import DataLoaders
from fastai.learner import AvgLoss, AvgSmoothLoss, Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import find_bs, norm_types, to_device
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segae._io import check_range
from segae.errors import SegaeError
from segae.methods.base import Method
from segae.models.decoders import require_choice
from segae.training import pretraining_callbacks
from segae.training.callbacks import EncoderMode, EpochClock, MeanIoU, StopAfterSteps, StopOnNaN
from segae.training.distributed import AverageGradients, world_size
from segae.training.schedule import BatchNormMode, parameter_groups

_CHUNK = 1024


def pretraining_learner(
    dls: DataLoaders,
    model: nn.Module,
    method: Method,
    *,
    weight_decay: float = 0.05,
    precision: str = "auto",
    seed: int = 0,
    bn_mode: str = "train",
    distance_penalty: float = 0.0,
    hard_mask_fraction: float = 0.0,
    skip_dropout: float = 0.0,
    patience: int | None = None,
    probe: Callable[[nn.Module], float] | None = None,
    probe_every: int = 1,
    accumulate: int = 1,
    max_steps: int | None = None,
) -> Learner:
    """Make a fastai Learner that pretrains an encoder without labels; run it with ``segae.fit``.

    In a phase with ``train_encoder`` false the encoder does not change by a bit, BatchNorm statistics included.

    Args:
        dls: loaders whose batches are (image (B, C, H, W),), normalized.
        model: has an ``encoder``; called as model(corrupted, mask) where its forward takes ``mask`` (1 = hidden, or
            None), else as model(corrupted); returns what the method's loss compares. Moved to the device of ``dls``.
        method: the corruption and the loss.
        weight_decay: AdamW's, 0 or more; for matrices and kernels only.
        precision: "auto" (bfloat16 on CUDA devices that have it, else float32), "float32" or "bfloat16".
        seed: decides corruptions, augmentations and order.
        bn_mode: of a training encoder's BatchNorm layers: "train", or "eval" whose running statistics never move.
        distance_penalty: L2-SP pull of the encoder's weights to where they are now, 0 or more.
        hard_mask_fraction: share of the mask, in [0, 1], that follows the loss at the end.
        skip_dropout: share of the images, in [0, 1], whose skip connections are cut.
        patience: epochs without a lower validation loss after which a phase ends; None never ends early.
        probe: score of the encoder for the log's column ``probe_miou``.
        probe_every: in epochs.
        accumulate: batches of the loader to an optimizer step.
        max_steps: optimizer steps after which the training ends cleanly; None for no limit.
    """
    require_choice("bn_mode", bn_mode, ("train", "eval"))
    check_range("distance_penalty", distance_penalty, low=0)
    if patience is not None and not len(dls.valid):
        raise SegaeError(f"patience must be None without validation images, got {patience}")
    masking = getattr(model, "masking", "dense")
    if masking != method.masking:
        raise SegaeError(f"model must use {method.masking} masking for method {method.name}, got {masking}")
    corrupt = pretraining_callbacks.CorruptInput(method, model, seed, hard_mask_fraction, skip_dropout)
    callbacks = [corrupt, pretraining_callbacks.RankMeMonitor(), pretraining_callbacks.BottleneckDiagnostics()]
    if patience is not None:
        callbacks.append(pretraining_callbacks.EarlyStopping(patience))
    if probe is not None:
        callbacks.append(pretraining_callbacks.ProbeCallback(probe, probe_every))
    # "strict" differs from "train" in a frozen encoder only, which must not move at all
    bn_mode = "strict" if bn_mode == "train" else bn_mode
    shared = (weight_decay, precision, seed, bn_mode, accumulate, max_steps)
    learner = _make_learner(dls, model, method.loss, callbacks, shared, train_bn=False)
    if distance_penalty > 0:  # after the model was moved to its device
        learner.add_cb(pretraining_callbacks.DistancePenalty(model.encoder, distance_penalty))  # type: ignore[arg-type]
    return learner


def segmentation_learner(
    dls: DataLoaders,
    model: nn.Module,
    *,
    num_classes: int | None = None,
    bn_mode: str = "strict",
    weight_decay: float = 0.01,
    precision: str = "auto",
    seed: int = 0,
    accumulate: int = 1,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] | None = None,
    max_steps: int | None = None,
) -> Learner:
    """Make a fastai Learner that fine-tunes a segmenter.

    Batches are (image (B, C, H, W), mask (B, H, W) of class indices); the model has an ``encoder`` and returns logits
    (B, K, H, W). ``num_classes`` (K) is the model's where it is None, ``bn_mode`` is a ``BatchNormMode``, and ``loss``
    "cross_entropy", with ``class_weights`` (K,) where given, or "dice" (``SoftDice``). Other arguments are as in
    ``pretraining_learner``. Run it with ``segae.fit``; fastai's own ``fine_tune`` works too, with fastai's
    learning-rate ratio.
    """
    require_choice("bn_mode", bn_mode, get_args(BatchNormMode))
    num_classes = getattr(model, "num_classes", None) if num_classes is None else num_classes
    if num_classes is None:
        raise SegaeError("num_classes must be given for a model without num_classes, got None")
    require_choice("loss", loss, ("cross_entropy", "dice"))
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32, device=dls.device)
    if weights is not None and (loss == "dice" or len(weights) != num_classes or not weights.sum() > 0):
        raise SegaeError(
            f"class_weights must be {num_classes} numbers for cross_entropy, got {class_weights} for {loss}"
        )
    criterion = SoftDice() if loss == "dice" else nn.CrossEntropyLoss(weights)
    metrics = [MeanIoU(num_classes)] if len(dls.valid) else []
    shared = (weight_decay, precision, seed, bn_mode, accumulate, max_steps)
    return _make_learner(dls, model, criterion, [], shared, train_bn=bn_mode == "train", metrics=metrics)


def _make_learner(
    dls: DataLoaders,
    model: nn.Module,
    loss: Callable[..., Tensor],
    callbacks: list[Any],
    shared: tuple[float, str, int, str, int, int | None],
    **more: Any,
) -> Learner:
    weight_decay, precision, seed, bn_mode, accumulate, max_steps = shared
    parameter_groups(model)  # refuses a model without an encoder now, not in the middle of a run
    check_range("weight_decay", weight_decay, low=0)
    check_range("accumulate", accumulate, low=1, integer=True)
    require_choice("precision", precision, ("auto", "float32", "bfloat16"))
    device = dls.device
    callbacks += [EpochClock(seed), EncoderMode(bn_mode), StopOnNaN(every=1 if device.type == "cpu" else 20)]
    callbacks += [AverageGradients(accumulate)] if accumulate > 1 or world_size() > 1 else []
    callbacks += [StopAfterSteps(max_steps)] if max_steps is not None else []
    # now and not when training starts: a run that is resumed after its last epoch must compute in the same layout
    model.to(device)
    if device.type in ("cpu", "cuda"):  # 1.4 times faster on a CPU for the README's U-Net
        model.to(memory_format=torch.channels_last)
    # fused: one pass over the weights
    optimizer = partial(OptimWrapper, opt=partial(_AdamW, fused=device.type in ("cpu", "cuda")))
    named = {"loss_func": loss, "opt_func": optimizer, "wd": weight_decay, "cbs": callbacks, **more}
    learner = _AsyncLearner(dls, model, splitter=parameter_groups, **named)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" or (precision == "auto" and fast):
        learner.bfloat16_autocast = True
    return learner


class _AdamW(torch.optim.AdamW):
    """torch's AdamW (arXiv 1711.05101), whose weight decay applies to matrices and kernels only.

    Vectors (at most one axis longer than 1) such as biases, gains and mask tokens would shrink for no gain; over a long
    pretraining to a third. The decay is done here, so that fastai keeps its two groups.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        with torch.no_grad():
            for group in self.param_groups:
                shrink = 1 - float(group["lr"]) * group["weight_decay"]
                moved = [p for p in group["params"] if p.grad is not None and sum(side > 1 for side in p.shape) > 1]
                if moved and shrink != 1:
                    torch._foreach_mul_(moved, shrink)
                group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


class SoftDice(nn.Module):
    """One minus the Dice score of the softmax, mean over the classes that the batch has (arXiv 1606.04797).

    A class is counted over all pixels of a batch: accumulated batches and several processes average such losses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(mode="multiclass", from_logits=True)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Compute a scalar from logits (B, K, H, W) and class indices (B, H, W)."""
        # bfloat16 has eight bits, and a class is summed over a hundred thousand pixels
        mean_of_all = self.dice(logits.float(), mask)
        count = logits.shape[1]  # among them classes without a pixel, with the loss 0
        present = torch.zeros(count, device=mask.device).index_fill_(0, mask.flatten().long(), 1).sum()
        return mean_of_all * count / present


class _SmoothLoss(AvgSmoothLoss):
    """fastai's smooth training loss, on the device: its own is copied to the host after every step.

    Every step's value is kept for ``lr_find`` and the plots, four bytes each.
    """

    def reset(self) -> None:
        self.count, self.val = 0, torch.zeros(())

    def accumulate(self, learn: Any) -> None:
        loss = learn.loss.detach().float().mean()
        if self.count % _CHUNK == 0:  # a device gives out no block below 512 bytes, and single numbers take one each
            self.chunk = torch.empty(_CHUNK, device=loss.device)
        self.val, self.count = torch.lerp(loss, self.val.to(loss.device), self.beta), self.count + 1
        self.chunk[(self.count - 1) % _CHUNK] = self.val / (1 - self.beta**self.count)

    @property
    def value(self) -> Tensor:
        return self.chunk[(self.count - 1) % _CHUNK] if self.count else self.val


class _MeanLoss(AvgLoss):
    """fastai's mean validation loss, on the device until it is read: its own is copied after every batch."""

    def reset(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def accumulate(self, learn: Any) -> None:
        images, loss = find_bs(learn.yb), learn.loss.detach().mean()
        self.total, self.count = self.total.to(loss.device) + loss * images, self.count + images


class _AsyncLearner(Learner):
    """A Learner that queues copies to the device, and does not read the loss, while it runs an epoch.

    It has ``bfloat16_autocast`` where forward and loss run in bfloat16; weights and optimizer stay in float32.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        self.model_kwargs: dict[str, Any] = {}  # of the next call of the model, beside the batch
        super().__init__(*args, **named)
        self.recorder.loss = _MeanLoss()
        self.recorder.smooth_loss = _SmoothLoss(beta=self.recorder.smooth_loss.beta)

    def create_opt(self) -> None:
        super().create_opt()
        # of a frozen part fastai trains all normalization layers; LayerNorm has no statistics that follow the images
        for module in self.model.modules() if self.train_bn else ():
            if isinstance(module, norm_types) and not isinstance(module, _BatchNorm):
                for parameter in module.parameters(recurse=False):
                    self.opt.state[parameter].pop("force_train", None)

    def _set_device(self, b: Any) -> Any:
        return to_device(b, self.dls.device, non_blocking=True)  # pinned memory is what makes a copy not wait

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.dls.device.type, torch.bfloat16, enabled=hasattr(self, "bfloat16_autocast"))

    def _do_one_batch(self) -> None:
        with self.autocast():
            self.pred = self.model(*self.xb, **self.model_kwargs)
            self("after_pred")
            self.loss_grad = self.loss_func(self.pred, *self.yb)
            self.loss = self.loss_grad.clone()
        self("after_loss")
        if self.training:
            self._do_grad_opt()
