"""Pretraining methods: autoencoding and pseudo-masks, each one registered frozen dataclass."""

from segae.methods.autoencoding import TARGETS
from segae.methods.base import (
    Method,
    create_autoencoder,
    create_method,
    list_methods,
    method_names,
    method_table,
    register_method,
    setting,
)
from segae.methods.corruptions import (
    Corrupted,
    PatchDifficulty,
    VisiblePatches,
    average_patches,
    hide_patches,
    spread_patches,
)
from segae.methods.losses import CRITERIA, criterion_loss, pixel_loss
from segae.methods.penalties import estimate_jacobian_norm, gaussian_kl, jacobian_norm, kl_to_rate
from segae.methods.pseudo_masks import PseudoMasks, WeightedSums, cut_out, within_covariance

__all__ = [
    "CRITERIA", "TARGETS", "Corrupted", "Method", "PatchDifficulty", "PseudoMasks", "VisiblePatches", "WeightedSums",
    "average_patches", "create_autoencoder", "create_method", "criterion_loss", "cut_out", "estimate_jacobian_norm",
    "gaussian_kl", "hide_patches", "jacobian_norm", "kl_to_rate", "list_methods", "method_names", "method_table",
    "pixel_loss", "register_method", "setting", "spread_patches",
    "within_covariance",
]  # fmt: skip
