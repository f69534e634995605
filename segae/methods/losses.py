"""Losses that compare a prediction with its target: pixels, spectra, edges, pseudo-masks.

Predictions and targets are (B, C, H, W) and are compared in float32. A ``mask`` (B, 1, H, W) is 1 where the input was
hidden; with a mask only hidden pixels count, with None all of them do.
"""

import importlib
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segae._io import require_package
from segae.errors import SegaeError
from segae.methods.corruptions import average_patches, luminance, spread_patches

UNIT_RANGE = ("binary_cross_entropy", "cross_entropy", "ssim", "ms_ssim")  # criteria that need images in [0, 1]
CRITERIA = ("mse", "l1", *UNIT_RANGE)
"""Names of losses of pixels."""
INTENSITY_BINS = 16  # classes of criterion cross_entropy, per channel

HOG_CELL, HOG_BINS = 8, 9  # side of a cell in pixels; orientations between 0 and 180 degrees
# one to three gray levels of 255, by the encoder's normalization: fainter gradients are quantization, not edges
CONTRAST_FLOOR = 0.02
_FREQUENCY_WEIGHT = 0.5
_ERRORS: dict[str, Any] = {"mse": functional.mse_loss, "l1": functional.l1_loss}
_ERRORS |= {name: getattr(functional, name) for name in ("binary_cross_entropy", "cross_entropy")}
_PIXEL_WEIGHT = 0.1  # of the pixels beside a pseudo-mask


def mean_error(error: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average an error (B, C, H, W) over all pixels, or over hidden ones."""
    if mask is None:
        return error.mean()
    # where, not a product: an infinite error at a visible pixel times 0 would be NaN
    hidden = torch.where(mask > 0, error, 0.0)
    return hidden.sum() / (mask.float().sum() * error.shape[1]).clamp(min=1)


def pixel_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of pixel values; over hidden pixels as in MAE (arXiv 2111.06377)."""
    return criterion_loss("mse", prediction, target, mask)


def criterion_loss(criterion: str, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compare images by a loss of `CRITERIA`; over hidden pixels, or of the image with its holes filled for SSIM.

    ``cross_entropy`` takes logits (B, 16 C, H, W) of the intensity of each pixel, ``binary_cross_entropy`` values in
    [0, 1]; ``ssim`` and ``ms_ssim`` (Wang et al., 2004, 2003) are one minus the similarity. SegaeError: values are
    outside what the criterion needs, or the image is too small for it.
    """
    bins = INTENSITY_BINS if criterion == "cross_entropy" else 1
    _check_shape(prediction, target, more_channels=(bins - 1) * target.shape[1])
    prediction, target = prediction.float(), target.float()
    if criterion in UNIT_RANGE:
        _check_unit_range(criterion, "target", target)
    if criterion == "binary_cross_entropy":
        _check_unit_range(criterion, "prediction", prediction)
    with torch.autocast(target.device.type, enabled=False):  # which refuses cross-entropy of probabilities
        if criterion in ("ssim", "ms_ssim"):
            filled = prediction if mask is None else torch.where(mask > 0, prediction, target)
            return 1 - _similarity(criterion, filled, target)
        if criterion == "cross_entropy":
            prediction = prediction.unflatten(1, (target.shape[1], bins)).movedim(2, 1)
            target = (target * (bins - 1)).round().long()
        return mean_error(_ERRORS[criterion](prediction, target, reduction="none"), mask)


def intensities(logits: Tensor, channels: int) -> Tensor:
    """Mean intensity in [0, 1] of each pixel by logits of criterion ``cross_entropy``: (B, channels, H, W)."""
    probability = logits.float().unflatten(1, (channels, INTENSITY_BINS)).softmax(dim=2)
    return probability.movedim(2, -1) @ torch.linspace(0, 1, INTENSITY_BINS, device=logits.device)


def _check_unit_range(criterion: str, name: str, values: Tensor) -> None:
    if values.is_cuda:  # it would wait; create_autoencoder has looked at the model
        return
    low, high = map(float, values.detach().aminmax())
    if low < -1e-4 or high > 1 + 1e-4:
        raise SegaeError(f"{name} must be in [0, 1] for criterion {criterion}, got {low:.3g} to {high:.3g}")


def _similarity(criterion: str, images: Tensor, target: Tensor) -> Tensor:
    require_package("torchmetrics", "ssim")
    measures = importlib.import_module("torchmetrics.functional.image")  # takes a second
    name = ("multiscale_" if criterion == "ms_ssim" else "") + "structural_similarity_index_measure"
    try:
        return getattr(measures, name)(images, target, data_range=1.0)
    except ValueError as error:
        raise SegaeError(f"criterion must fit the image size, got {criterion}: {error}") from error


def frequency_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error of pixels plus half a focal frequency loss, as in A2MIM (arXiv 2205.13943).

    A mean over pixels is content with blur; the second term asks for the frequencies that are furthest off. Over
    hidden pixels, the spectrum is that of the image with the prediction put in its holes.
    """
    _check_shape(prediction, target)
    difference = prediction.float() - target.float()
    loss = mean_error(difference.abs(), mask)
    if mask is not None:
        difference = torch.where(mask > 0, difference, 0.0)
    return loss + _FREQUENCY_WEIGHT * focal_frequency(difference)


def hog_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of pixels plus that of histograms of oriented gradients (HOG).

    Locally contrast-normalized gradients are a better target than colors (MaskFeat, arXiv 2112.09133). The prediction
    (B, C + 9, H, W) has a channel for each orientation after the image's; their means over each cell of 8 px are
    compared with its histogram by squared distance. With a mask, a cell counts by the share of it that is hidden.
    """
    _check_shape(prediction, target, more_channels=HOG_BINS)
    pixels, gradients = prediction.float().split([target.shape[1], HOG_BINS], dim=1)
    loss = mean_error((pixels - target.float()).square(), mask)
    error = (average_patches(gradients, HOG_CELL) - oriented_gradients(target)).square().sum(dim=1, keepdim=True)
    if mask is None:
        return loss + error.mean()
    share = average_patches(mask.float(), HOG_CELL)
    return loss + (error * share).sum() / share.sum().clamp(min=1e-6)  # nothing hidden, no error


def pseudo_mask_loss(prediction: Tensor, target: Tensor, boundary: float) -> Tensor:
    """Kullback-Leibler divergence of mask logits from a pseudo-mask, plus a tenth of the squared error of the pixels.

    The prediction (B, C + classes, H, W) is the image, then logits of the classes of `mask_classes`; the target
    (B, C + 1, H, W) is the image, then 1 where the object is and 0 elsewhere.
    """
    channels = target.shape[1] - 1
    classes = mask_classes(target[:, channels:].float(), boundary)
    _check_shape(prediction, target, more_channels=classes.shape[1] - 1)
    log_probability = prediction[:, channels:].float().log_softmax(dim=1)
    # the gradient of the cross-entropy, and 0 at best
    loss = functional.kl_div(log_probability, classes, reduction="none").sum(dim=1).mean()
    error = prediction[:, :channels].float() - target[:, :channels].float()
    return loss + _PIXEL_WEIGHT * error.square().mean()


def mask_classes(mask: Tensor, boundary: float) -> Tensor:
    """Turn an object mask into probabilities (B, 2 or 3, H, W): background, object and, for ``boundary`` > 0, boundary.

    The mask (B, 1, H, W) is 1 in the object, 0 in the background, and between them on its edge. The boundary reaches
    ``boundary`` to either side, a share of the image's side in [0, 0.5).
    """
    both = torch.cat([1 - mask, mask], dim=1)
    if not boundary:
        return both
    reach = max(1, round(boundary * mask.shape[3]))
    wider = functional.max_pool2d(both, 2 * reach + 1, stride=1, padding=reach)
    near_both = (wider.sum(dim=1, keepdim=True) - 1).clamp(0, 1)
    return torch.cat([both * (1 - near_both), near_both], dim=1)


def normalize_patches(images: Tensor, patch_size: int) -> Tensor:
    """Give every patch mean 0 and variance 1 over its pixels and channels, in float32; an even patch becomes 0.

    As a target this takes brightness and contrast away, so that structure decides (arXiv 2111.06377, 2301.03580).
    """
    images = images.float()
    height, width = images.shape[2:]
    mean = average_patches(images.mean(dim=1, keepdim=True), patch_size)
    centered = images - spread_patches(mean, patch_size, height, width)
    variance = average_patches(centered.square().mean(dim=1, keepdim=True), patch_size)
    return centered * spread_patches((variance + 1e-6).rsqrt(), patch_size, height, width)


def denormalize_patches(prediction: Tensor, images: Tensor, patch_size: int) -> Tensor:
    """Give patches of mean 0 and variance 1 the mean and variance of those of ``images``: to look at, not to score."""
    height, width = images.shape[2:]
    grid = average_patches(images.mean(dim=1, keepdim=True), patch_size)
    mean = spread_patches(grid, patch_size, height, width)
    variance = average_patches((images - mean).square().mean(dim=1, keepdim=True), patch_size)
    return prediction * spread_patches(variance.sqrt(), patch_size, height, width) + mean


def focal_frequency(difference: Tensor) -> Tensor:
    """Focal frequency loss (arXiv 2012.12821, exponent 1) of two images with this difference, a scalar.

    The transform is linear and keeps the sum of squares: the unweighted mean would be the pixels' mean squared error.
    """
    spectrum = torch.fft.fft2(difference.float(), norm="ortho")
    squared = spectrum.real.square() + spectrum.imag.square()
    with torch.no_grad():  # the weight chooses frequencies and must not be minimized itself
        distance = squared.sqrt()
        tiny = torch.finfo(distance.dtype).tiny  # equal images have nothing to divide by
        weight = distance / distance.amax(dim=(2, 3), keepdim=True).clamp(min=tiny)
    return (weight * squared).mean()


@torch.no_grad()
def oriented_gradients(images: Tensor, cell: int = HOG_CELL, bins: int = HOG_BINS) -> Tensor:
    """Compute contrast-normalized histograms of the luminance's gradients: float32 (B, bins, rows, columns).

    Every pixel votes with the size of its gradient for the two orientations next to its own; bin k means 180 k / bins
    degrees. A cell's histogram is divided by the root mean square length of the histograms of the up to 3 x 3 cells
    around it, and so tells where an edge is besides where it points.
    """
    padded = functional.pad(luminance(images.float()), (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    size = torch.hypot(across, down)
    position = torch.atan2(down, across) * (bins / math.pi)  # of the orientation among the bins, not rounded
    votes = []
    for index in range(bins):  # one after another: all at once would take `bins` times the memory
        distance = (position - index).remainder(bins)  # a turn of 180 degrees comes back to the same bin
        distance = torch.minimum(distance, bins - distance)
        votes.append(average_patches(size * (1 - distance).clamp(min=0), cell))
    histogram = torch.cat(votes, dim=1)
    length = histogram.square().sum(dim=1, keepdim=True)
    around = functional.avg_pool2d(length, 3, stride=1, padding=1, count_include_pad=False)
    return histogram * (around + CONTRAST_FLOOR**2).rsqrt()


def _check_shape(prediction: Tensor, target: Tensor, more_channels: int = 0) -> None:
    """Refuse a prediction that is not shaped like the target (with more channels): it would be broadcast silently."""
    batch, channels, height, width = target.shape
    expected = (batch, channels + more_channels, height, width)
    if prediction.shape != expected:
        raise SegaeError(f"prediction must have shape {expected}, got {tuple(prediction.shape)}")
