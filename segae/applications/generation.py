"""Images from the codes of an autoencoder: random samples, and the way from one image to another."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segae._io import check_range
from segae.data import read_image, resize_image
from segae.errors import SegaeError, argument_named
from segae.evaluation.plots import denormalize
from segae.models import Autoencoder, PathLike, evaluation_mode, load
from segae.models.inference import input_settings, normalize

_BATCH = 64


def open_autoencoder(source: Autoencoder | PathLike) -> Autoencoder:
    """Return an autoencoder, an object or from its file; SegaeError if it has skips or predicts no pixels."""
    with argument_named("model", instead_of="path"), argument_named("model", instead_of="weights"):
        model: Any = load(source) if isinstance(source, str | os.PathLike) else source
    target = model.encoder.info.weights.method_args.get("target", "pixels") if isinstance(model, Autoencoder) else ""
    if target != "pixels" or model.info.out_channels != model.encoder.info.in_channels:
        raise SegaeError(f"model must be an autoencoder of pixels, got a {type(model).__name__} {target}")
    if not model.encoder.info.format.is_rgb or not isinstance(model.encoder.info.image_size, int):
        raise SegaeError(f"model must take squares of 8-bit RGB or gray, got one of {model.encoder.info.format}")
    _ = model.bottleneck  # refuses skips
    return model


def read_pixels(image: Any) -> NDArray[np.uint8]:
    """Return an image, a file or an array uint8 (H, W, 3), as such an array; SegaeError if it is neither."""
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        seen = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise SegaeError(f"image must be a file or a uint8 array (H, W, 3), got {seen}")
    return image


def encode_images(images: NDArray[np.uint8], model: Autoencoder) -> Tensor:
    """Compute the codes (N, K, h, w), on the CPU, of images uint8 (N, S, S, 3); variational ones are the means.

    Example: ``encode_images(images, segae.load("autoencoder.safetensors"))``.
    """
    how, draw = input_settings(model), "mean" if model.info.code == "gaussian" else None
    batches = (images[start : start + _BATCH] for start in range(0, max(len(images), 1), _BATCH))
    with evaluation_mode(model), torch.inference_mode():
        return torch.cat([model.code(normalize(batch, *how), draw).float().cpu() for batch in batches])


def decode_codes(codes: Tensor, model: Autoencoder) -> NDArray[np.uint8]:
    """Compute the images uint8 (N, S, S, 3) of codes (N, K, h, w)."""
    mean, std, device = input_settings(model)
    with evaluation_mode(model), torch.inference_mode():
        made = (model.from_code(batch.to(device)) for batch in codes.float().split(_BATCH))
        return np.stack([denormalize(image, mean, std) for batch in made for image in batch])


def code_shape(model: Autoencoder) -> tuple[int, ...]:
    """Return the shape (K, h, w) of the code of an image of the model's size."""
    side = model.encoder.info.format.shape[0]
    return tuple(encode_images(np.zeros((1, side, side, 3), np.uint8), model).shape[1:])


def sample(model: Autoencoder | PathLike, n: int, *, seed: int = 0, codes: Tensor | None = None) -> NDArray[np.uint8]:
    """Generate images, uint8 (n, S, S, 3), from random codes, such as ``sample("autoencoder.safetensors", 16)``.

    The codes are standard normal, as a variational autoencoder is trained to have them (arXiv 1312.6114). Given
    ``codes`` (N, K, h, w) of two images or more, see `encode_images`, they have the mean and covariance of those.
    SegaeError: a plain autoencoder without codes, codes of another shape, ``n`` below 1 or a negative ``seed``.
    """
    model = open_autoencoder(model)
    check_range("n", n, low=1, integer=True)
    check_range("seed", seed, low=0, integer=True)
    if codes is None and model.info.code != "gaussian":
        raise SegaeError("codes must be given for an autoencoder that is not variational, got None")
    draw, shape = np.random.default_rng(seed).standard_normal, code_shape(model)
    if codes is None:
        return decode_codes(torch.from_numpy(draw((n, *shape))), model)
    if codes.shape[1:] != shape or len(codes) < 2:
        raise SegaeError(f"codes must be two or more of shape {shape}, got {(*codes.shape,)}")
    # a random mixture of the deviations has their covariance, which is never computed
    deviations = (codes - codes.mean(dim=0)).flatten(1).double() / (len(codes) - 1) ** 0.5
    mixed = torch.from_numpy(draw((n, len(codes)))) @ deviations
    return decode_codes(codes.mean(dim=0) + mixed.view(n, *shape), model)


def interpolate(model: Autoencoder | PathLike, a: Any, b: Any, *, steps: int = 8) -> NDArray[np.uint8]:
    """Decode ``steps`` >= 2 codes on the straight line between those of two images: uint8 (steps, S, S, 3).

    ``a`` and ``b`` are files or arrays uint8 (H, W, 3), resized to the model's square; SegaeError if one is neither.
    Example: ``interpolate("autoencoder.safetensors", "cat.jpg", "dog.jpg")``.
    """
    model = open_autoencoder(model)
    check_range("steps", steps, low=2, integer=True)
    ends = [resize_image(read_pixels(image), model.encoder.info.format) for image in (a, b)]
    first, last = encode_images(np.stack(ends), model)
    return decode_codes(torch.lerp(first, last, torch.linspace(0, 1, steps).view(-1, 1, 1, 1)), model)
