"""Features of images from a frozen encoder, as arrays or as a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segae._io import show_messages
from segae._settings import PathLike, make_config
from segae.applications import Features, check_format, compute_features, write_features
from segae.commands._data import argument_named
from segae.config import DEFAULT_ENCODER, FeaturesConfig
from segae.data import PathList, SkippedFiles, find_images
from segae.errors import DataError, SegaeError
from segae.models import Encoder, create_encoder, load
from segae.training import choose_device, limit_threads

logger = logging.getLogger("segae")

_TIMM = "timm:"


def extract_features(
    images: Any,
    encoder: Encoder | PathLike = "imagenet",
    *,
    layer: int = -1,
    pool: str = "avg",
    image_size: int | None = None,
    batch_size: int = 64,
    dtype: str = "float32",
    out: PathLike | None = None,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> Any:
    """Compute features of images with a frozen encoder; no labels, no training.

    Args:
        images: an image or a folder, or several; without ``out`` also arrays uint8 (H, W, 3).
        encoder: an encoder; the file of any model of segae; a published name; ``imagenet``; or ``timm:`` and a name of
            timm, with its ImageNet weights.
        layer: which feature map, 1 (stride 2) to 5 (stride 32), or -1 for the deepest.
        pool: avg, max or gem (arXiv 1711.02512) over all positions, or none for dense maps.
        image_size: side in pixels to which images are resized. Default: the encoder's own.
        batch_size: images per forward pass; values differ by rounding only, by less than 1e-5 of their spread.
        dtype: float32 or float16.
        out: a file, .npz, .parquet, .safetensors or .npy; None returns arrays. A call that was interrupted continues.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads.
        overwrite: replace the file.

    Returns:
        ``Features``, with values (N, C), or (N, C, H, W) without pooling, and N names; with ``out`` the path of the
        file, which ``Features.load`` reads. Files that cannot be read are reported and have no row.

    Raises:
        SegaeError: no readable image, or an argument that cannot be used.

    Example:
        >>> features = extract_features("photos", "pets_pseudo_masks")  # doctest: +SKIP
    """
    settings = {name: value for name, value in locals().items() if name in FeaturesConfig.__dataclass_fields__}
    alone = isinstance(images, np.ndarray) and images.ndim == 3
    listed: Any = [images] if alone or isinstance(images, str | os.PathLike) else images
    arrays = [image for image in listed if isinstance(image, np.ndarray)]
    if arrays:
        if len(arrays) < len(listed) or out is not None:
            raise SegaeError("images must be files where out is given, and either files or arrays, got arrays")
        settings["images"] = "."  # the settings beside it are checked in the same way
    config = make_config(FeaturesConfig, **settings | {"out": out or "features.npz"})
    with show_messages(), limit_threads(config.threads):
        return _extract(config, arrays, in_memory=out is None)


def _extract(config: FeaturesConfig, arrays: Sequence[Any], *, in_memory: bool) -> Features | Path:
    out = Path(config.out)
    check_format(out)
    if not in_memory and out.exists() and not config.overwrite:
        raise SegaeError(f"out must be a new file, got {out}: give overwrite=True")
    roots = [config.images] if isinstance(config.images, str | os.PathLike) else config.images
    images: Any = arrays or find_images([Path(root) for root in roots])
    encoder, skipped = _load(config.encoder), SkippedFiles()
    logger.info("encoder %s from %s", encoder.info.architecture, encoder.info.source or encoder.info.weights)
    names = ("layer", "pool", "image_size", "batch_size")
    how = {name: getattr(config, name) for name in names} | {"device": choose_device(config.device)}
    try:
        if not in_memory:
            write_features(encoder, images, out, dtype=config.dtype, skipped=skipped, **how)
            logger.info("wrote features of %d images to %s", len(images) - len(skipped), out)
            return out
        batches = list(compute_features(encoder, images, skipped=skipped, **how))
        found = [batch.values for batch in batches if batch.places]
        if not found:
            first = "; ".join(f"{path} ({reason})" for path, reason in skipped.files[:3])
            raise DataError(f"images must be readable, got {len(images)} of which none is: {first}")
        places = [place for batch in batches for place in batch.places]
        shown = [str(images[place]) if isinstance(images, PathList) else str(place) for place in places]
        return Features(np.concatenate(found).astype(config.dtype, copy=False), tuple(shown))
    finally:
        skipped.report()


def _load(source: Any) -> Encoder:
    """The encoder that ``extract_features`` was given."""
    if isinstance(source, Encoder):
        return source
    text = str(source)
    if text == "imagenet":
        return create_encoder(DEFAULT_ENCODER, weights="imagenet")
    if text.startswith(_TIMM):
        with argument_named("encoder", instead_of="name"):
            return create_encoder(text.removeprefix(_TIMM), weights="imagenet")
    with argument_named("encoder", instead_of="weights"):
        model = load(text)
    return model if isinstance(model, Encoder) else model.encoder
