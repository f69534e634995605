"""fastai Learners for pretraining and segmentation. Besides them only callbacks, recording and fit import fastai."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from fastai.callback import schedule  # noqa: F401 - gives Learner its fit_one_cycle and fine_tune
from fastai.callback.progress import ProgressCallback  # noqa: F401 - gives Learner its no_bar
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from segae.errors import SegaeError
from segae.objectives.presets import Objective
from segae.training.callbacks import Bfloat16Autocast, EncoderMode, EpochClock, StopOnNaN
from segae.training.device import prepare_device
from segae.training.distributed import require_divisible, this_place
from segae.training.micro_batches import Accumulate
from segae.training.pretraining_callbacks import (
    CorruptInput,
    DistancePenalty,
    FeatureRank,
    ProbeCurve,
    StopOnPlateau,
)
from segae.training.pretraining_checks import check_model, check_settings
from segae.training.recording import MeanIoU
from segae.training.schedule import check_batchnorm_mode, parameter_groups
from segae.training.sharing import EpochSampler
from segae.training.unhurried import UnhurriedLearner

PRECISIONS = ("auto", "float32", "bfloat16")


def make_loaders(
    train: Dataset,
    valid: Dataset | None,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    seed: int = 0,
    train_indices: Sequence[int] | None = None,
) -> DataLoaders:
    """Data loaders for a Learner.

    Args:
        train: items as from ``segae.data.batches``: an image, or (image, mask).
        valid: the same for validation; None or empty: no validation loss is computed.
        batch_size: images in a batch, 1 or more, of all processes together where there are several; a last batch of
            a single image is dropped (BatchNorm cannot estimate a variance from it).
        device: where batches go.
        workers: processes that load images; 0 loads in the training process, right for cached images.
        seed: decides the order of the training images.
        train_indices: the items of ``train`` that an epoch goes through; None takes all.
    """
    if batch_size < 1:
        raise SegaeError(f"batch size is {batch_size}; it must be 1 or more, for example --batch-size 16.")
    stream = isinstance(train, IterableDataset)
    indices: Sequence[int] = () if stream else range(len(train)) if train_indices is None else train_indices  # type: ignore[arg-type]
    held_out: Any = [] if valid is None else valid
    place = this_place()
    common: dict[str, Any] = {"batch_size": require_divisible(batch_size, place), "num_workers": workers}
    common["collate_fn"] = _collate
    common["persistent_workers"] = workers > 0  # starting them anew would cost seconds in every epoch
    pinned = device.type == "cuda"

    def load(data: Any, order: Sequence[int], seed: int | None, drop_single: bool) -> DataLoader:
        if isinstance(data, IterableDataset):  # a stream has its own order, and its own share for each process
            return DataLoader(data, pin_memory=pinned, **common)
        sampler = EpochSampler(order, seed, batch_size, place, drop_single)
        # what lies on a device already cannot be pinned
        return DataLoader(data, sampler=sampler, pin_memory=pinned and not _on_device(data), **common)

    dls = DataLoaders(load(train, indices, seed, True), load(held_out, range(len(held_out)), None, False))
    dls._device = device  # torch's loaders have no device; without this fastai takes a GPU whenever there is one
    return dls


def _on_device(data: Any) -> bool:
    """Whether it is ``DeviceImages``, or a subset of them."""
    return getattr(data, "device", getattr(getattr(data, "dataset", None), "device", None)) is not None


def _collate(items: list | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Stack to a tuple of tensors, also for single images: fastai would take a bare batch apart.

    ``DeviceImages`` gives whole batches, which pass as they are.
    """
    if isinstance(items, tuple):
        return items
    if isinstance(items[0], tuple):
        return tuple(torch.stack([torch.as_tensor(item[part]) for item in items]) for part in range(len(items[0])))
    return (torch.stack(items),)


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
        weight_decay: AdamW's, 0 or more.
        precision: "auto" (bfloat16 on CUDA devices that have it, else float32), "float32" or "bfloat16".
        seed: decides corruptions, augmentations and order.
        bn_mode: of a training encoder's BatchNorm layers: "train", or "eval" whose running statistics never move,
            for a pretraining that starts from ImageNet weights.
        distance_penalty: pull of the encoder's weights to where they are now, 0 or more; see ``DistancePenalty``.
        hard_mask_share: share of the mask, in [0, 1], that follows the loss at the end; see ``CorruptInput``.
        patience: epochs without a lower validation loss after which training ends; None never ends early.
        probe: score of the encoder for the log's column ``probe_miou``; see ``ProbeCurve``.
        probe_every: in epochs.
        accumulate: batches of the loader to an optimizer step; see ``Accumulate``.

    Raises:
        SegaeError: a model without an encoder, a value out of range, or ``patience`` without validation images.
    """
    check_settings(bn_mode, distance_penalty, patience, len(dls.valid))
    check_model(model, objective)
    _place(model, dls.device)
    callbacks = [
        # "strict" differs from "train" in a frozen encoder only, which must not move at all
        EncoderMode("strict" if bn_mode == "train" else bn_mode),
        CorruptInput(objective, model, seed, hard_mask_share),
        FeatureRank(),
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
) -> Learner:
    """A Learner that fine-tunes a segmenter by per-pixel cross-entropy.

    Its two parameter groups are the encoder and the rest, so ``freeze()`` freezes exactly the encoder; run the
    schedule with ``segae.fit`` (fastai's own ``fine_tune`` works too, with fastai's learning-rate ratio).

    Args:
        dls: loaders whose batches are (image (B, 3, H, W), mask (B, H, W) of class indices).
        segmenter: from ``segae.create_segmenter``, or any module with an ``encoder`` that returns logits (B, K, H, W).
        classes: K.
        bn_mode: see ``segae.training.schedule.BatchNormMode``.
        weight_decay: AdamW's, 0 or more.
        precision: as in ``pretraining_learner``.
        seed: decides augmentations and order.
        accumulate: as in ``pretraining_learner``.
    """
    check_batchnorm_mode(bn_mode)
    parameter_groups(segmenter)  # refuses a model without an encoder now, not in the middle of a run
    callbacks = [EncoderMode(bn_mode), *_callbacks(dls.device, precision, seed, accumulate)]
    _place(segmenter, dls.device)
    return UnhurriedLearner(
        dls,
        segmenter,
        loss_func=nn.CrossEntropyLoss(),
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
    return OptimWrapper(params, opt=partial(torch.optim.AdamW, fused=fused), lr=lr)


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
