"""fastai Learners for pretraining and segmentation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from fastai.callback import schedule  # noqa: F401 - gives Learner its fit_one_cycle and fine_tune
from fastai.callback.progress import ProgressCallback  # noqa: F401 - gives Learner its no_bar
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import nn

from segae.errors import SegaeError
from segae.objectives.presets import Objective
from segae.training.callbacks import Bfloat16Autocast, EncoderMode, EpochClock, StopOnNaN
from segae.training.device import prepare_device
from segae.training.losses import segmentation_loss
from segae.training.micro_batches import Accumulate
from segae.training.optimizer import AdamW
from segae.training.pretraining_callbacks import CorruptInput, DistancePenalty
from segae.training.pretraining_checks import check_model, check_settings, check_weight_decay
from segae.training.pretraining_watch import FeatureRank, ProbeCurve, StopOnPlateau, WhatIsUsed
from segae.training.recording import MeanIoU
from segae.training.schedule import check_batchnorm_mode, parameter_groups
from segae.training.unhurried import UnhurriedLearner

PRECISIONS = ("auto", "float32", "bfloat16")


def pretraining_learner(
    dls: DataLoaders,
    model: nn.Module,
    objective: Objective,
    *,
    weight_decay: float = 0.05,
    precision: str = "auto",
    seed: int = 0,
    bn_mode: str = "train",
    distance_penalty: float = 0.0,
    hard_mask_share: float = 0.0,
    skip_dropout: float = 0.0,
    patience: int | None = None,
    probe: Callable[[nn.Module], float] | None = None,
    probe_every: int = 1,
    accumulate: int = 1,
) -> Learner:
    """A Learner that pretrains an encoder without labels.

    Its two parameter groups are the encoder and the rest; in a phase with ``train_encoder`` false the encoder does
    not change by a bit, BatchNorm statistics included, in either ``bn_mode``.

    Args:
        dls: loaders whose batches are (image (B, 3, H, W),), normalised.
        model: has an ``encoder``; called as model(corrupted, hidden) where its forward takes ``hidden_b1hw`` (1 =
            hidden, or None), else as model(corrupted); returns what the objective's loss judges.
        objective: the corruption and the loss, from ``segae.make_objective``.
        weight_decay: AdamW's, 0 or more; of matrices and kernels alone, see ``segae.training.optimizer``.
        precision: "auto" (bfloat16 on CUDA devices that have it, else float32), "float32" or "bfloat16".
        seed: decides corruptions, augmentations and order.
        bn_mode: of a training encoder's BatchNorm layers: "train", or "eval" whose running statistics never move,
            for a pretraining that starts from ImageNet weights.
        distance_penalty: pull of the encoder's weights to where they are now, 0 or more; see ``DistancePenalty``.
        hard_mask_share: share of the mask, in [0, 1], that follows the loss at the end; see ``CorruptInput``.
        skip_dropout: share of the images, in [0, 1], whose skip connections are cut; see ``CorruptInput``.
        patience: epochs without a lower validation loss after which training ends; None never ends early.
        probe: score of the encoder for the log's column ``probe_miou``; see ``ProbeCurve``.
        probe_every: in epochs.
        accumulate: batches of the loader to an optimizer step; see ``Accumulate``.

    Raises:
        SegaeError: a model without an encoder, a value out of range, or ``patience`` without validation images.
    """
    check_settings(bn_mode, distance_penalty, patience, len(dls.valid))
    check_weight_decay(weight_decay)
    check_model(model, objective)
    _place(model, dls.device)
    callbacks = [
        # "strict" differs from "train" in a frozen encoder only, which must not move at all
        EncoderMode("strict" if bn_mode == "train" else bn_mode),
        CorruptInput(objective, model, seed, hard_mask_share, skip_dropout),
        FeatureRank(),
        WhatIsUsed(),
        *([DistancePenalty(model.encoder, distance_penalty)] if distance_penalty > 0 else []),  # type: ignore[arg-type]
        *([StopOnPlateau(patience)] if patience is not None else []),
        *([ProbeCurve(probe, probe_every)] if probe is not None else []),
        *_callbacks(dls.device, precision, seed, accumulate),
    ]
    return UnhurriedLearner(
        dls,
        model,
        loss_func=objective.reconstruction,
        opt_func=_adamw(dls.device),
        splitter=parameter_groups,
        wd=weight_decay,
        train_bn=False,
        cbs=callbacks,
    )


def segmentation_learner(
    dls: DataLoaders,
    segmenter: nn.Module,
    *,
    classes: int,
    bn_mode: str = "strict",
    weight_decay: float = 0.01,
    precision: str = "auto",
    seed: int = 0,
    accumulate: int = 1,
    loss: str = "cross_entropy",
) -> Learner:
    """A Learner that fine-tunes a segmenter.

    Its two parameter groups are the encoder and the rest, so ``freeze()`` freezes exactly the encoder; run the
    schedule with ``segae.fit`` (fastai's own ``fine_tune`` works too, with fastai's learning-rate ratio).

    Args:
        dls: loaders whose batches are (image (B, 3, H, W), mask (B, H, W) of class indices).
        segmenter: from ``segae.create_segmenter``, or any module with an ``encoder`` that returns logits (B, K, H, W).
        classes: K.
        bn_mode: see ``segae.training.schedule.BatchNormMode``.
        weight_decay: AdamW's, 0 or more; of matrices and kernels alone, see ``segae.training.optimizer``.
        precision: as in ``pretraining_learner``.
        seed: decides augmentations and order.
        accumulate: as in ``pretraining_learner``.
        loss: "cross_entropy" of each pixel, or "dice"; see ``segae.training.losses``.
    """
    check_batchnorm_mode(bn_mode)
    check_weight_decay(weight_decay)
    parameter_groups(segmenter)  # refuses a model without an encoder now, not in the middle of a run
    callbacks = [EncoderMode(bn_mode), *_callbacks(dls.device, precision, seed, accumulate)]
    _place(segmenter, dls.device)
    return UnhurriedLearner(
        dls,
        segmenter,
        loss_func=segmentation_loss(loss),
        opt_func=_adamw(dls.device),
        splitter=parameter_groups,
        wd=weight_decay,
        train_bn=bn_mode == "train",
        metrics=[MeanIoU(classes)] if len(dls.valid) else [],
        cbs=callbacks,
    )


def _adamw(device: torch.device) -> partial:
    # fused: one pass over the weights, on a CPU three times as fast as the default
    return partial(_wrapped_adamw, fused=device.type in ("cpu", "cuda"))


def _wrapped_adamw(params: list, lr: float, fused: bool) -> OptimWrapper:
    return OptimWrapper(params, opt=partial(AdamW, fused=fused), lr=lr)


def _callbacks(device: torch.device, precision: str, seed: int, accumulate: int) -> list:
    if precision not in PRECISIONS:
        raise SegaeError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    callbacks: list = [EpochClock(seed), StopOnNaN(every=1 if device.type == "cpu" else 20)]
    if precision == "bfloat16" or (precision == "auto" and _has_fast_bfloat16(device)):
        callbacks.append(Bfloat16Autocast())
    if accumulate != 1:
        callbacks.append(Accumulate(accumulate))
    return callbacks


def _place(model: nn.Module, device: torch.device) -> None:
    """Move to the device, channels_last where that gains (1.4 times faster on a CPU for the README's U-Net).

    Also switches the process to what is fast there, see ``prepare_device``. Now and not when training starts: a run
    that is resumed after its last epoch must compute in the same layout.
    """
    prepare_device(device)
    model.to(device)
    if device.type in ("cpu", "cuda"):
        model.to(memory_format=torch.channels_last)


def _has_fast_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
