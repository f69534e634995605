"""The schedule: freeze the encoder for some epochs, then fine-tune everything. No framework in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from segae.errors import SegaeError
from segae.objectives.catalogue import SAYS_LAYERS

BatchNormMode = Literal["strict", "eval", "train"]
"""What the encoder's BatchNorm layers do.

strict: while the encoder is frozen they are frozen too, statistics and affine parameters; afterwards they train.
eval: their running statistics never move; the affine parameters train once the encoder does.
train: they always train, in the frozen epochs too (fastai's default).
"""


@dataclass(frozen=True)
class Protocol:
    """How a segmenter is fine-tuned; each kind of init has its own, chosen with the same budget of trials.

    Attributes:
        lr: peak learning rate of the head while the encoder is frozen; the full epochs peak at half of it.
        lr_ratio: encoder over head learning rate once everything trains.
        bn_mode: see ``BatchNormMode``.
        warmup: share of the full epochs, in (0, 1), in which the rate rises.
        recalibrate: whether the encoder's BatchNorm statistics are measured on clean training images first.
        fitted_head: whether the head begins as a linear discriminant of the decoder's features on the training images,
            so that random weights do not spoil a decoder that was taken along (arXiv 2202.10054 says why).
    """

    lr: float = 4e-3
    lr_ratio: float = 0.1
    bn_mode: BatchNormMode = "strict"
    warmup: float = 0.3
    recalibrate: bool = False
    fitted_head: bool = False


PROTOCOLS: dict[str, Protocol] = {
    "random": Protocol(lr_ratio=1.0, bn_mode="train"),
    "imagenet": Protocol(lr_ratio=1.0),
    "autoencoder": Protocol(),
    "autoencoder+decoder": Protocol(lr_ratio=1.0),
    "layers+decoder": Protocol(lr_ratio=1.0, fitted_head=True),
    "imagenet+autoencoder": Protocol(lr_ratio=0.3),
    "imagenet+autoencoder+decoder": Protocol(lr=8e-3, lr_ratio=0.3),
    "imagenet+layers+decoder": Protocol(lr_ratio=0.3, fitted_head=True),
}
"""The fine-tuning protocol of each kind of init, chosen on results/protocol_validation.csv; those of layers on fewer
trials that are told in docs/training.md.

fastai's own ratio (0.01 at the first layer) starves an encoder that comes from a short pretraining.
"""


def kind_of(init: str, transfer: str = "encoder") -> str:
    """The kind of init, a key of ``PROTOCOLS``.

    Args:
        init: as an encoder's description names it: "imagenet", "ae:mask", "imagenet+ae:a2mim", ...
        transfer: "encoder" or "encoder+decoder".
    """
    start, mark, objective = init.rpartition("ae:")
    if not mark:
        return init
    imagenet, whole = start.startswith("imagenet"), transfer == "encoder+decoder"
    if imagenet and whole and objective in SAYS_LAYERS:
        return "imagenet+layers+decoder"
    if whole and not imagenet and objective == "layers":  # a fitted head brought otsu nothing
        return "layers+decoder"
    kind = "imagenet+autoencoder" if imagenet else "autoencoder"
    return f"{kind}+decoder" if whole else kind


def protocol_of(init: str, transfer: str = "encoder") -> Protocol:
    """The fine-tuning protocol for an encoder's init and what is transferred, named as in ``kind_of``.

    Weights of another origin, which nobody has searched settings for, get those of ImageNet weights.
    """
    return PROTOCOLS.get(kind_of(init, transfer), PROTOCOLS["imagenet"])


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs under one one-cycle learning-rate curve.

    Attributes:
        name: "frozen" or "full", as it stands in the log.
        epochs: how many.
        lr_encoder: peak learning rate of the encoder (unused while it is frozen).
        lr_head: peak learning rate of everything else.
        warmup: share of the phase, in (0, 1), in which the rate rises.
        start_divisor: the rate starts at its peak divided by this.
        train_encoder: whether the encoder's weights move.
    """

    name: str
    epochs: int
    lr_encoder: float
    lr_head: float
    warmup: float
    start_divisor: float
    train_encoder: bool


def make_phases(
    freeze_epochs: int = 1, epochs: int = 3, lr: float = 4e-3, lr_ratio: float = 1.0, warmup: float = 0.3
) -> tuple[Phase, ...]:
    """The two phases of freeze-then-fine-tune.

    The curve follows fastai's ``fine_tune``: the frozen epochs rise almost to their end, then the full ones
    run at half the rate; only the encoder's share is ours to choose (``lr_ratio``).

    Args:
        freeze_epochs: epochs with the encoder frozen, 0 or more.
        epochs: epochs with everything training, 0 or more.
        lr: peak learning rate of the head while the encoder is frozen, above 0.
        lr_ratio: encoder rate over head rate in the full epochs, above 0.
        warmup: share of the full epochs in which the rate rises, in (0, 1).

    Raises:
        SegaeError: a value out of range, or no epoch at all.
    """
    if freeze_epochs < 0 or epochs < 0 or freeze_epochs + epochs == 0:
        raise SegaeError(
            f"the schedule is {freeze_epochs} frozen + {epochs} full epochs; both must be 0 or more and their sum "
            f"at least 1, for example --freeze-epochs 1 --epochs 3."
        )
    if lr <= 0 or lr_ratio <= 0:
        raise SegaeError(f"lr is {lr} and lr_ratio is {lr_ratio}; both must be above 0, for example --lr 0.004.")
    if not 0 < warmup < 1:
        raise SegaeError(f"warmup is {warmup}; a share of the full epochs in (0, 1) is wanted, such as --warmup 0.3.")
    phases = (
        Phase("frozen", freeze_epochs, lr * lr_ratio, lr, 0.99, 25.0, train_encoder=False),
        Phase("full", epochs, lr / 2 * lr_ratio, lr / 2, warmup, 5.0, train_encoder=True),
    )
    return tuple(phase for phase in phases if phase.epochs)


def parameter_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Two groups, the encoder's parameters and all others: what fastai calls a splitter.

    Raises:
        SegaeError: the model has no ``encoder`` (without it, freezing would silently freeze nothing).
    """
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        raise SegaeError(
            f"{type(model).__name__} has no attribute 'encoder', so there is nothing to freeze; pass a model from "
            f"segae.create_segmenter, or name your backbone 'encoder'."
        )
    encoder = list(model.encoder.parameters())  # type: ignore[union-attr]
    theirs = {id(parameter) for parameter in encoder}
    return [encoder, [parameter for parameter in model.parameters() if id(parameter) not in theirs]]


def check_batchnorm_mode(mode: str) -> None:
    """Raise SegaeError unless ``mode`` is a BatchNormMode."""
    if mode not in get_args(BatchNormMode):
        raise SegaeError(f"bn_mode is {mode!r}; it must be one of {', '.join(get_args(BatchNormMode))}.")


def set_encoder_mode(model: nn.Module, bn_mode: str, *, frozen: bool) -> None:
    """Put the encoder's layers in the mode that ``bn_mode`` asks for; call it after ``model.train()``.

    In the strict mode a frozen encoder is wholly in evaluation mode: dropout and stochastic depth rest too.
    """
    encoder: nn.Module = model.encoder  # type: ignore[assignment]
    if frozen and bn_mode != "train":
        encoder.eval()
    elif bn_mode == "eval":
        for layer in encoder.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


def make_pretraining_phases(
    epochs: int,
    lr: float,
    warmup: float = 0.1,
    *,
    freeze_epochs: int = 0,
    encoder_lr_ratio: float = 1.0,
    frozen_encoder: bool = False,
) -> tuple[Phase, ...]:
    """A short rise of the learning rate, then a cosine down to nothing; if asked, the decoder alone before that.

    An encoder that is worth keeping (ImageNet weights) would first be taught to serve a random decoder: let the
    decoder go ahead for ``freeze_epochs``, and move the encoder more slowly, by ``encoder_lr_ratio``.

    Args:
        epochs: 1 or more.
        lr: peak learning rate, above 0.
        warmup: share of the steps in which the rate rises, in (0, 1).
        freeze_epochs: epochs before ``epochs`` in which the encoder is frozen, 0 or more.
        encoder_lr_ratio: encoder rate over decoder rate, above 0.
        frozen_encoder: the encoder never trains; then ``freeze_epochs`` count like the others.

    Raises:
        SegaeError: a value out of range.
    """
    if epochs < 1 or lr <= 0 or not 0 < warmup < 1:
        raise SegaeError(
            f"epochs is {epochs}, lr is {lr} and warmup is {warmup}; wanted epochs of 1 or more, lr above 0 and "
            f"warmup between 0 and 1, for example --epochs 20 --lr 0.001."
        )
    if freeze_epochs < 0 or encoder_lr_ratio <= 0:
        raise SegaeError(
            f"freeze_epochs is {freeze_epochs} and encoder_lr_ratio is {encoder_lr_ratio}; wanted 0 or more and above "
            f"0, for example --freeze-epochs 1 --encoder-lr-ratio 0.1."
        )
    lr_encoder = lr * encoder_lr_ratio
    if frozen_encoder:
        return (Phase("decoder", epochs + freeze_epochs, lr_encoder, lr, warmup, 25.0, train_encoder=False),)
    phases = (
        Phase("decoder", freeze_epochs, lr_encoder, lr, 0.5, 25.0, train_encoder=False),
        Phase("pretrain", epochs, lr_encoder, lr, warmup, 25.0, train_encoder=True),
    )
    return tuple(phase for phase in phases if phase.epochs)
