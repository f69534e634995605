"""fastai Learners for pretraining and segmentation. Besides this module only callbacks and recording import fastai."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from fastai.callback import schedule  # noqa: F401 - gives Learner its fit_one_cycle and fine_tune
from fastai.callback.progress import ProgressCallback  # noqa: F401 - gives Learner its no_bar
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from segae.errors import SegaeError
from segae.objectives.presets import Objective
from segae.training.callbacks import Bfloat16Autocast, CorruptInput, EncoderMode, EpochClock, StopOnNaN
from segae.training.recording import MeanIoU
from segae.training.schedule import check_batchnorm_mode, parameter_groups

PRECISIONS = ("auto", "float32", "bfloat16")


class EpochSampler(Sampler[int]):
    """Every index once in an order that depends only on (seed, epoch), so that a resumed run sees the same."""

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed, self.epoch = indices, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter([int(self.indices[place]) for place in torch.randperm(len(self), generator=generator).tolist()])

    def __len__(self) -> int:
        return len(self.indices)


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
        batch_size: images in a batch, 1 or more; a last batch of a single image is dropped (BatchNorm cannot
            estimate a variance from it).
        device: where batches go.
        workers: processes that load images; 0 loads in the training process, right for cached images.
        seed: decides the order of the training images.
        train_indices: the items of ``train`` that an epoch goes through; None takes all.
    """
    if batch_size < 1:
        raise SegaeError(f"batch size is {batch_size}; it must be 1 or more, for example --batch-size 16.")
    indices = range(len(train)) if train_indices is None else train_indices  # type: ignore[arg-type]
    count = len(indices)
    common: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers, "collate_fn": _collate}
    pinned = device.type == "cuda"
    loaders: list[DataLoader] = [
        DataLoader(
            train,
            sampler=EpochSampler(indices, seed),
            drop_last=batch_size > 1 and count > 1 and count % batch_size == 1,
            pin_memory=pinned,
            **common,
        ),
        DataLoader([] if valid is None else valid, shuffle=False, pin_memory=pinned, **common),  # type: ignore[arg-type]
    ]
    dls = DataLoaders(*loaders)
    dls._device = device  # torch's loaders have no device; without this fastai takes a GPU whenever there is one
    return dls


def _collate(items: list) -> tuple[Tensor, ...]:
    """Stack to a tuple of tensors, also for single images: fastai would take a bare batch apart."""
    if isinstance(items[0], tuple):
        return tuple(torch.stack([torch.as_tensor(item[part]) for item in items]) for part in range(len(items[0])))
    return (torch.stack(items),)


def pretraining_learner(
    dls: DataLoaders,
    autoencoder: nn.Module,
    objective: Objective,
    *,
    weight_decay: float = 0.05,
    precision: str = "auto",
    seed: int = 0,
) -> Learner:
    """A Learner that pretrains an autoencoder without labels.

    Args:
        dls: loaders whose batches are (image (B, 3, H, W),), normalised.
        autoencoder: maps a corrupted image batch to a reconstruction of the same shape.
        objective: the corruption and the loss, from ``segae.make_objective``.
        weight_decay: AdamW's, 0 or more.
        precision: "auto" (bfloat16 on CUDA devices that have it, else float32), "float32" or "bfloat16".
        seed: decides corruptions, augmentations and order.
    """
    callbacks = [CorruptInput(objective, seed), *_callbacks(dls.device, precision, seed)]
    _place(autoencoder, dls.device)
    return Learner(
        dls,
        autoencoder,
        loss_func=objective.reconstruction,
        opt_func=_adamw,
        splitter=_one_group,
        wd=weight_decay,
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
    """
    check_batchnorm_mode(bn_mode)
    parameter_groups(segmenter)  # refuses a model without an encoder now, not in the middle of a run
    callbacks = [EncoderMode(bn_mode), *_callbacks(dls.device, precision, seed)]
    _place(segmenter, dls.device)
    return Learner(
        dls,
        segmenter,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=_adamw,
        splitter=parameter_groups,
        wd=weight_decay,
        train_bn=bn_mode == "train",
        metrics=[MeanIoU(classes)] if len(dls.valid) else [],
        cbs=callbacks,
    )


def _adamw(params: list, lr: float) -> OptimWrapper:
    return OptimWrapper(params, opt=partial(torch.optim.AdamW), lr=lr)


def _one_group(model: nn.Module) -> list[list[nn.Parameter]]:
    return [list(model.parameters())]


def _callbacks(device: torch.device, precision: str, seed: int) -> list:
    if precision not in PRECISIONS:
        raise SegaeError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    callbacks: list = [EpochClock(seed), StopOnNaN(every=1 if device.type == "cpu" else 20)]
    if precision == "bfloat16" or (precision == "auto" and _has_fast_bfloat16(device)):
        callbacks.append(Bfloat16Autocast())
    return callbacks


def _place(model: nn.Module, device: torch.device) -> None:
    """Move to the device, channels_last where that gains (1.4 times faster on a CPU for the README's U-Net).

    Now and not when training starts: a run that is resumed after its last epoch must compute in the same layout.
    """
    model.to(device)
    if device.type in ("cpu", "cuda"):
        model.to(memory_format=torch.channels_last)


def _has_fast_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
