"""A linear probe: how much of a segmentation can be read off frozen features without training a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.training.evaluation import CPU, normalise, softmax_winner
from segae.training.forward import evaluating
from segae.training.metrics import confusion_matrix

_CELL = 8  # pixels per side of a cell: the finest stride at which 300 images still take seconds on a CPU


def linear_probe(
    encoder: nn.Module,
    images: NDArray[np.uint8],
    masks: NDArray[np.integer],
    train_indices: Sequence[int],
    valid_indices: Sequence[int],
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device = CPU,
    ridge: float = 1e-2,
    batch_size: int = 32,
) -> float:
    """Mean IoU of a linear classifier on the encoder's features; a few seconds for a few hundred images.

    The feature maps of stride 4 to 32 are brought to stride 8 bilinearly and put side by side. A ridge regression
    in closed form maps the standardised features of a cell to the share of each class among its pixels. Its
    scores are enlarged bilinearly to the mask's size, and the largest one is the class. No random number is
    drawn, and the encoder is left as it was, modes included.

    Args:
        encoder: from ``segae.create_encoder``, on ``device``.
        images: uint8 (N, S, S, 3), RGB, S a multiple of the encoder's stride; may be a memory map.
        masks: class indices (N, S, S).
        train_indices: images that the regression is fitted to.
        valid_indices: images that are scored; never test images.
        classes: K.
        mean: what the encoder's images are normalised with.
        std: the same.
        device: where to compute.
        ridge: penalty on the squared weights, above 0, in units of the variance of a standardised feature.
        batch_size: images per forward pass.

    Returns:
        Mean IoU over the classes in the truth or the prediction of the validation images, in [0, 1].

    Raises:
        SegaeError: shapes that do not fit, no images on one of the sides, or a ridge of 0 or less.
    """
    _check(images, masks, train_indices, valid_indices, ridge)

    def batches(indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(indices), batch_size):
            chosen = np.asarray(indices[start : start + batch_size])
            features_bchw = _features(encoder, normalise(images[chosen], mean, std, device))
            yield features_bchw, torch.from_numpy(np.asarray(masks[chosen]).astype(np.int64)).to(device)

    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    with evaluating(encoder), torch.no_grad():
        sums = _Sums()
        for features_bchw, mask_bhw in batches(train_indices):
            sums.add(features_bchw, _class_shares(mask_bhw, classes, *features_bchw.shape[-2:]))
        weight_kc, bias_k = (part.to(device) for part in sums.solve(ridge))
        for features_bchw, mask_bhw in batches(valid_indices):
            scores_bkhw = functional.conv2d(features_bchw, weight_kc[:, :, None, None], bias_k)
            size = mask_bhw.shape[-2:]
            scores_bkhw = functional.interpolate(scores_bkhw, size=size, mode="bilinear", align_corners=False)
            confusion += confusion_matrix(softmax_winner(scores_bkhw), mask_bhw, classes).cpu()
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return float((hits / union)[union > 0].mean())


def _features(encoder: nn.Module, image_bchw: Tensor) -> Tensor:
    """float32 (B, channels, H/8, W/8) of the maps of stride 4 to 32, side by side."""
    size = (image_bchw.shape[-2] // _CELL, image_bchw.shape[-1] // _CELL)
    maps = encoder(image_bchw)[2:]  # before them stand the image itself and stride 2
    resized = [functional.interpolate(part.float(), size=size, mode="bilinear", align_corners=False) for part in maps]
    return torch.cat(resized, dim=1)


def _class_shares(mask_bhw: Tensor, classes: int, rows: int, columns: int) -> Tensor:
    """Share of each class among a cell's pixels, (B, K, rows, columns): a class thinner than a cell keeps its say."""
    one_hot_bkhw = functional.one_hot(mask_bhw, classes).permute(0, 3, 1, 2).float()
    return functional.adaptive_avg_pool2d(one_hot_bkhw, (rows, columns))


@dataclass
class _Sums:
    """What a linear regression needs to know of its data, collected batch by batch.

    Sums are taken in float32 around the first batch's mean and kept in float64: features far from zero lose no
    digits, and devices without float64 work too.
    """

    count: int = 0
    shift_c: Tensor | None = None
    sum_d: Tensor | float = 0.0
    gram_dd: Tensor | float = 0.0

    def add(self, features_bchw: Tensor, target_bkhw: Tensor) -> None:
        """Add the cells of a batch."""
        features_nc = features_bchw.permute(0, 2, 3, 1).flatten(0, 2)
        if self.shift_c is None:
            self.shift_c = features_nc.mean(dim=0)
        both_nd = torch.cat([features_nc - self.shift_c, target_bkhw.permute(0, 2, 3, 1).flatten(0, 2)], dim=1)
        self.count += len(both_nd)
        self.sum_d = self.sum_d + both_nd.sum(dim=0).cpu().double()
        self.gram_dd = self.gram_dd + (both_nd.T @ both_nd).cpu().double()

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (K, C) and bias (K,), float32, for features as they come."""
        assert isinstance(self.sum_d, Tensor)
        assert isinstance(self.gram_dd, Tensor)
        assert self.shift_c is not None
        channels = len(self.shift_c)
        mean_d = self.sum_d / self.count
        covariance_dd = self.gram_dd / self.count - torch.outer(mean_d, mean_d)
        deviation_c = covariance_dd.diagonal()[:channels].clamp(min=0).sqrt()
        # a feature that never moves gets no weight instead of an infinite one
        scale_c = torch.where(deviation_c > 1e-6, 1 / deviation_c.clamp(min=1e-6), 0.0)
        correlation_cc = covariance_dd[:channels, :channels] * torch.outer(scale_c, scale_c)
        identity_cc = torch.eye(channels, dtype=torch.float64)
        right_ck = covariance_dd[:channels, channels:] * scale_c[:, None]
        weight_ck = torch.linalg.solve(correlation_cc + ridge * identity_cc, right_ck) * scale_c[:, None]
        centre_c = self.shift_c.cpu().double() + mean_d[:channels]
        bias_k = mean_d[channels:] - centre_c @ weight_ck
        return weight_ck.T.float().contiguous(), bias_k.float()


def _check(
    images: NDArray[np.uint8],
    masks: NDArray[np.integer],
    train_indices: Sequence[int],
    valid_indices: Sequence[int],
    ridge: float,
) -> None:
    if images.ndim != 4 or masks.shape != images.shape[:3]:
        raise SegaeError(
            f"The probe got images {images.shape} and masks {masks.shape}; wanted (N, S, S, 3) and (N, S, S): resize "
            "both to one size, masks by nearest neighbour."
        )
    if not len(train_indices) or not len(valid_indices):
        raise SegaeError(
            f"The probe got {len(train_indices)} training and {len(valid_indices)} validation images; at least 1 of "
            "each is wanted: keep some labelled images apart."
        )
    if ridge <= 0:
        raise SegaeError(f"The probe's ridge is {ridge}; a number above 0 is wanted, for example 0.01.")
