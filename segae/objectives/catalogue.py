"""Names, meanings and default values of the objectives. Imports no library, so --help can show them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from segae.errors import SegaeError

OBJECTIVES = {
    "reconstruct": "give back the image as it is (the plain autoencoder)",
    "denoise": "remove Gaussian noise",
    "mask": "fill hidden patches; the network sees zeros in their place",
    "sparse_mask": "fill hidden patches that no convolution of the encoder sees (SparK, arXiv 2301.03580)",
    "a2mim": "fill patches hidden behind the mean colour, judged by pixels and frequencies (A2MIM, arXiv 2205.13943)",
    "mixture": "undo hidden patches, noise, missing colour, blur and low resolution at once, and find the edges",
    "layers": "in a crop, tell object from background as two palettes do in the whole image (after GrabCut)",
    "feature_layers": "the same, the object found by features that the encoder has brought along (not from random)",
    "otsu": "in a crop, tell the fewer bright or dark pixels from the rest, as Otsu's threshold does in the image",
    "decoder_denoise": "train the decoder alone to predict the noise in an image (DDeP, arXiv 2205.11423)",
}
"""What each objective asks of the autoencoder."""

TARGETS = {
    "pixels": "the image's own values",
    "patch-normalised": "the image with every patch brought to mean 0 and variance 1",
    "gradients": "the image and histograms of its oriented gradients",
    "frequency": "the image, its spectrum included",
}
"""What an objective's output can be compared with instead of the objective's own target."""


class Values(TypedDict):
    """Values of an objective.

    Attributes:
        noise_sigma: Standard deviation of the noise in normalised image space: 0.5 is 64 grey levels of 255 where an
            encoder divides by 0.5 (tf_efficientnet_lite0), 29 where by ImageNet's deviation.
        patch: Side of a hidden patch in pixels, also of the patches of target `patch-normalised`.
        mask_ratio: Share of the patches that is hidden.
        boundary: How far the layer of the boundary reaches to either side, as a share of the image's side; 0 asks for
            none.
    """

    noise_sigma: float
    patch: int
    mask_ratio: float
    boundary: float


DEFAULTS: dict[str, Values] = {
    "reconstruct": {"noise_sigma": 0.5, "patch": 16, "mask_ratio": 0.6, "boundary": 0.0},
    "denoise": {"noise_sigma": 0.5, "patch": 16, "mask_ratio": 0.6, "boundary": 0.0},
    "mask": {"noise_sigma": 0.5, "patch": 16, "mask_ratio": 0.6, "boundary": 0.0},
    "sparse_mask": {"noise_sigma": 0.5, "patch": 32, "mask_ratio": 0.6, "boundary": 0.0},
    "a2mim": {"noise_sigma": 0.5, "patch": 32, "mask_ratio": 0.6, "boundary": 0.0},
    "mixture": {"noise_sigma": 0.22, "patch": 16, "mask_ratio": 0.4, "boundary": 0.0},
    "layers": {"noise_sigma": 0.5, "patch": 16, "mask_ratio": 0.6, "boundary": 1 / 48},
    "feature_layers": {"noise_sigma": 0.5, "patch": 16, "mask_ratio": 0.6, "boundary": 1 / 48},
    "otsu": {"noise_sigma": 0.5, "patch": 16, "mask_ratio": 0.6, "boundary": 1 / 96},
    "decoder_denoise": {"noise_sigma": 0.22, "patch": 16, "mask_ratio": 0.6, "boundary": 0.0},
}
"""Default values of each objective; those that it does not use are never read."""

SAYS_LAYERS = ("layers", "feature_layers", "otsu")
"""Objectives that ask where an object is, in two or three layers."""


def learning_rate(objective: str) -> float:
    """Peak learning rate of AdamW with which an objective was measured."""
    return 2e-3 if objective in SAYS_LAYERS else 1e-3


_HIDES = ("patch", "mask_ratio")
_USED: dict[str, tuple[str, ...]] = {
    "denoise": ("noise_sigma",),
    "mask": _HIDES,
    "sparse_mask": _HIDES,
    "a2mim": _HIDES,
    "mixture": ("noise_sigma", *_HIDES),
    "decoder_denoise": ("noise_sigma",),
    **dict.fromkeys(SAYS_LAYERS, ("boundary",)),
}


def used_values(objective: str, target: str | None = None) -> tuple[str, ...]:
    """Names of the values that an objective reads, judged by one of `TARGETS` or its own."""
    used = _USED.get(objective, ())
    return (*used, "patch") if target == "patch-normalised" and "patch" not in used else used


def require_use(objective: str, target: str | None, values: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the values that an objective reads, as ``used_values``, once none beside them was given.

    Args:
        objective: one of ``OBJECTIVES``.
        target: one of ``TARGETS``, or None.
        values: by name; None was not given.

    Raises:
        SegaeError: a value was given that would do nothing.
    """
    used = used_values(objective, target)
    for name, value in values.items():
        if value is not None and name not in used:
            others = ", ".join(other for other in OBJECTIVES if name in used_values(other))
            raise SegaeError(
                f"{name} is {value}, and objective {objective} has no use for it. Leave --{name.replace('_', '-')} "
                f"out, or choose an --objective that has: {others}."
            )
    return used
