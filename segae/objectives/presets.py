"""The named objectives: each a corruption of the input and a comparison of the output."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn

from segae.errors import SegaeError
from segae.objectives.brightness import split_brightness
from segae.objectives.catalogue import DEFAULTS, OBJECTIVES, TARGETS, Values
from segae.objectives.corruption import Corruption, GaussianNoise, Identity, PatchMask, ScaledNoise
from segae.objectives.degradation import Blur, ColourRemoval, LightChange, Shrink
from segae.objectives.feature_layers import FeatureLayers
from segae.objectives.frequency import FrequencyError
from segae.objectives.gradients import PixelsAndGradients
from segae.objectives.layer_cut import LayerCut
from segae.objectives.mixture import Mixture
from segae.objectives.object_crop import CropOfLayers, LayersAndPixels
from segae.objectives.reconstruction import MeanSquaredError, PatchNormalisedError, Reconstruction, Where

JUDGED_WHERE_HIDDEN = ("mask", "sparse_mask", "a2mim")


@dataclass(frozen=True)
class Objective:
    """What an autoencoder is asked to do: undo `corruption`, judged by `reconstruction`.

    Attributes:
        name: Name of the preset, or your own.
        corruption: Called with the clean images and a generator.
        reconstruction: Called with prediction, target and the hidden mask.
        masking: How the encoder treats hidden pixels: `dense` (it reads what the corruption put there), `sparse`
            (it skips them) or `token` (a learned value replaces their features inside the encoder).
        decoder: Name of the decoder that suits it.
        frozen_encoder: Whether only the decoder learns.
        crops: Whether the corruption crops by itself, so that it is to be given whole images.
        prepare: To be called once before training, with the encoder as it starts and batches of clean whole images
            (B, C, H, W); None where nothing is to be prepared. Such an objective needs an encoder that has learnt
            something elsewhere.

    Raises:
        SegaeError: The masking is unknown.
    """

    name: str
    corruption: Corruption
    reconstruction: Reconstruction
    masking: Literal["dense", "sparse", "token"] = "dense"
    decoder: str = "plain"
    frozen_encoder: bool = False
    crops: bool = False
    prepare: Callable[[nn.Module, Iterable[Tensor]], object] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.masking not in ("dense", "sparse", "token"):
            raise _unknown("masking", self.masking, ("dense", "sparse", "token"))


def make_objective(
    name: str,
    *,
    noise_sigma: float | None = None,
    patch: int | None = None,
    mask_ratio: float | None = None,
    boundary: float | None = None,
    target: str | None = None,
) -> Objective:
    """Build a named objective; values that it does not use are ignored.

    Args:
        name: One of `OBJECTIVES`, which says what each does.
        noise_sigma: For `denoise`, `mixture` and `decoder_denoise`: standard deviation in normalised image space, above
            0. None takes the objective's default from `DEFAULTS`, here and below.
        patch: For `mask`, `sparse_mask`, `a2mim` and `mixture`: side of a hidden patch in pixels; for target
            `patch-normalised`: side of a normalised one.
        mask_ratio: For the same four: share of the patches that is hidden, in (0, 1).
        boundary: For `layers`, `feature_layers` and `otsu`: how far a layer of the boundary reaches to either side, as
            a share of the image's side, in [0, 0.5); 0 asks for object and ground alone.
        target: One of `TARGETS`; None keeps the objective's own.

    Raises:
        SegaeError: A name is unknown, a value that it uses is out of range, or the objective has one target only.
    """
    if name not in DEFAULTS:
        raise _unknown("objective", name, OBJECTIVES)
    default = DEFAULTS[name]
    values = Values(
        noise_sigma=default["noise_sigma"] if noise_sigma is None else noise_sigma,
        patch=default["patch"] if patch is None else patch,
        mask_ratio=default["mask_ratio"] if mask_ratio is None else mask_ratio,
        boundary=default["boundary"] if boundary is None else boundary,
    )
    objective = _preset(name, values)
    if target is None:
        return objective
    if isinstance(objective.corruption, ScaledNoise) and objective.corruption.predict == "noise":
        raise SegaeError(f"objective {name} predicts the noise; target {target} does not go with it. Leave it out.")
    if isinstance(objective.reconstruction, LayersAndPixels):
        raise SegaeError(f"objective {name} says layers; target {target} does not go with it. Leave it out.")
    where: Where = "hidden" if name in JUDGED_WHERE_HIDDEN else "all"
    return replace(objective, reconstruction=_reconstruction(target, values["patch"], where))


def _preset(name: str, values: Values) -> Objective:
    """The objective with its own target; only the values that it uses are looked at."""
    sigma, patch, ratio = values["noise_sigma"], values["patch"], values["mask_ratio"]
    if name in JUDGED_WHERE_HIDDEN and ratio == 0:
        raise SegaeError(f"mask ratio is 0: objective {name} would have nothing to judge. Try 0.6, or reconstruct.")
    if name == "reconstruct":
        return Objective(name, Identity(), MeanSquaredError())
    if name == "denoise":
        return Objective(name, GaussianNoise(sigma), MeanSquaredError())
    if name == "mask":
        return Objective(name, PatchMask(patch, ratio), MeanSquaredError("hidden"))
    if name == "sparse_mask":
        return Objective(name, PatchMask(patch, ratio), PatchNormalisedError(patch), "sparse", "hierarchical")
    if name == "a2mim":
        return Objective(name, PatchMask(patch, ratio, "mean"), FrequencyError(0.5), "token", "linear")
    if name == "mixture":
        parts = (
            PatchMask(patch, ratio, "mean"),  # first: a blur would carry hidden pixels to their neighbours
            ColourRemoval(0.3),
            Blur(0.3, (0.5, 2.0)),
            Shrink(0.3, (2, 4)),
            ScaledNoise(sigma, "image"),
        )
        return Objective(name, Mixture(parts), PixelsAndGradients(), decoder="unet")
    if name == "layers":
        whole = CropOfLayers(then=LightChange())
        return Objective(name, whole, LayersAndPixels(boundary=values["boundary"]), decoder="unet", crops=True)
    if name == "feature_layers":
        likely = FeatureLayers()
        found = CropOfLayers(then=LightChange(), find=LayerCut(likely))
        judge = LayersAndPixels(boundary=values["boundary"])
        return Objective(name, found, judge, decoder="unet", crops=True, prepare=likely.fit)
    if name == "otsu":
        few = CropOfLayers(then=LightChange(), find=split_brightness)
        return Objective(name, few, LayersAndPixels(boundary=values["boundary"]), decoder="unet", crops=True)
    if name == "decoder_denoise":
        noise = ScaledNoise(sigma, "noise")
        return Objective(name, noise, MeanSquaredError(), decoder="unet", frozen_encoder=True)
    raise _unknown("objective", name, OBJECTIVES)


def _reconstruction(target: str, patch: int, where: Where) -> Reconstruction:
    if target == "pixels":
        return MeanSquaredError(where)
    if target == "patch-normalised":
        return PatchNormalisedError(patch, where)
    if target == "gradients":
        return PixelsAndGradients(where=where)
    if target == "frequency":
        return FrequencyError(where=where)
    raise _unknown("target", target, TARGETS)


def _unknown(what: str, name: str, known: Iterable[str]) -> SegaeError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return SegaeError(f'{what} "{name}" is not known. {hint}Use one of {", ".join(known)}.')
