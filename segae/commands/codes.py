"""Use the codes of autoencoders: compress, decompress and generate images; and describe models."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torchinfo
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from segae.applications import AnomalyDetector, list_images
from segae.applications.compression import compress, decompress
from segae.applications.generation import encode_images, interpolate, open_autoencoder, sample
from segae.commands._data import open_results, takes_settings_of, write_result
from segae.config import CompressConfig, DecompressConfig, DescribeConfig, GenerateConfig
from segae.data import cache_images, read_image, unique_names
from segae.data.image_io import read_bytes
from segae.errors import DataError, SegaeError
from segae.evaluation import contact_sheet
from segae.models import create_encoder, load, published_weights

logger = logging.getLogger("segae")

_FITTED, _SHOWN = 4096, 16  # images for mean and covariance; rows of the sheet


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


@takes_settings_of(GenerateConfig)
def generate(config: GenerateConfig) -> NDArray[np.uint8]:
    """Generate images uint8 (count, S, S, 3), such as ``generate("autoencoder.safetensors", images="photos")``.

    All settings are those of ``segae.config.GenerateConfig``; SegaeError if one cannot be used.
    """
    if len(config.interpolate) not in (0, 2):
        raise SegaeError(f"interpolate must be two images, got {config.interpolate}")
    rows = pd.DataFrame({"sample": [f"sample_{place:05d}.png" for place in range(config.count)]})
    written = ("samples.csv", "sheet.png", "interpolation.png", *rows["sample"])
    with open_results(config, "generate", *written) as (out, how):
        model = open_autoencoder(config.model).to(how["device"])
        known: Any = None
        if config.images:
            known = cache_images(list_images(config.images), model.encoder.info.image_size, how["skipped"])
            codes = encode_images(known.images, model)
        fitted = codes[:: len(codes) // _FITTED + 1] if known and model.info.code != "gaussian" else None
        made = sample(model, config.count, seed=config.seed, codes=fitted)
        columns = {"sample": [*made[:_SHOWN]]}
        if known:
            search = NearestNeighbors(n_neighbors=1).fit(codes.flatten(1))
            places = search.kneighbors(encode_images(made, model).flatten(1), return_distance=False)[:, 0]
            rows["nearest"] = [str(known.paths[place]) for place in places]
            rows["rmse"] = np.sqrt(np.square(made - known.images[places].astype(float)).mean(axis=(1, 2, 3)))
            columns["nearest"] = [*known.images[places[:_SHOWN]]]
        for name, image in zip(rows["sample"], made, strict=True):
            write_result(out / name, image)
        contact_sheet(columns, out / "sheet.png")
        if config.interpolate:
            write_result(out / "interpolation.png", np.hstack([*interpolate(model, *config.interpolate)]))
        write_result(out / "samples.csv", rows)
        logger.info("wrote %d images and %s", len(made), out / "samples.csv")
        return made


@takes_settings_of(DescribeConfig)
def describe(config: DescribeConfig) -> str:
    """Return the layers of a model, file or object, and its info as text, such as ``describe("conv_16_8_4")``.

    SegaeError: no such file, published name or encoder, or a file that cannot be used.
    """
    model = config.model
    if isinstance(model, str | os.PathLike):
        known = Path(model).suffix == ".safetensors" or model in published_weights()
        model = load(model) if known else create_encoder(str(model))
    network = model.model if isinstance(model, AnomalyDetector) else model
    if not hasattr(network, "info"):
        raise SegaeError(f"model must be a model of segae, got a {type(model).__name__}")
    info = network.info
    encoder = getattr(info, "encoder", info)
    shape = (1, encoder.in_channels, *2 * [getattr(info, "image_size", encoder.image_size)])
    layers = torchinfo.summary(network, shape, col_names=("output_size", "num_params"), depth=4, mode="eval", verbose=0)
    facts = pd.json_normalize(asdict(model.info)).iloc[0].items()
    text = "\n".join([str(layers), *(f"{name}: {value}" for name, value in facts if str(value) not in ("", "None"))])
    logger.info(text)
    return text
