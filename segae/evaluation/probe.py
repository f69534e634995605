"""Quality of an encoder without fine-tuning: a linear probe, RankMe, and the spread of its features."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from segae._io import check_range
from segae.errors import SegaeError
from segae.evaluation.metrics import confusion_matrix, mean_iou
from segae.image_format import IGNORE_INDEX
from segae.models.encoder import evaluation_mode
from segae.models.inference import argmax_classes, input_settings, normalize

_CELL = 8  # pixels per side of a cell: the finest stride at which 300 images still take seconds on a CPU
_EPSILON = 1e-7  # the value of the RankMe paper


def rankme(features: Tensor) -> float:
    """Compute RankMe (arXiv 2210.02885), the effective rank of features: exp(entropy of their singular values).

    As in the paper the features are not centered: a mean that all images share counts as one direction.

    Args:
        features: one row per image, (N, C), any float type. Comparable only at the same N and C.

    Returns:
        From 1 (all rows are multiples of one) to min(N, C); 0 where all are zero, NaN where one is not finite.

    Example:
        >>> round(rankme(torch.eye(4)), 3)
        4.0
    """
    features = features.detach().cpu().double()  # in double: the small singular values count here
    if not torch.isfinite(features).all():
        return float("nan")
    singular = torch.linalg.svdvals(features)
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular / total + _EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def feature_std(features: Tensor) -> float:
    """Average over channels the standard deviation over the N images of features (N, C); 0 when all are equal."""
    return float(features.detach().cpu().double().std(dim=0, correction=0).mean())


def linear_probe(
    encoder: nn.Module,
    *,
    images: NDArray[np.uint8],
    masks: NDArray[np.integer],
    train_indices: Sequence[int],
    valid_indices: Sequence[int],
    num_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str | None = None,
    ridge: float = 1e-2,
    batch_size: int = 32,
) -> float:
    """Score frozen features by the validation mean IoU, in [0, 1], of a linear classifier; seconds for 300 images.

    The feature maps of stride 4 to 32 are resized to stride 8 bilinearly and concatenated. A ridge regression in closed
    form maps the standardized features of a cell to the share of each class among its pixels. Its scores are enlarged
    bilinearly to the mask's size, and the largest one is the class. Nothing is random; the encoder stays as it was.

    Args:
        encoder: from ``segae.create_encoder``, on ``device``.
        images: uint8 (N, S, S, C), RGB, S a multiple of the encoder's stride; may be a memory map.
        masks: class indices (N, S, S); pixels of 255 do not count.
        train_indices: images that the regression is fitted to.
        valid_indices: images that are scored; never test images.
        num_classes: K.
        mean: of each channel, on the scale 0-1; None takes that of ``encoder.info``, as for ``std``.
        std: of each channel, on the scale 0-1.
        device: where to compute; None is where the encoder is.
        ridge: penalty on the squared weights, above 0, in units of the variance of a standardized feature.
        batch_size: images per forward pass.

    Raises:
        SegaeError: shapes that do not fit, no images on one of the sides, or a number out of its range.
    """
    check_range("ridge", ridge, low=0, low_open=True)
    check_range("batch_size", batch_size, low=1, integer=True)
    if images.ndim != 4 or masks.shape != images.shape[:3]:
        raise SegaeError(f"masks must have the shape (N, S, S) of images {images.shape}, got {masks.shape}")
    if not len(train_indices) or not len(valid_indices):
        counts = f"{len(train_indices)} and {len(valid_indices)}"
        raise SegaeError(f"train_indices and valid_indices must be one or more images each, got {counts}")
    mean, std, place = input_settings(encoder, mean, std, device)

    def batches(indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(indices), batch_size):
            chosen = np.asarray(indices[start : start + batch_size])
            features_bchw = _stride_8_features(encoder, normalize(images[chosen], mean, std, place))
            yield features_bchw, torch.from_numpy(np.asarray(masks[chosen]).astype(np.int64)).to(place)

    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    with evaluation_mode(encoder), torch.no_grad():
        train = ((part, _class_shares(mask, num_classes, *part.shape[-2:])) for part, mask in batches(train_indices))
        weight_kc, bias_k = (part.to(place) for part in _fit_ridge(train, ridge))
        for features_bchw, mask_bhw in batches(valid_indices):
            scores_bkhw = functional.conv2d(features_bchw, weight_kc[:, :, None, None], bias_k)
            size = mask_bhw.shape[-2:]
            scores_bkhw = functional.interpolate(scores_bkhw, size=size, mode="bilinear", align_corners=False)
            confusion += confusion_matrix(argmax_classes(scores_bkhw), mask_bhw, num_classes).cpu()
    return mean_iou(confusion)


def _stride_8_features(encoder: nn.Module, image_bchw: Tensor) -> Tensor:
    """float32 (B, channels, H/8, W/8) of the maps of stride 4 to 32, concatenated."""
    size = (image_bchw.shape[-2] // _CELL, image_bchw.shape[-1] // _CELL)
    maps = encoder(image_bchw)[2:]  # the first two are the image itself and stride 2
    resized = [functional.interpolate(part.float(), size=size, mode="bilinear", align_corners=False) for part in maps]
    return torch.cat(resized, dim=1)


def _class_shares(mask_bhw: Tensor, num_classes: int, rows: int, columns: int) -> Tensor:
    """Share of each class among a cell's pixels that count, (B, K, rows, columns), so that thin classes count too.

    It is NaN where no pixel counts.
    """
    counted_bhw = mask_bhw != IGNORE_INDEX
    one_hot_bkhw = functional.one_hot(mask_bhw.where(counted_bhw, num_classes), num_classes + 1).movedim(3, 1).float()
    shares_bkhw = functional.adaptive_avg_pool2d(one_hot_bkhw[:, :num_classes], (rows, columns))
    return shares_bkhw if counted_bhw.all() else shares_bkhw / shares_bkhw.sum(dim=1, keepdim=True)


def _fit_ridge(batches: Iterable[tuple[Tensor, Tensor]], ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (K, C) and bias (K,), float32, of a ridge regression from feature maps to target maps (B, K, H, W).

    Positions whose target is NaN do not count. Sums are taken in float32 around the first batch's mean and kept in
    float64: features far from zero lose no digits, and devices without float64 work too.
    """
    count, sum_d, gram_dd, shift_c = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for features_bchw, target_bkhw in batches:
        features_nc = features_bchw.permute(0, 2, 3, 1).flatten(0, 2)
        if count == 0:
            shift_c = features_nc.mean(dim=0)
        both_nd = torch.cat([features_nc - shift_c, target_bkhw.permute(0, 2, 3, 1).flatten(0, 2)], dim=1)
        both_nd = both_nd[~both_nd[:, -1].isnan()]
        count += len(both_nd)
        sum_d = sum_d + both_nd.sum(dim=0).cpu().double()
        gram_dd = gram_dd + (both_nd.T @ both_nd).cpu().double()
    channels = len(shift_c)
    mean_d = sum_d / count
    covariance_dd = gram_dd / count - torch.outer(mean_d, mean_d)
    deviation_c = covariance_dd.diagonal()[:channels].clamp(min=0).sqrt()
    # a feature that never moves gets no weight instead of an infinite one
    scale_c = torch.where(deviation_c > 1e-6, 1 / deviation_c.clamp(min=1e-6), 0.0)
    correlation_cc = covariance_dd[:channels, :channels] * torch.outer(scale_c, scale_c)
    right_ck = covariance_dd[:channels, channels:] * scale_c[:, None]
    penalty_cc = ridge * torch.eye(channels, dtype=torch.float64)
    weight_ck = torch.linalg.solve(correlation_cc + penalty_cc, right_ck) * scale_c[:, None]
    center_c = shift_c.cpu().double() + mean_d[:channels]
    bias_k = mean_d[channels:] - center_c @ weight_ck
    return weight_ck.T.float().contiguous(), bias_k.float()
