"""Schedules of pretraining and fine-tuning: phases, parameter groups, BatchNorm modes. No framework in here."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from segae._io import check_range
from segae.errors import SegaeError
from segae.models.encoder import Weights

BatchNormMode = Literal["strict", "eval", "train"]
"""What the encoder's BatchNorm layers do. "strict": they are frozen with the encoder, statistics and affine parameters.
"eval": their running statistics never move. "train": they always train, in frozen epochs too (fastai's default).
"""


@dataclass(frozen=True)
class FinetuneDefaults:
    """Fine-tuning settings of one kind of pretrained weights; each kind was tuned with the same number of trials."""

    lr: float = 4e-3  # peak rate of the head while the encoder is frozen; the full epochs peak at half of it
    lr_ratio: float = 0.1  # encoder over head rate once everything trains
    bn_mode: BatchNormMode = "strict"
    warmup: float = 0.3  # share of the full epochs, in (0, 1), in which the rate rises
    recalibrate: bool = False  # whether BatchNorm statistics are measured on clean training images first
    lpft_head: bool = False  # whether the head starts as a linear discriminant of its inputs (arXiv 2202.10054)


# Chosen on results/finetune_defaults_validation.csv; those of pseudo masks on fewer trials, see docs/training.md.
# fastai's own ratio (0.01 at the first layer) starves an encoder that comes from a short pretraining.
_DEFAULTS: dict[str, FinetuneDefaults] = {
    "random": FinetuneDefaults(lr_ratio=1.0, bn_mode="train"),
    "imagenet": FinetuneDefaults(lr_ratio=1.0),
    "autoencoder": FinetuneDefaults(),
    "autoencoder+decoder": FinetuneDefaults(lr_ratio=1.0),
    "pseudo_masks+decoder": FinetuneDefaults(lr_ratio=1.0, lpft_head=True),
    "imagenet+autoencoder": FinetuneDefaults(lr_ratio=0.3),
    "imagenet+autoencoder+decoder": FinetuneDefaults(lr=8e-3, lr_ratio=0.3),
    "imagenet+pseudo_masks+decoder": FinetuneDefaults(lr_ratio=0.3, lpft_head=True),
}


def finetune_defaults(weights: Weights, transfer: str | None = None) -> FinetuneDefaults:
    """Return the fine-tuning settings that suit ``encoder.info.weights``; unknown ones get those of ImageNet weights.

    What is taken over is ``transfer``, "encoder" or "encoder+decoder"; None for ``weights.transfer``.
    """
    if not weights.method:
        return _DEFAULTS.get(weights.start, _DEFAULTS["imagenet"])
    whole = (transfer or weights.transfer) == "encoder+decoder"
    imagenet = weights.start.partition("+")[0] == "imagenet"
    masks = weights.method == "pseudo_masks" and whole
    if masks and not imagenet:  # an LP-FT head gained nothing for brightness
        masks = weights.method_args.get("source", "color") == "color"
    kind = "pseudo_masks" if masks else "autoencoder"
    return _DEFAULTS[f"{'imagenet+' if imagenet else ''}{kind}{'+decoder' if whole else ''}"]


@dataclass(frozen=True)
class Phase:
    """A number of epochs under one one-cycle learning-rate curve."""

    name: str  # "frozen" or "full" ("decoder" or "pretrain" in pretraining), as in the log
    epochs: int
    lr_encoder: float  # peak rate of the encoder, unused while it is frozen
    lr_head: float  # peak rate of everything else
    warmup: float  # share of the phase, in (0, 1), in which the rate rises
    start_divisor: float  # the rate starts at its peak divided by this
    train_encoder: bool


def freeze_finetune_phases(
    freeze_epochs: int = 1, epochs: int = 3, *, lr: float = 4e-3, lr_ratio: float = 1.0, warmup: float = 0.3
) -> tuple[Phase, ...]:
    """Plan fine-tuning in two phases, as fastai's ``fine_tune``: first with the encoder frozen, then all of it.

    Args:
        freeze_epochs: epochs with the encoder frozen, 0 or more.
        epochs: epochs with everything training, 0 or more; at least one epoch in all.
        lr: peak learning rate of the head while the encoder is frozen, above 0; the full epochs peak at half of it.
        lr_ratio: encoder rate over head rate in the full epochs, above 0.
        warmup: share of the full epochs in which the rate rises, in (0, 1).
    """
    check_range("freeze_epochs", freeze_epochs, low=0, integer=True)
    check_range("epochs", epochs, low=0 if freeze_epochs else 1, integer=True)
    _check_positive(lr=lr, lr_ratio=lr_ratio, warmup=warmup)
    frozen = Phase("frozen", freeze_epochs, lr * lr_ratio, lr, 0.99, 25.0, train_encoder=False)
    full = Phase("full", epochs, lr / 2 * lr_ratio, lr / 2, warmup, 5.0, train_encoder=True)
    return tuple(phase for phase in (frozen, full) if phase.epochs)


def pretraining_phases(
    epochs: int,
    lr: float,
    *,
    warmup: float = 0.1,
    freeze_epochs: int = 0,
    encoder_lr_ratio: float = 1.0,
    frozen_encoder: bool = False,
) -> tuple[Phase, ...]:
    """Plan a pretraining: a short rise of the learning rate, then a cosine down to nothing.

    A random decoder would pull an encoder away from good weights (ImageNet), unless it first trains alone for
    ``freeze_epochs``, and the encoder more slowly, by ``encoder_lr_ratio``.

    Args:
        epochs: 1 or more.
        lr: peak learning rate, above 0.
        warmup: share of the steps in which the rate rises, in (0, 1).
        freeze_epochs: epochs before ``epochs`` in which the encoder is frozen, 0 or more.
        encoder_lr_ratio: encoder rate over decoder rate, above 0.
        frozen_encoder: the encoder never trains; then ``freeze_epochs`` count like the others.
    """
    check_range("epochs", epochs, low=1, integer=True)
    check_range("freeze_epochs", freeze_epochs, low=0, integer=True)
    _check_positive(lr=lr, encoder_lr_ratio=encoder_lr_ratio, warmup=warmup)
    lr_encoder = lr * encoder_lr_ratio
    if frozen_encoder:
        return (Phase("decoder", epochs + freeze_epochs, lr_encoder, lr, warmup, 25.0, train_encoder=False),)
    decoder = Phase("decoder", freeze_epochs, lr_encoder, lr, 0.5, 25.0, train_encoder=False)
    pretrain = Phase("pretrain", epochs, lr_encoder, lr, warmup, 25.0, train_encoder=True)
    return (decoder, pretrain) if freeze_epochs else (pretrain,)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        check_range(name, value, low=0, low_open=True, high=1 if name == "warmup" else None, high_open=True)


def parameter_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Split a model's parameters into two groups, the encoder's and all others: what fastai calls a splitter."""
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        # freezing would silently freeze nothing
        raise SegaeError(f"model must have a module named encoder, got {type(model).__name__} without one")
    encoder = list(model.encoder.parameters())  # type: ignore[union-attr]
    in_encoder = {id(parameter) for parameter in encoder}
    return [encoder, [parameter for parameter in model.parameters() if id(parameter) not in in_encoder]]


def set_encoder_mode(model: nn.Module, bn_mode: str, *, frozen: bool) -> None:
    """Put the encoder's layers in the mode that ``bn_mode`` asks for; call it after ``model.train()``."""
    encoder: nn.Module = model.encoder  # type: ignore[assignment]
    if frozen and bn_mode != "train":
        encoder.eval()  # without dropout and stochastic depth too
    elif bn_mode == "eval":
        for layer in encoder.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
