"""Features of images from a frozen encoder, as arrays or as a file."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from segae._io import logger, show_messages
from segae._settings import PathLike, Size, make_config
from segae.applications import check_format, collect_features, list_images, open_encoder, write_features
from segae.config import FeaturesConfig
from segae.data import SkippedFiles
from segae.errors import SegaeError
from segae.exporters.onnx import OnnxEncoder
from segae.models import Encoder
from segae.training import choose_device, limit_threads


def extract_features(
    images: Any,
    encoder: Encoder | PathLike = "imagenet",
    *,
    layer: int = -1,
    pool: str = "auto",
    image_size: Size | None = None,
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
    if out is not None:
        config = make_config(FeaturesConfig, **settings)
        images, image_size = config.images, config.image_size
        check_format(Path(out))
        if Path(out).exists() and not overwrite:
            raise SegaeError(f"out must be a new file, got {out}: give overwrite=True")
    elif dtype not in ("float32", "float16"):
        raise SegaeError(f"dtype must be float32 or float16, got {dtype}")
    skipped = SkippedFiles()
    how: dict[str, Any] = {"layer": layer, "pool": pool, "image_size": image_size, "batch_size": batch_size}
    with show_messages(), limit_threads(threads), ExitStack() as ending:
        ending.callback(skipped.report)
        found: Any = list_images(images)
        exported = str(encoder).endswith(".onnx")
        opened: Any = OnnxEncoder(str(encoder), threads or 0) if exported else open_encoder(encoder)
        how |= {"dtype": dtype, "device": choose_device(device), "skipped": skipped}
        if out is None:
            return collect_features(opened, found, **how)
        logger.info("encoder %s from %s", opened.info.architecture, opened.info.source or opened.info.weights)
        write_features(opened, found, Path(out), **how)
        logger.info("wrote features of %d images to %s", len(found) - len(skipped), out)
        return Path(out)
