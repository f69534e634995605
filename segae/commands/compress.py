"""Compress images with an autoencoder, and turn compressed files into images again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import pandas as pd

from segae._io import logger
from segae._settings import takes_settings_of
from segae.applications import list_images
from segae.applications.compression import compress, decompress
from segae.applications.generation import open_autoencoder
from segae.commands._data import open_results, write_result
from segae.config import CompressConfig, DecompressConfig
from segae.data import read_image, unique_names
from segae.data.image_io import read_bytes
from segae.errors import DataError, SegaeError


@takes_settings_of(CompressConfig)
def compress_images(config: CompressConfig) -> pd.DataFrame:
    """Compress images into files; a row each with sizes, bits per pixel and PSNR in dB."""
    how = {"target_psnr": config.psnr or 0, "bits_per_pixel": config.bpp or 0, "step": config.step or 0}

    def convert(path: Path, model: Any) -> dict[str, Any]:
        pixels = read_image(path)
        data, count = compress(pixels, model, **how), pixels[..., 0].size
        psnr = cv2.PSNR(pixels, decompress(data, model))
        return {"content": data, "pixels": count, "bytes": len(data), "bpp": 8 * len(data) / count, "psnr": psnr}

    return _convert(config, "compression", list_images(config.files), ".sgac", convert)


@takes_settings_of(DecompressConfig)
def decompress_files(config: DecompressConfig) -> pd.DataFrame:
    """Write the images of compressed files as PNG; a row each."""
    roots: Any = config.files
    files = [file for root in map(Path, roots) for file in sorted(root.rglob("*.sgac")) or [root]]
    task = config, "decompression", files, ".png"
    return _convert(*task, lambda path, model: {"content": decompress(read_bytes(path), model)})


def _convert(config: Any, task: str, paths: Sequence[Path], ending: str, convert: Callable[..., Any]) -> pd.DataFrame:
    """Write what each file becomes, and a table; what cannot be converted is listed in skipped.csv."""
    whole = [path.parent.resolve() / path.name for path in paths]  # names must not lead out of the folder
    names = [f"{name.lstrip('/').removesuffix('.sgac')}{ending}" for name in unique_names(whole)]
    with open_results(config, task, f"{task}.csv", *names) as (out, how):
        model, rows = open_autoencoder(config.model).to(how["device"]), []
        for path, name in zip(paths, names, strict=True):
            try:
                row = convert(path, model)
            except SegaeError as error:
                how["skipped"].add(path, str(error))
                continue
            write_result(out / name, row.pop("content"))
            rows.append({"source": str(path), "file": name, **row})
        if not rows:
            raise DataError(f"files must be one or more that can be used, got {how['skipped'].files[:1] or 'none'}")
        write_result(out / f"{task}.csv", table := pd.DataFrame(rows))
        logger.info("wrote %d files and %s", len(rows), out / f"{task}.csv")
        return table
