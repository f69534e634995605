"""Run a segmenter on images of any size: whole or in overlapping tiles, with or without test-time augmentation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from segae._io import check_range
from segae.errors import SegaeError
from segae.image_format import GRAY, ImageFormat, Size, resize_image
from segae.models.classic import is_classic
from segae.models.encoder import evaluation_mode

Network = Callable[[NDArray[np.uint8]], Tensor]
"""From images uint8 (N, S, S, C), RGB, to logits or log-probabilities, float32 (N, K, S, S)."""

_SCALES = (0.75, 1.0, 1.25)  # of test-time augmentation
_STRIDE, _SMALLEST = 32, 128  # sides at another scale are multiples of the one and not below the other


def normalize(
    images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> Tensor:
    """Compute ``(x / 255 - mean) / std`` on the device, which is sent bytes, a quarter of the traffic of floats.

    From uint8 (B, H, W, C), RGB, or uint16 of another `ImageFormat` (x / 65535), to float32 (B, C, H, W); channels_last
    in memory on a CPU, where convolutions are faster so. One channel makes RGB gray. ``mean`` and ``std`` of each
    channel are on the scale 0-1.
    """
    if images.ndim != 4 or images.dtype not in (np.uint8, np.uint16):
        raise SegaeError(f"images must be a uint8 or uint16 array (N, H, W, C), got {images.dtype} {images.shape}")
    gray = len(mean) == 1 and images.shape[-1] == 3
    if len(mean) != images.shape[-1] and not gray:
        raise SegaeError(f"images must have {len(mean)} channels as the model's mean, got {images.shape[-1]}")
    device = torch.device(device)
    writable = np.require(images, requirements=["C", "W"])  # a copy of a memory map or a mirrored image only
    image_bchw = torch.from_numpy(writable).to(device).permute(0, 3, 1, 2).float()
    if gray:
        weights = torch.tensor(GRAY, device=device).reshape(1, 3, 1, 1)
        image_bchw = (image_bchw * weights).sum(dim=1, keepdim=True)
    mean_1c11, std_1c11 = (torch.tensor(part, device=device).reshape(1, -1, 1, 1) for part in (mean, std))
    normalized_bchw = image_bchw.div_(np.iinfo(images.dtype).max).sub_(mean_1c11).div_(std_1c11)
    return normalized_bchw if device.type == "cpu" else normalized_bchw.contiguous()


def pooled_features(encoder: nn.Module, images: Tensor) -> Tensor:
    """Average the deepest feature map over its positions, float32 (B, channels); of a small encoder, keep all values.

    The encoder returns a list of maps, deepest last, or one tensor (B, C) or (B, C, H, W), of normalized, clean images
    (B, C, H, W); its modes stay.
    """
    features = encoder(images)
    deepest = (features if isinstance(features, Tensor) else features[-1]).float()
    small = is_classic(getattr(getattr(encoder, "info", None), "architecture", ""))
    return deepest.flatten(1) if small or deepest.ndim < 4 else deepest.mean(dim=(2, 3))


def input_settings(
    model: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Sequence[float], Sequence[float], torch.device]:
    """Return mean, std and device, each that of the model (its ``info``, its parameters) where it is None."""
    info = getattr(model, "info", None)
    info = getattr(info, "encoder", info)  # that of a whole model holds its encoder's
    mean = getattr(info, "mean", None) if mean is None else mean
    std = getattr(info, "std", None) if std is None else std
    if mean is None or std is None:
        raise SegaeError(f"mean and std must be given for a model without info, got a {type(model).__name__}")
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), "cpu")
    return mean, std, torch.device(device)


def predict_logits(
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Yield the logits (B, K, H, W) of images batch by batch, on the device.

    The model, from normalized images to logits, is moved to the device and runs in evaluation mode without gradients;
    its modes are restored. ``images`` are uint8 (N, H, W, C), RGB, else a SegaeError, and may be a memory map. ``mean``
    and ``std`` of each channel, on the scale 0-1, and the device are those of the model where they are None.
    """
    check_range("batch_size", batch_size, low=1, integer=True)
    mean, std, device = input_settings(model, mean, std, device)
    model.to(device)
    for start in range(0, len(images), batch_size):
        batch_bchw = normalize(images[start : start + batch_size], mean, std, device)
        with evaluation_mode(model), torch.inference_mode():
            logits_bkhw = model(batch_bchw).float()
        yield logits_bkhw


def predict_probabilities(model: Any, images: NDArray[np.uint8], **how: Any) -> Tensor:
    """Return the softmax (N, K) of a classifier's logits, on the CPU; arguments as in `predict_logits`."""
    found = [logits.softmax(dim=1).cpu() for logits in predict_logits(model, images, **how)]
    return torch.cat([torch.empty(0, model.num_classes), *found])


def make_network(model: nn.Module) -> Network:
    """Make the function from bytes to logits that a prediction calls, on the device of the model."""
    return lambda images: next(predict_logits(model, images, batch_size=len(images)))


def augment_network(network: Network) -> Network:
    """Add test-time augmentation: the log of the mean probabilities of an image and its mirror image at three scales.

    A scale below 128 pixels, which some decoders refuse, is left out.
    """

    def augmented(images: NDArray[np.uint8]) -> Tensor:
        (height, width), found = images.shape[1:3], []
        scaled_sides = [[round(side * scale / _STRIDE) * _STRIDE for side in (height, width)] for scale in _SCALES]
        for rows, columns in {*map(tuple, scaled_sides), (height, width)}:
            if rows < min(height, _SMALLEST) or columns < min(width, _SMALLEST):
                continue
            scaled = np.stack([resize_image(image, (rows, columns)) for image in images])
            for logits in (network(scaled), network(scaled[:, :, ::-1]).flip(-1)):
                found.append(functional.interpolate(logits, size=(height, width), mode="bilinear").softmax(dim=1))
        return torch.stack(found).mean(dim=0).clamp_min(1e-20).log()

    return augmented


class Prediction(NamedTuple):
    """What was found in an image of H x W pixels; what was not asked for is None."""

    mask: NDArray[np.uint8]  # class indices (H, W)
    mean_confidence: float  # mean of the largest probability, over every fourth pixel of every fourth row
    confidence: NDArray[np.uint8] | None  # largest probability of each pixel times 255 (H, W)
    probabilities: NDArray[np.floating] | None  # softmax (K, H, W)


def predict_images(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
    *,
    image_size: Size | ImageFormat,
    squares: Sequence[NDArray[np.uint8]] | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
    confidence: bool = False,
    probabilities: torch.dtype | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction of each image at its own size.

    Without tiles an image is resized to the network's input, and its logits back. With tiles only the logits of one row
    of tiles exist at a time (the sliding window of MONAI keeps all). Where tiles overlap, their logits are averaged by
    weights that fall linearly toward a tile's edges. A format that crops has tiles of an image's short side.

    Args:
        network: see `make_network`.
        images: uint8 (H, W, C), RGB, or of another format; without tiles they are one batch.
        image_size: side of the network's input in pixels, or its format.
        squares: the images resized to it, if there are any; not needed for tiles.
        tile: side in pixels of the squares of an image that are resized to the network's input (of rectangles the
            height, where the input is one); a smaller image is one.
        overlap: of neighboring tiles, as a share of their side, in [0, 0.9].
        batch_size: tiles per forward pass.
        confidence: whether to return the confidence of each pixel.
        probabilities: type of the probabilities to return; None returns none.
    """
    check_range("batch_size", batch_size, low=1, integer=True)
    check_range("overlap", overlap, low=0, high=0.9)
    check_range("tile", 1 if tile is None else tile, low=1, integer=True)
    form = ImageFormat.of(image_size)
    in_parts = tile is not None or form.resize == "crop"
    squares = squares or [resize_image(image, form) for image in images if not in_parts]
    whole = network(np.stack(squares)) if squares and not in_parts else None
    for place, image in enumerate(images):
        height, width = image.shape[:2]
        bands: Iterable[tuple[int, Tensor]]
        if whole is None:
            bands = _blend_tiles(network, image, form, tile, overlap, batch_size)
        else:  # logits and not labels are resized: contours come out smooth, and probabilities stay probabilities
            bands = [(0, restore_logits(whole[place], form, height, width))]
        mask, peaks, values = np.empty((height, width), np.uint8), [], None
        sure = np.empty_like(mask) if confidence else None
        for top, logits in bands:
            rows = slice(top, top + logits.shape[1])
            mask[rows] = argmax_classes(logits).to(torch.uint8).cpu().numpy()
            peaks.append(logits[:, -top % 4 :: 4, ::4].softmax(dim=0).amax(dim=0).flatten())
            if sure is not None:
                sure[rows] = (logits.softmax(dim=0).amax(dim=0) * 255).round().to(torch.uint8).cpu().numpy()
            if probabilities is not None:
                part = logits.softmax(dim=0).to(probabilities).cpu().numpy()
                values = np.empty((len(part), height, width), part.dtype) if values is None else values
                values[:, rows] = part
        yield Prediction(mask, float(torch.cat(peaks).mean()), sure, values)


def _blend_tiles(
    network: Network, image: NDArray[np.uint8], form: ImageFormat, tile: int | None, overlap: float, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield an image's logits from its tiles, band by band: first row, (K, rows, W); each is gone with the next."""
    height, width = image.shape[:2]
    sides = (tile or 1, max(round((tile or 1) * form.shape[1] / form.shape[0]), 1))
    if tile is None:
        sides = tuple(box.stop - box.start for box in form.boxes(height, width)[0])
    form = form if form.resize == "squash" else replace(form, resize="letterbox")  # an image may be smaller than a tile
    tops, lefts = (
        [*range(0, whole - side, max(1, round(side * (1 - overlap)))), max(0, whole - side)]
        for whole, side in zip((height, width), sides, strict=True)
    )
    rows, columns = min(sides[0], height), min(sides[1], width)
    edges = [np.minimum(np.arange(side) + 1, side - np.arange(side)) for side in (rows, columns)]
    falls = (np.minimum(edge / (side * overlap + 1), 1) for edge, side in zip(edges, sides, strict=True))
    window = torch.from_numpy(np.outer(*falls)).float()
    sums = weights = torch.zeros(())
    for top, below in zip(tops, [*tops[1:], height], strict=True):
        for batch in (lefts[start : start + batch_size] for start in range(0, len(lefts), batch_size)):
            cut = [resize_image(image[top : top + rows, left : left + columns], form) for left in batch]
            for left, logits in zip(batch, network(np.stack(cut)), strict=True):
                if not sums.ndim:
                    sums, weights = (logits.new_zeros(count, rows, width) for count in (len(logits), 1))
                    window = window.to(logits.device)
                sums[:, :, left : left + columns] += restore_logits(logits, form, rows, columns) * window
                weights[:, :, left : left + columns] += window
        done = below - top
        yield top, sums[:, :done].div_(weights[:, :done])
        for values in (sums, weights):  # the rows to which the next tiles add move up
            values[:, : rows - done] = values[:, done:].clone()
            values[:, rows - done :] = 0


def resize_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize logits (K, H, W) bilinearly to (K, height, width); contours come out smoother than those of labels."""
    if logits.shape[1:] == (height, width):
        return logits
    return functional.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def restore_logits(logits: Tensor, form: ImageFormat, height: int, width: int) -> Tensor:
    """Resize logits (K, H, W) to an image of that size, of which the network saw what `ImageFormat` says.

    Padding is cut off; where the image was cropped, they are those of the part that was seen.
    """
    (rows, columns), place = form.boxes(height, width)
    return resize_logits(logits[:, *place], rows.stop - rows.start, columns.stop - columns.start)


def argmax_classes(logits: Tensor) -> Tensor:
    """Return the most probable class: logits (..., K, H, W) to int64 indices (..., H, W), or (B, K) to (B,)."""
    axis = -3 if logits.ndim > 2 else -1
    return logits.max(dim=axis).indices  # argmax over this axis is twelve times slower on a CPU
