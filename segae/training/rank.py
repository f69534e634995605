"""Whether an encoder's features still say anything: their effective rank and their spread over images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-7  # the value of the RankMe paper


def pooled_features(encoder: nn.Module, image_bchw: Tensor) -> Tensor:
    """The deepest feature map, averaged over its positions.

    Args:
        encoder: from ``segae.create_encoder``; used in the modes and with the gradients that the caller set.
        image_bchw: normalised, clean images.

    Returns:
        float32 (B, channels).
    """
    return encoder(image_bchw)[-1].float().mean(dim=(2, 3))


def effective_rank(features_nc: Tensor) -> float:
    """RankMe (arXiv 2210.02885): how many directions the features use, as exp(entropy of the singular values).

    As in the paper the features are not centred: a mean that all images share counts as one direction. The
    singular values are divided by their sum, and 1e-7 is added to each share.

    Args:
        features_nc: one row per image, (N, C), any float type. Comparable only at the same N and C.

    Returns:
        From 1 (all rows are multiples of one) to min(N, C), up to the 1e-7; 0 for features that are all zero
        and NaN where one is infinite or no number.

    Example:
        >>> round(effective_rank(torch.eye(4)), 3)
        4.0
    """
    features = features_nc.detach().cpu().double()  # in double: the small singular values count here
    if not torch.isfinite(features).all():
        return float("nan")
    singular = torch.linalg.svdvals(features)
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular / total + _EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def feature_spread(features_nc: Tensor) -> float:
    """Mean over the channels of the standard deviation over the images; 0 when all images get the same features.

    Args:
        features_nc: one row per image, (N, C), N of 1 or more.
    """
    return float(features_nc.detach().cpu().double().std(dim=0, correction=0).mean())
