"""Initialization before fine-tuning: recalibrate BatchNorm statistics, fit the head (LP-FT)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.methods import WeightedSums, within_covariance
from segae.models import evaluation_mode


def recalibrate_batchnorm(
    module: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    device: torch.device,
    *,
    through: nn.Module | None = None,
) -> None:
    """Replace the running statistics of every BatchNorm layer by the plain average over images.

    Those that pretraining leaves behind are of corrupted images, and mostly of its last steps. ``batches`` are
    normalized images (B, C, H, W), alone or with domains (B,): clean ones for an encoder that a segmenter will use.
    They go ``through`` the model that ``module`` belongs to, on ``device``, or through itself where that is None.
    Training modes are restored.
    """
    model = module if through is None else through
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with evaluation_mode(model), torch.no_grad():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
        try:
            for batch in batches:
                image_bchw, *domain = batch if isinstance(batch, Sequence) else [batch]
                model(image_bchw.to(device), **({"domain": domain[0].to(device)} if domain and through else {}))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


@torch.no_grad()
def fit_lpft_head(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, device: torch.device
) -> None:
    """Initialize a segmenter's head as Fisher's linear discriminant of its decoder's features between the classes.

    The features of a transferred decoder tell classes apart before any step; a random head would first distort them
    (LP-FT, arXiv 2202.10054). The center of the kernel of the head's first convolution gets the weights, the rest
    zeros; nothing else of the model, which is on ``device``, is changed. ``batches``, gone through once, are clean,
    normalized images (B, C, H, W) and masks (B, H, W) of class indices below ``num_classes``; others are ignored.
    SegaeError if the head is no convolution with a bias over a decoder's features.
    """
    head: nn.Module = getattr(model, "segmentation_head", nn.Identity())
    convolution = next((part for part in head.modules() if isinstance(part, nn.Conv2d)), None)
    if convolution is None or convolution.bias is None:
        raise SegaeError("model must have a convolutional head over a decoder's features for an LP-FT head, got none")
    sums = [WeightedSums() for _ in range(num_classes)]
    exact = torch.device("cpu") if device.type == "mps" else device  # MPS has no double precision
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    with hook, evaluation_mode(model):
        for image_bchw, mask_bhw in batches:
            model(image_bchw.to(device))
            feature_bdhw = seen.pop()
            # the features are smaller than the mask where the head enlarges
            small_bchw = functional.interpolate(mask_bhw[:, None].float(), feature_bdhw.shape[2:], mode="nearest")
            label_n = small_bchw.flatten().to(exact)
            feature_nd = feature_bdhw.permute(0, 2, 3, 1).flatten(0, 2).to(exact).double()
            for index, part in enumerate(sums):
                part.add(feature_nd, (label_n == index).double())
    covariance_dd = within_covariance(sums)
    weight_k = torch.stack([part.weight for part in sums])
    # a class that no image shows: half a pixel like the average one
    average_d = torch.stack([part.mean() * part.weight for part in sums if part.weight > 0]).sum(dim=0) / weight_k.sum()
    center = convolution.kernel_size[0] // 2
    convolution.weight.zero_()
    for index, part in enumerate(sums):
        mean_d = part.mean() if part.weight > 0 else average_d
        weight_d = torch.linalg.solve(covariance_dd, mean_d)
        prior = (part.weight.clamp(min=0.5) / weight_k.sum()).log()
        convolution.weight[index, :, center, center] = weight_d.float()
        convolution.bias[index] = (prior - weight_d @ mean_d / 2).float()
