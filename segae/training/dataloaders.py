"""Ordinary fastai DataLoaders for a Learner: the model that they ask for, its normalization, a check of the masks."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import DisplayedTransform, IntToFloatTensor, Normalize
from fastai.torch_core import TensorMask
from torch import nn

from segae.errors import SegaeError
from segae.image_format import IGNORE_INDEX
from segae.models import Autoencoder, Encoder, PathLike, Segmenter, create_encoder, load
from segae.models.checkpoint import is_file, published_weights


def prepare(dls: DataLoaders, model: Any, kind: type, build: Callable[[Encoder], nn.Module]) -> Any:
    """Return the model of a kind that a model, an encoder, a name or a file means; ``build`` makes it of an encoder.

    Loaders of fastai get the encoder's normalization, as from fastai's own learners; others are not looked at.
    SegaeError if they have another normalization, or images of another number of channels.
    """
    images = dls.train.one_batch()[0] if isinstance(dls.train, TfmdDL) else None
    given = load_model(model, None if images is None else images.shape[1])
    given = given.encoder if isinstance(given, Segmenter | Autoencoder) and not isinstance(given, kind) else given
    found: Any = build(given) if isinstance(given, Encoder) else given
    if images is None or not hasattr(found, "info"):
        return found
    if isinstance(found, Segmenter) and found is not model:
        found.info = replace(found.info, image_size=max(images.shape[-2:]))
    about = found.encoder.info
    if images.shape[1] != about.in_channels:
        raise SegaeError(f"dls must give images of {about.in_channels} channels to this model, got {images.shape[1]}")
    if (own := normalization(dls)) is None:  # cuda: whether it goes to a device that need not be that of dls
        dls.add_tfms([Normalize.from_stats(about.mean, about.std, cuda=False)], "after_batch")
        dls.to(dls.device)
    elif any(abs(a - b) > 1e-3 for a, b in zip((*own[0], *own[1]), (*about.mean, *about.std), strict=True)):
        raise SegaeError(
            f"Normalize must have the encoder's {about.mean} and {about.std}, got {own}: make dls without it"
        )
    return found


def load_model(model: nn.Module | PathLike, in_channels: int | None = None) -> Any:
    """Return a model as it is, load that of a file or a published name, or build the encoder that timm knows."""
    if isinstance(model, nn.Module):
        return model
    if is_file(model) or Path(model).suffix == ".safetensors" or os.fspath(model) in published_weights():
        return load(model)
    return create_encoder(os.fspath(model), in_channels=in_channels)


def normalization(dls: DataLoaders) -> Any:
    """Mean and standard deviation that fastai's loaders normalize with; None if they do not."""
    found = [one for one in dls.train.after_batch.fs if isinstance(one, Normalize)]
    return tuple(tuple(part.flatten().tolist()) for part in (found[0].mean, found[0].std)) if found else None


def check_masks(dls: DataLoaders, num_classes: int) -> None:
    """Have fastai's loaders refuse masks with a value that is no class index."""
    if isinstance(dls.train, TfmdDL) and not any(isinstance(one, _CheckMask) for one in dls.train.after_item.fs):
        divisors = [one.div_mask for one in dls.train.after_batch.fs if isinstance(one, IntToFloatTensor)]
        if num_classes == 2 and dls.train.one_batch()[1].unique().tolist() == [0, IGNORE_INDEX]:
            raise SegaeError("masks must be class indices 0 and 1, got 0 and 255: see get_y")
        dls.add_tfms([_CheckMask(num_classes, *divisors)], "after_item")


class _CheckMask(DisplayedTransform):
    order = 6  # right after fastai's ToTensor, on the CPU: a GPU would only stop at an assertion

    def __init__(self, num_classes: int, divisor: float = 1) -> None:
        self.num_classes, self.divisor = num_classes, divisor

    def encodes(self, mask: TensorMask) -> TensorMask:
        counted = mask[mask != IGNORE_INDEX] if self.divisor == 1 else mask
        if counted.numel() and (highest := int(counted.max())) // self.divisor >= self.num_classes:
            raise SegaeError(f"masks must be class indices in [0, {self.num_classes}) or 255, got {highest}: see get_y")
        return mask
