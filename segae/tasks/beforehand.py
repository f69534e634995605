"""What a fine-tuning takes from its training images, clean and in one pass, before its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from segae.data.cache import CachedPairs
    from segae.models.encoder import EncoderDescription
    from segae.tasks.segment import Segment


def recalibrate(
    config: Segment, model: nn.Module, train: CachedPairs, description: EncoderDescription, device: torch.device
) -> None:
    """BatchNorm statistics of what was transferred, measured on the training images without augmentation."""
    from torch.utils.data import DataLoader

    from segae.data.batches import UnlabelledImages
    from segae.training.batchnorm import recalibrate_batchnorm

    clean = UnlabelledImages(train.images, _look(config, description), config.seed)
    # a last batch of one image has no variance to measure
    batches = DataLoader(clean, config.batch_size, drop_last=len(clean) > config.batch_size)
    part = model if config.transfer == "encoder+decoder" else model.encoder
    recalibrate_batchnorm(part, batches, device)  # type: ignore[arg-type]


def fit_head_to(
    config: Segment,
    model: nn.Module,
    train: CachedPairs,
    description: EncoderDescription,
    classes: int,
    device: torch.device,
) -> None:
    """A head that begins with what the decoder tells of the training images without augmentation."""
    from torch.utils.data import DataLoader

    from segae.data.batches import LabelledImages
    from segae.training.fitted_head import fit_head

    clean = LabelledImages(train.images, train.masks, _look(config, description), config.seed)
    fit_head(model, DataLoader(clean, config.batch_size), classes, device)


def _look(config: Segment, description: EncoderDescription) -> Any:
    from segae.data.transforms import eval_transform

    return eval_transform(config.image_size or description.image_size, description.mean, description.std)
