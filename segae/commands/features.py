"""Features of images from a frozen encoder, as arrays or as a file."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from segae._io import show_messages
from segae._settings import PathLike, make_config
from segae.applications import Features, check_format, collect_features, open_encoder, write_features
from segae.config import FeaturesConfig
from segae.data import SkippedFiles, find_images
from segae.errors import SegaeError
from segae.exporters.onnx import OnnxEncoder
from segae.models import Encoder
from segae.training import choose_device, limit_threads

logger = logging.getLogger("segae")


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
    """Compute features of images with a frozen encoder; the settings are those of ``segae.config.FeaturesConfig``.

    ``images`` are an image or a folder, or several; without ``out`` also arrays uint8 (H, W, 3). ``encoder`` may be an
    object, or an exported ONNX file. Values of another batch size differ by rounding only, by less than
    1e-5 of their spread.

    Returns:
        ``Features``, with values (N, C), or (N, C, H, W) without pooling, and N names; with ``out`` the path of the
        file, which ``Features.load`` reads. Files that cannot be read are reported and have no row.

    Raises:
        SegaeError: no readable image, or an argument that cannot be used.

    Example:
        >>> features = extract_features("photos", "pets_pseudo_masks")  # doctest: +SKIP
    """
    settings = {name: value for name, value in locals().items() if name in FeaturesConfig.__dataclass_fields__}
    skipped = SkippedFiles()
    with show_messages(), limit_threads(threads), ExitStack() as ending:
        ending.callback(skipped.report)
        if out is not None:
            return _to_file(make_config(FeaturesConfig, **settings), skipped)
        how: dict[str, Any] = {"layer": layer, "pool": pool, "image_size": image_size, "batch_size": batch_size}
        how |= {"dtype": dtype, "device": choose_device(device), "skipped": skipped}
        return _in_memory(images, _open(encoder, threads), **how)


def _open(encoder: Any, threads: int | None) -> Any:
    return OnnxEncoder(str(encoder), threads or 0) if str(encoder).endswith(".onnx") else open_encoder(encoder)


def _in_memory(images: Any, encoder: Any, **how: Any) -> Features:
    if how["dtype"] not in ("float32", "float16"):
        raise SegaeError(f"dtype must be float32 or float16, got {how['dtype']}")
    alone = isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim == 3)
    listed: Any = [images] if alone else images
    arrays = [image for image in listed if isinstance(image, np.ndarray)]
    if arrays and len(arrays) < len(listed):
        raise SegaeError(f"images must be all files or all arrays, got {len(arrays)} arrays of {len(listed)}")
    found: Any = arrays or find_images([Path(root) for root in listed])
    return collect_features(encoder, found, **how)


def _to_file(config: FeaturesConfig, skipped: SkippedFiles) -> Path:
    out = Path(config.out)
    check_format(out)
    if out.exists() and not config.overwrite:
        raise SegaeError(f"out must be a new file, got {out}: give overwrite=True")
    paths = find_images([Path(root) for root in config.images])  # type: ignore[union-attr]
    encoder = _open(config.encoder, config.threads)
    logger.info("encoder %s from %s", encoder.info.architecture, encoder.info.source or encoder.info.weights)
    names = ("layer", "pool", "image_size", "batch_size", "dtype")
    how = {name: getattr(config, name) for name in names} | {"device": choose_device(config.device)}
    write_features(encoder, paths, out, skipped=skipped, **how)
    logger.info("wrote features of %d images to %s", len(paths) - len(skipped), out)
    return out
