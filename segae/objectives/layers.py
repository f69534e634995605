"""Two layers of an image, object and ground, told apart by colour and place without a label.

What GrabCut does by colour models and graph cuts (Rother et al., SIGGRAPH 2004, doi 10.1145/1186562.1015720), here for
a batch on the images' own device and with soft answers: each layer is explained by its own palette, and a pixel belongs
to the layer that explains its colour better. It rests on one assumption, which must be said beside its numbers: the
object is near the middle and seldom fills the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SIDE = 48  # of the grid on which the layers are found: the boundary needs no more, and the palettes cost little
_COLOURS = 16
_BANDWIDTH = 0.18  # of a palette's colour, in standard deviations of the image's colours
_PALETTE_STEPS, _LAYER_STEPS = 8, 5
_PRIOR_SIGMA, _PRIOR_PEAK, _PRIOR_FLOOR = 0.66, 0.8, 0.03  # in half sides of the image; probabilities


@torch.no_grad()
def split_layers(image_bchw: Tensor) -> Tensor:
    """How likely each pixel belongs to the object, by the palettes of object and background.

    The colours of an image are gathered into a palette of 16 by k-means. Every pixel begins with a prior that falls
    off from the middle; then, five times, both layers count how often they have each colour, and the pixels are
    divided anew by these counts and the prior. Nothing is drawn at random.

    Args:
        image_bchw: (B, C, H, W) of any C and any scale: colours are compared in units of their own deviation.

    Returns:
        float32 (B, 1, H, W) in (0, 1): 1 for object, 0 for background.
    """
    height, width = image_bchw.shape[2:]
    rows, columns = min(height, _SIDE), min(width, _SIDE)
    with torch.autocast(image_bchw.device.type, enabled=False):
        small_bchw = blur(functional.interpolate(image_bchw.float(), size=(rows, columns), mode="area"), 0.7)
        share_bnk = _palette_shares(_standardised(small_bchw.flatten(2).transpose(1, 2)))
        prior_11rc = centre_prior(rows, columns, image_bchw.device)
        object_b1rc = prior_11rc.expand(len(image_bchw), 1, rows, columns)
        for _ in range(_LAYER_STEPS):
            object_bn1 = object_b1rc.flatten(2).transpose(1, 2)
            evidence_bk1 = _log_frequency(share_bnk, object_bn1) - _log_frequency(share_bnk, 1 - object_bn1)
            evidence_b1rc = (share_bnk @ evidence_bk1).view(-1, 1, rows, columns)
            object_b1rc = torch.sigmoid(blur(evidence_b1rc, 1.5) + prior_11rc.logit())
        return functional.interpolate(object_b1rc, size=(height, width), mode="bilinear", align_corners=False)


def _standardised(colour_bnc: Tensor) -> Tensor:
    """Colours without the image's mean, in units of its deviation over all channels; 0 where there is one colour."""
    centred_bnc = colour_bnc - colour_bnc.mean(dim=1, keepdim=True)
    deviation_b11 = centred_bnc.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return torch.where(deviation_b11 > 1e-5, centred_bnc / deviation_b11.clamp(min=1e-5), 0.0)


def _palette_shares(colour_bnc: Tensor) -> Tensor:
    """How much of each pixel's colour is each colour of the image's palette (B, N, K); they sum to 1."""
    count, channels = colour_bnc.shape[1:]
    chosen_k = torch.linspace(0, count - 1, _COLOURS, device=colour_bnc.device).long()
    order_bn = colour_bnc.sum(dim=2).argsort(dim=1, stable=True)
    palette_bkc = colour_bnc.gather(1, order_bn[:, chosen_k].unsqueeze(2).expand(-1, -1, channels))
    index_k = torch.arange(_COLOURS, device=colour_bnc.device)
    for _ in range(_PALETTE_STEPS):
        nearest_bnk = (_squared_distance(colour_bnc, palette_bkc).argmin(dim=2, keepdim=True) == index_k).float()
        members_bk1 = nearest_bnk.sum(dim=1).unsqueeze(2)
        mean_bkc = nearest_bnk.transpose(1, 2) @ colour_bnc / members_bk1.clamp(min=1)
        palette_bkc = torch.where(members_bk1 > 0, mean_bkc, palette_bkc)
    return torch.softmax(-_squared_distance(colour_bnc, palette_bkc) / (2 * _BANDWIDTH**2), dim=2)


def _squared_distance(colour_bnc: Tensor, palette_bkc: Tensor) -> Tensor:
    """(B, N, K), but for the pixel's own square, which argmin and softmax over K do not see."""
    return palette_bkc.square().sum(dim=2).unsqueeze(1) - 2 * colour_bnc @ palette_bkc.transpose(1, 2)


def _log_frequency(share_bnk: Tensor, weight_bn1: Tensor) -> Tensor:
    """Logarithm of how often a layer has each colour (B, K, 1); half a pixel is added to each, for those unseen."""
    seen_bk1 = (share_bnk * weight_bn1).sum(dim=1).unsqueeze(2) + 0.5
    return (seen_bk1 / seen_bk1.sum(dim=1, keepdim=True)).log()


def centre_prior(rows: int, columns: int, device: torch.device) -> Tensor:
    """Probability (1, 1, rows, columns) of the object before any colour is seen, highest in the middle."""
    y_r = (torch.arange(rows, device=device) + 0.5) / rows * 2 - 1
    x_c = (torch.arange(columns, device=device) + 0.5) / columns * 2 - 1
    squared_rc = y_r.square().unsqueeze(1) + x_c.square().unsqueeze(0)
    return (_PRIOR_PEAK * torch.exp(-squared_rc / (2 * _PRIOR_SIGMA**2)) + _PRIOR_FLOOR).view(1, 1, rows, columns)


def blur(map_bchw: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every channel; edges are continued."""
    reach = int(2 * sigma) + 1
    place = torch.arange(-reach, reach + 1, device=map_bchw.device, dtype=map_bchw.dtype)
    kernel = torch.exp(-place.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    batch, channels, height, width = map_bchw.shape
    flat = functional.pad(map_bchw.reshape(batch * channels, 1, height, width), (reach,) * 4, mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.view(batch, channels, height, width)
