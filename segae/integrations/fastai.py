"""Encoders of segae in fastai's own learners, and the encoder of any Learner as a file of segae."""

# ruff: noqa: D102 - fastai's names of the events say when a method runs, and the class what for
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from fastai.callback.core import Callback
from fastai.data.core import TfmdDL
from fastai.torch_core import get_model
from fastai.vision.learner import default_split, model_meta
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models import Encoder, PathLike, Weights, create_encoder, save_encoder
from segae.models.checkpoint import load_strictly
from segae.models.imagenet import select_from_whole
from segae.training.dataloaders import load_model, normalization
from segae.training.distributed import rank
from segae.training.initialization import recalibrate_batchnorm


def arch(encoder: Encoder | PathLike) -> Callable[..., nn.Module]:
    """Make an encoder, the file of a model, a published name or one of timm the ``arch`` of fastai's own learners.

    Example:
        >>> learner = unet_learner(dls, segae.fastai.arch("pets_pseudo_masks"))  # doctest: +SKIP
    """
    about = _load(encoder).info
    if about.in_channels != 3:
        raise SegaeError(f"encoder must have 3 channels in fastai's own learners, got {about.in_channels}")
    made = partial(_load, encoder)
    vars(made)["__name__"] = about.architecture  # for loggers
    model_meta[made] = {"cut": _make_body, "split": default_split, "stats": (about.mean, about.std)}
    return made


def _load(source: Encoder | PathLike, *, pretrained: bool = True) -> Encoder:
    model = load_model(source)
    encoder = model if isinstance(model, Encoder) else model.encoder
    return copy.deepcopy(encoder) if pretrained else create_encoder(encoder.info.architecture)


def _make_body(encoder: Encoder) -> nn.Sequential:
    return nn.Sequential(_Map(encoder), *(_Map() for _ in range(sum(map(bool, encoder.out_channels[1:])) - 1)))


class _Map(nn.Module):
    """One map of the encoder; the deeper ones go along with it, so that fastai's U-Net can hook each."""

    def __init__(self, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Any) -> Tensor:
        first, *deeper = images.deeper if self.encoder is None else [m for m in self.encoder(images)[1:] if m.shape[1]]
        first.deeper = deeper
        return first


class SaveEncoder(Callback):
    """Save the encoder of any Learner, one of segae or a network of timm, as a file of segae at the end of each fit.

    After pretraining, BatchNorm is measured on clean training images first.
    """

    order, spans_phases = 65, True  # after SaveModelCallback has loaded the best

    def __init__(self, file: PathLike) -> None:
        self.file = file

    def before_fit(self) -> None:
        find_encoder(get_model(self.learn.model))  # refuses others now, not after the training

    def before_batch(self) -> None:
        self.image_size = max(self.learn.xb[0].shape[-2:])

    def after_fit(self) -> None:
        learn: Any = self.learn
        if rank() or not learn.train_iter or hasattr(learn, "lr_finder"):  # train_iter: steps of this fit
            return
        encoder, corrupt = copy.deepcopy(find_encoder(get_model(learn.model))), getattr(learn, "corrupt_input", None)
        about, channels = encoder.info, encoder.info.in_channels
        look, weights = (about.mean, about.std), Weights(f"{about.weights}+supervised")
        if isinstance(learn.dls.train, TfmdDL):
            look = normalization(learn.dls) or ((0.0,) * channels, (1.0,) * channels)
        if corrupt is not None:
            weights = Weights(str(about.weights), corrupt.method.name, corrupt.method.settings)
            if learn.encoder_mode.bn_mode != "eval" and not corrupt.method.frozen_encoder:
                recalibrate_batchnorm(encoder, (images for images, *_ in learn.dls.train), learn.dls.device)
        new = {"mean": look[0], "std": look[1], "image_size": self.image_size, "weights": weights}
        new |= {"source": f"a Learner, from {about.source}", "pretraining": {"before": about.pretraining}}
        save_encoder(encoder, self.file, info=replace(about, **new))


def find_encoder(model: nn.Module) -> Encoder:
    """Return the encoder within a model, or one with the weights of the network of timm in it."""
    for module in model.modules():
        if isinstance(module, Encoder):
            return module
        if name := (getattr(module, "pretrained_cfg", None) or {}).get("architecture"):
            encoder = create_encoder(name, in_channels=next(module.parameters()).shape[1])
            encoder.info = replace(encoder.info, weights=Weights("timm"))
            load_strictly(encoder, select_from_whole(encoder.state_dict(), module.state_dict()), f"this {name}")
            return encoder
    raise SegaeError(f"model must have an encoder of segae or a network of timm in it, got a {type(model).__name__}")
