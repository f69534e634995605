"""fastai Learners for pretraining and segmentation, without host-device synchronization in the training loop."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, get_args

import torch
from fastai.callback import schedule  # noqa: F401 - gives Learner its fit_one_cycle and fine_tune
from fastai.callback.progress import ProgressCallback  # noqa: F401 - gives Learner its no_bar
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import AvgLoss, AvgSmoothLoss, Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import L, find_bs, norm_types, to_device
from fastai.vision.learner import get_grid  # importing this registers what show_results and others draw
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segae._io import check_range, require_choice
from segae.errors import SegaeError
from segae.methods import Method, create_autoencoder, create_method
from segae.models import Autoencoder, Classifier, PathLike, Segmenter, create_segmenter
from segae.models.inference import argmax_classes
from segae.training import callbacks as common
from segae.training import pretraining_callbacks
from segae.training.callbacks import EncoderMode, EpochClock, StopOnNaN, spans_phases
from segae.training.dataloaders import check_masks, prepare
from segae.training.distributed import AverageGradients, all_reduce, sync_batchnorm, world_size
from segae.training.losses import supervised_loss
from segae.training.schedule import BatchNormMode, parameter_groups
from segae.training.stopping import EarlyStopping, StopAfterSteps, StopAfterTime

_CHUNK = 1024  # losses to a block of memory: a device gives out none below 512 bytes, and a number would take one


def pretraining_learner(
    dls: DataLoaders,
    model: nn.Module | PathLike,
    method: Method | str,
    *,
    decoder: str | None = None,
    weight_decay: float = 0.05,
    precision: str = "auto",
    seed: int = 0,
    bn_mode: str = "train",
    distance_penalty: float = 0.0,
    hard_mask_fraction: float = 0.0,
    skip_dropout: float = 0.0,
    patience: int | None = None,
    monitor: str | None = None,
    probe: Callable[[nn.Module], float] | None = None,
    probe_every: int = 1,
    accumulate: int = 1,
    max_steps: int | None = None,
    max_time: str | None = None,
    **fastai: Any,
) -> Learner:
    """Make a fastai Learner that pretrains an encoder without labels; run it with ``segae.fit`` or as any Learner.

    A frozen encoder does not change by a bit, BatchNorm statistics included. Metrics, ``get_preds`` and ``predict`` get
    the images that predictions mean, and clean images as targets.

    Args:
        dls: fastai's loaders of images, which get the encoder's normalization; or loaders of (normalized images,).
        model: an encoder, timm's name of one (random weights), a published name, a file, or a module with an
            ``encoder``; called as model(corrupted, mask) where its forward takes ``mask`` (1 = hidden, or
            None), else as model(corrupted); returns what the method's loss compares. Moved to the device of ``dls``.
        method: the corruption and the loss, or its name.
        decoder: for an encoder; None takes the method's own.
        weight_decay: AdamW's, 0 or more; for matrices and kernels only.
        precision: "auto" (bfloat16 on CUDA devices that have it, else float32), "float32" or "bfloat16".
        seed: decides corruptions, augmentations and order.
        bn_mode: of a training encoder's BatchNorm layers: "train", or "eval" whose running statistics never move.
        distance_penalty: L2-SP pull of the encoder's weights to where they are now, 0 or more.
        hard_mask_fraction: share of the mask, in [0, 1], that follows the loss at the end.
        skip_dropout: share of the images, in [0, 1], whose skip connections are cut.
        patience: epochs without a better ``monitor`` after which a phase ends; None never ends early.
        monitor: "valid_loss", which is meant by None, or "probe_miou" where there is a probe.
        probe: score of the encoder for the log's column ``probe_miou``.
        probe_every: in epochs.
        accumulate: batches of the loader to an optimizer step.
        max_steps: optimizer steps after which the training ends cleanly; None for no limit.
        max_time: the same for a time, such as "30m", "2h", "90s" or "1h30m".
        **fastai: other arguments of a Learner, such as ``cbs``.
    """
    require_choice("bn_mode", bn_mode, ("train", "eval"))
    check_range("distance_penalty", distance_penalty, low=0)
    method = method if isinstance(method, Method) else create_method(method)
    network: Any = prepare(dls, model, Autoencoder, partial(create_autoencoder, method=method, decoder=decoder))
    if isinstance(dls.train, TfmdDL):
        if method.needs_pretrained_encoder and not network.encoder.info.weights.pretrained:
            raise SegaeError(f"model must be pretrained for {method}, which asks the encoder, got random weights")
        method.prepare(network.encoder, (images for images, *_ in dls.train))
    _require_validation(dls, patience)
    require_choice("monitor", monitor := monitor or "valid_loss", ("valid_loss", *(["probe_miou"] if probe else [])))
    masking = getattr(network, "masking", "dense")
    if masking != method.masking:
        raise SegaeError(f"model must use {method.masking} masking for method {method.name}, got {masking}")
    corrupt = pretraining_callbacks.CorruptInput(method, network, seed, hard_mask_fraction, skip_dropout)
    callbacks = [corrupt, pretraining_callbacks.RankMeMonitor(), pretraining_callbacks.BottleneckDiagnostics()]
    callbacks += [pretraining_callbacks.CodePenalty(method)] if method.has_penalty else []
    callbacks += [] if patience is None else [EarlyStopping(patience, monitor)]
    callbacks += [] if probe is None else [pretraining_callbacks.ProbeCallback(probe, probe_every)]
    # "strict" differs from "train" in a frozen encoder only, which must not move at all
    bn_mode = "strict" if bn_mode == "train" else bn_mode
    shared = (weight_decay, precision, seed, bn_mode, accumulate, max_steps, max_time)
    parts = (_PretrainingLearner, dls, network, _Loss(method.loss), callbacks, shared)
    learner = _make_learner(*parts, train_bn=False, **fastai)
    if distance_penalty > 0:  # after the model was moved to its device
        learner.add_cb(pretraining_callbacks.DistancePenalty(network.encoder, distance_penalty))
    return learner


def segmentation_learner(
    dls: DataLoaders,
    model: nn.Module | PathLike,
    *,
    num_classes: int | None = None,
    decoder: str = "unet",
    bn_mode: str = "strict",
    weight_decay: float = 0.01,
    precision: str = "auto",
    seed: int = 0,
    accumulate: int = 1,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    max_steps: int | None = None,
    max_time: str | None = None,
    patience: int | None = None,
    monitor: str | None = None,
    reconstruction_weight: float = 0.0,
    **fastai: Any,
) -> Learner:
    """Make a fastai Learner that fine-tunes a segmenter or a classifier.

    Batches are (image (B, C, H, W), mask (B, H, W) of class indices, or 255 where a pixel does not count), of a
    ``Classifier`` (image, class index (B,)). An encoder, a name or a file, as in ``pretraining_learner``, becomes a
    segmenter with ``decoder`` and the classes and image size of fastai's ``dls``; a module has an ``encoder`` and
    returns logits (B, K, H, W). ``num_classes`` (K) is that of ``dls`` or ``model`` where it is None, ``bn_mode`` is a
    ``BatchNormMode``; ``loss``, ``class_weights`` and ``label_smoothing`` are as in ``SupervisedLoss``, or ``loss`` is
    a function of logits and class indices to a scalar; ``reconstruction_weight`` is that of a ``ReconstructionTask``.
    ``patience`` counts epochs with everything training without a better ``monitor``: "valid_loss", or the score, "miou"
    or "accuracy", which is meant by None.
    Other arguments are as in ``pretraining_learner``. Run it with ``segae.fit``; fastai's own ``fine_tune`` works too,
    with fastai's learning-rate ratio.
    """
    require_choice("bn_mode", bn_mode, get_args(BatchNormMode))
    names = tuple(map(str, getattr(getattr(dls.train, "after_item", None), "vocab", ())))  # of MaskBlock(codes)
    classes: Any = names or num_classes
    network = prepare(dls, model, Segmenter, partial(create_segmenter, num_classes=classes, decoder=decoder))
    num_classes = num_classes or getattr(network, "num_classes", None) or len(names)
    if not num_classes or len(names) not in (0, num_classes):
        raise SegaeError(f"num_classes must be that of the codes in dls, {names}, or given, got {num_classes}")
    whole = isinstance(network, Classifier)
    check_masks(dls, num_classes)
    how: dict[str, Any] = {"class_weights": class_weights, "label_smoothing": label_smoothing, "whole_images": whole}
    loss = supervised_loss(loss, num_classes=num_classes, **how)
    criterion: Any = _Loss(loss.to(dls.device) if isinstance(loss, nn.Module) else loss)
    # what fastai asks of a loss to make probabilities and masks of logits
    criterion.activation, criterion.decodes = partial(torch.softmax, dim=1, dtype=torch.float32), argmax_classes
    metric = (common.Accuracy if whole else common.MeanIoU)(num_classes)
    fastai["metrics"] = [*([metric] if len(dls.valid) else []), *L(fastai.get("metrics"))]
    tasks: list[Any] = [common.ReconstructionTask(reconstruction_weight)] if reconstruction_weight else []
    _require_validation(dls, patience)
    require_choice("monitor", monitor := monitor or metric.name, (metric.name, "valid_loss"))
    tasks += [] if patience is None else [EarlyStopping(patience, monitor, frozen_too=False)]
    shared = (weight_decay, precision, seed, bn_mode, accumulate, max_steps, max_time)
    return _make_learner(_AsyncLearner, dls, network, criterion, tasks, shared, train_bn=bn_mode == "train", **fastai)


def _require_validation(dls: DataLoaders, patience: int | None) -> None:
    if patience is not None and not len(dls.valid):
        raise SegaeError(f"patience must be None without validation images, got {patience}")


def _make_learner(
    kind: Any, dls: DataLoaders, model: Any, loss: Any, callbacks: list[Any], shared: tuple[Any, ...], **more: Any
) -> Learner:
    weight_decay, precision, seed, bn_mode, accumulate, max_steps, max_time = shared
    parameter_groups(model)  # refuses a model without an encoder now, not in the middle of a run
    check_range("weight_decay", weight_decay, low=0)
    check_range("accumulate", accumulate, low=1, integer=True)
    require_choice("precision", precision, ("auto", "float32", "bfloat16"))
    dls._device = device = torch.device(dls.device)  # fastai also takes its name
    callbacks += [EpochClock(seed), EncoderMode(bn_mode), StopOnNaN(every=1 if device.type == "cpu" else 20)]
    callbacks += [AverageGradients(accumulate)] if accumulate > 1 or world_size() > 1 else []
    callbacks += [StopAfterSteps(max_steps)] if max_steps is not None else []
    callbacks += [StopAfterTime(max_time)] if max_time is not None else []
    # now and not when training starts: a run that is resumed after its last epoch must compute in the same layout
    model.to(device)
    if device.type in ("cpu", "cuda"):  # 1.4 times faster on a CPU for the README's U-Net
        model.to(memory_format=torch.channels_last)
    # fused: one pass over the weights; foreach would be None, which TensorBoardCallback cannot log
    optimizer = partial(OptimWrapper, opt=partial(_AdamW, fused=device.type in ("cpu", "cuda"), foreach=False))
    more["cbs"] = [*callbacks, *L(more.get("cbs"))]
    named = {"loss_func": loss, "opt_func": optimizer, "wd": weight_decay, **more}
    learner = kind(dls, model, **{"splitter": parameter_groups, **named})
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


@dataclass
class _Loss:
    """A loss that is one of each image where fastai sets ``reduction`` to "none"."""

    function: Callable[..., Tensor]
    reduction: str = "mean"

    def __call__(self, prediction: Tensor, *targets: Tensor | None) -> Tensor:
        if self.reduction != "none":
            return self.function(prediction, *targets)
        parts = [[None] * len(prediction) if one is None else one.split(1) for one in (prediction, *targets)]
        return torch.stack([self.function(*image) for image in zip(*parts, strict=True)])


class _SmoothLoss(AvgSmoothLoss):
    """fastai's smooth training loss, on the device: its own is copied to the host after every step."""

    value = torch.zeros(())

    def reset(self) -> None:
        self.count, self.val, self.value = 0, torch.zeros(()), torch.zeros(())

    def accumulate(self, learn: Any) -> None:
        loss = learn.loss.detach().float().mean()
        if self.count % _CHUNK == 0:  # every step's value is kept, for lr_find and the plots
            self.chunk = torch.empty(_CHUNK, device=loss.device)
        self.value = self.chunk[self.count % _CHUNK]
        self.val, self.count = torch.lerp(loss, self.val.to(loss.device), self.beta), self.count + 1
        self.value.copy_(self.val / (1 - self.beta**self.count))


class _MeanLoss(AvgLoss):
    """fastai's mean validation loss, on the device until it is read: its own is copied after every batch."""

    def reset(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def accumulate(self, learn: Any) -> None:
        images, loss = find_bs(learn.yb), learn.loss.detach().mean()
        self.total, self.count = self.total.to(loss.device) + loss * images, self.count + images

    @property
    def value(self) -> Tensor | None:  # of all ranks, so that they stop together where a callback looks at it
        total, count = all_reduce(torch.stack([self.total, self.total.new_tensor(self.count)]))
        return total / count if self.count else None


class _AsyncLearner(Learner):
    """A Learner that queues copies to the device, and does not read the loss, while it runs an epoch.

    It has ``bfloat16_autocast`` where forward and loss run in bfloat16; weights and optimizer stay in float32.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        self.model_kwargs: dict[str, Any] = {}  # of the next call of the model, beside the batch
        self.hidden_events: set[str] = set()  # from callbacks to which all phases of ``segae.fit`` are one fit
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

    def autocast(self) -> AbstractContextManager:
        if not hasattr(self, "bfloat16_autocast") or hasattr(self, "mixed_precision"):  # that of to_fp16, to_bf16
            return nullcontext()
        return torch.autocast(self.dls.device.type, torch.bfloat16)

    def _call_one(self, event_name: str) -> None:
        for callback in self.cbs.sorted("order"):
            if event_name not in self.hidden_events or not spans_phases(callback):
                callback(event_name)

    def fit(self, *args: Any, **named: Any) -> None:
        self.epoch_clock.failure = None
        super().fit(*args, **named)
        if self.epoch_clock.failure is not None:
            raise self.epoch_clock.failure

    def to_distributed(self, sync_bn: bool = True, **named: Any) -> Learner:
        super().to_distributed(sync_bn=False, **named)
        if sync_bn:  # fastai takes torch's own conversion, which drops the activations of timm's layers
            self.model: nn.Module = sync_batchnorm(self.model, self.dls.device)
        return self

    def _do_one_batch(self) -> None:
        with self.autocast():
            self.pred = self.model(*self.xb, **self.model_kwargs)
            self("after_pred")
            if len(self.yb):
                self.loss_grad = self.loss_func(self.pred, *self.yb)
                self.loss = self.loss_grad.clone()
        self("after_loss")
        if self.training and len(self.yb):
            self._do_grad_opt()


class _PretrainingLearner(_AsyncLearner):
    """Shows and predicts images, whether or not its loaders have targets."""

    def show_results(self, ds_idx: int = 1, dl: Any = None, max_n: int = 9, shuffle: bool = True, **more: Any) -> None:
        dl = self.dls[ds_idx].new(shuffle=shuffle) if dl is None else dl
        seen, made, clean = self.get_preds(dl=[dl.one_batch()], with_input=True)
        columns = [dl.decode((images[:max_n],))[0] for images in (clean, seen, made)]
        axes = get_grid(3 * len(columns[0]), ncols=3, title="Input/Corrupted/Reconstruction", **more)
        for ax, image in zip(axes, chain(*zip(*columns, strict=True)), strict=True):
            image.show(ctx=ax)

    def predict(self, item: Any, rm_type_tfms: Any = None, with_input: bool = False) -> tuple[Any, ...]:
        dl = self.dls.test_dl([item], rm_type_tfms=rm_type_tfms, num_workers=0)
        seen, made, _ = self.get_preds(dl=dl, with_input=True)
        shown = [dl.decode((images,))[0][0] for images in (seen, made)]
        return (*shown[1 - with_input :], made[0], made[0])
