"""A segmenter's head that begins as a linear discriminant of what its decoder gives, not with random weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.objectives.discriminant import WeightedSums, within_covariance


@torch.no_grad()
def fit_head(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, device: torch.device) -> None:
    """Set the segmenter's head to Fisher's linear discriminant of its decoder's features between the classes.

    A decoder that was taken along has features that tell classes apart before any step; a random head would first
    teach it to forget them (arXiv 2202.10054). One pass over the training images, nothing else is changed.

    Args:
        model: with a `segmentation_head` whose first convolution takes the features; the middle of its kernel gets
            the weights, the rest zeros. Its training mode is restored.
        batches: clean, normalised images (B, C, H, W) and masks of class indices (B, H, W); other indices are no class.
        classes: how many.
        device: where the model is.

    Raises:
        SegaeError: the head is no convolution over features of the masks' size.
    """
    head: nn.Module = getattr(model, "segmentation_head", nn.Identity())
    convolution = next((part for part in head.modules() if isinstance(part, nn.Conv2d)), None)
    if convolution is None or convolution.bias is None:
        raise SegaeError(
            "fitted_head asks for a head over a decoder's features, and this segmenter has none. Leave --fitted-head "
            "out, or use --decoder unet."
        )
    sums = [WeightedSums() for _ in range(classes)]
    was_training = model.training
    model.eval()
    for image_bchw, mask_bhw in batches:
        feature_bdhw = _features(model, head, image_bchw.to(device))
        small_bhw = _fitting(mask_bhw.to(device), feature_bdhw)
        feature_nd = feature_bdhw.permute(0, 2, 3, 1).flatten(0, 2).double()
        for index, side in enumerate(sums):
            side.add(feature_nd, (small_bhw.flatten() == index).double())
    model.train(was_training)
    covariance_dd = within_covariance(sums)
    weight_k = torch.stack([side.weight for side in sums])
    # a class that no image shows: half a pixel like the average one
    average_d = torch.stack([side.mean() * side.weight for side in sums if side.weight > 0]).sum(dim=0) / weight_k.sum()
    middle = convolution.kernel_size[0] // 2
    convolution.weight.zero_()
    for index, side in enumerate(sums):
        mean_d = side.mean() if side.weight > 0 else average_d
        weight_d = torch.linalg.solve(covariance_dd, mean_d)
        prior = (side.weight.clamp(min=0.5) / weight_k.sum()).log()
        convolution.weight[index, :, middle, middle] = weight_d.float()
        convolution.bias[index] = (prior - weight_d @ mean_d / 2).float()


def _features(model: nn.Module, head: nn.Module, image_bchw: Tensor) -> Tensor:
    """What the head is given for these images."""
    kept: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        model(image_bchw)
    finally:
        hook.remove()
    return kept[0].float()


def _fitting(mask_bhw: Tensor, feature_bdhw: Tensor) -> Tensor:
    """The masks at the features' size, which a head that enlarges has smaller."""
    if mask_bhw.shape[1:] == feature_bdhw.shape[2:]:
        return mask_bhw
    small_b1hw = nn.functional.interpolate(mask_bhw.unsqueeze(1).float(), size=feature_bdhw.shape[2:], mode="nearest")
    return small_b1hw[:, 0].long()
