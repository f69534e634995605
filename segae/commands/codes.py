"""Use the codes of autoencoders: compress, decompress and generate images; and describe models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torchinfo
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_argmin_min

from segae._io import write_atomically
from segae.applications.compression import compress, decompress
from segae.applications.generation import encode_images, interpolate, open_autoencoder, sample
from segae.commands._data import takes_settings_of, write_skipped
from segae.commands.suggest import _roots
from segae.config import CompressConfig, DecompressConfig, DescribeConfig, GenerateConfig
from segae.data import SkippedFiles, cache_images, find_images, read_image, unique_names
from segae.data.image_io import read_bytes
from segae.errors import DataError, SegaeError
from segae.models import create_encoder, load, published_weights
from segae.training import choose_device, limit_threads, open_result_folder

logger = logging.getLogger("segae")

_FITTED, _WIDE, _ROWS = 4096, 8, 4  # images for mean and covariance; of the sheet


@takes_settings_of(CompressConfig)
def compress_images(config: CompressConfig) -> pd.DataFrame:
    """Compress images into files; a row each with sizes, bits per pixel and PSNR in dB."""
    how = {"target_psnr": config.psnr, "bits_per_pixel": config.bpp, "step": config.step}

    def convert(path: Path, model: Any) -> tuple[bytes, dict[str, Any]]:
        pixels = read_image(path)
        data, count = compress(pixels, model, **how), pixels[..., 0].size
        psnr = cv2.PSNR(pixels, decompress(data, model))
        return data, {"pixels": count, "bytes": len(data), "bpp": 8 * len(data) / count, "psnr": psnr}

    return _convert(config, find_images(_roots(config.files)), ".sgac", convert, "compression.csv")


@takes_settings_of(DecompressConfig)
def decompress_files(config: DecompressConfig) -> pd.DataFrame:
    """Write the images of compressed files as PNG; a row each."""
    found = [sorted(root.rglob("*.sgac")) if root.is_dir() else [root] for root in _roots(config.files)]
    files = [file for files in found for file in files]
    return _convert(
        config, files, ".png", lambda path, model: (decompress(read_bytes(path), model), {}), "decompression.csv"
    )


def _convert(config: Any, paths: Sequence[Path], ending: str, convert: Callable[..., Any], table: str) -> pd.DataFrame:
    """Write what each file becomes, and the table; what cannot be converted is listed in skipped.csv."""
    with limit_threads(config.threads):
        model, skipped, rows = open_autoencoder(config.model).to(choose_device(config.device)), SkippedFiles(), []
        whole = [path.parent.resolve() / path.name for path in paths]  # names must not lead out of the folder
        names = [f"{name.lstrip('/').removesuffix('.sgac')}{ending}" for name in unique_names(whole)]
        out = _open(config, [table, *names], table[:-4])
        for path, name in zip(paths, names, strict=True):
            try:
                data, row = convert(path, model)
            except SegaeError as error:
                skipped.add(path, str(error))
                continue
            _save(out / name, data)
            rows.append({"source": str(path), "file": name, **row})
        if not rows:
            raise DataError(f"files must be one or more that can be used, got {skipped.files[:1] or 'none'}")
        return _finish(out / table, rows, skipped)


def _open(config: Any, files: Sequence[str], task: str) -> Path:
    settings = asdict(config) | {"model": str(config.model)}
    return open_result_folder(Path(config.out), settings, task=task, files=files, overwrite=config.overwrite)


def _save(path: Path, content: Any) -> None:
    """Write bytes, or pixels as PNG."""
    data = content if isinstance(content, bytes) else cv2.imencode(".png", content[..., ::-1])[1].tobytes()
    write_atomically(path, lambda file: file.write(data))


def _finish(table: Path, rows: Any, skipped: SkippedFiles) -> pd.DataFrame:
    found = pd.DataFrame(rows)
    _save(table, found.to_csv(index=False, float_format="%.4g").encode("utf-8", "surrogateescape"))
    write_skipped(table.parent, skipped)
    logger.info("wrote %d files and %s", len(found), table)
    return found


@takes_settings_of(GenerateConfig)
def generate(config: GenerateConfig) -> NDArray[np.uint8]:
    """Generate images uint8 (count, S, S, 3), such as ``generate("autoencoder.safetensors", images="photos")``.

    All settings are those of ``segae.config.GenerateConfig``; SegaeError if one cannot be used.
    """
    if len(config.interpolate) not in (0, 2):
        raise SegaeError(f"interpolate must be two images, got {config.interpolate}")
    with limit_threads(config.threads):
        model, skipped = open_autoencoder(config.model).to(choose_device(config.device)), SkippedFiles()
        codes, side, paths = None, model.encoder.info.image_size, find_images(_roots(config.images))
        known: Any = cache_images(paths, side, skipped) if paths else None
        if known and model.info.code != "gaussian":
            chosen = np.linspace(0, len(known.paths) - 1, min(len(known.paths), _FITTED)).astype(int)
            codes = encode_images(known.images[chosen], model)
        made = sample(model, config.count, seed=config.seed, codes=codes)
        rows = pd.DataFrame({"sample": [f"sample_{place:05d}.png" for place in range(len(made))]})
        shown = made
        if known:
            places, rows["rmse"] = _find_nearest(made, known.images)
            rows["nearest"] = [str(known.paths[place]) for place in places]
            shown = np.concatenate([made, known.images[places]], axis=2)
        out = _open(config, ["samples.csv", "sheet.png", "interpolation.png", *rows["sample"]], "generate")
        for name, image in zip(rows["sample"], made, strict=True):
            _save(out / name, image)
        starts = range(0, len(made), min(_WIDE, len(made)))[: max(min(len(made) // _WIDE, _ROWS), 1)]
        sheet = np.vstack([np.hstack([*shown[start : start + _WIDE]]) for start in starts])
        _save(out / "sheet.png", sheet)
        if config.interpolate:
            _save(out / "interpolation.png", np.hstack([*interpolate(model, *config.interpolate)]))
        _finish(out / "samples.csv", rows, skipped)
        return made


def _find_nearest(made: NDArray[np.uint8], images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The place of the nearest image and the root-mean-square difference in gray levels, for each made one."""
    flat, places, best = made.reshape(len(made), -1), np.zeros(len(made), int), np.full(len(made), np.inf)
    for start in range(0, len(images), 256):
        batch = images[start : start + 256].reshape(-1, flat.shape[1])
        near, distances = pairwise_distances_argmin_min(flat.astype(np.float32), batch.astype(np.float32))
        places, best = np.where(distances < best, near + start, places), np.minimum(best, distances)
    return places, best / flat.shape[1] ** 0.5


@takes_settings_of(DescribeConfig)
def describe(config: DescribeConfig) -> str:
    """Return the layers of a model, file or object, and its info as text, such as ``describe("conv_16_8_4")``.

    SegaeError: no such file, published name or encoder, or a file that cannot be used.
    """
    model = config.model
    if not hasattr(model, "info"):
        known = Path(model).suffix == ".safetensors" or model in published_weights()
        model = load(model) if known else create_encoder(model)
    encoder = getattr(model.info, "encoder", model.info)
    shape = (1, encoder.in_channels, *2 * [getattr(model.info, "image_size", encoder.image_size)])
    layers = torchinfo.summary(model, shape, col_names=("output_size", "num_params"), depth=4, mode="eval", verbose=0)
    facts = pd.json_normalize(asdict(model.info)).iloc[0].items()
    text = "\n".join([str(layers), *(f"{name}: {value}" for name, value in facts if str(value) not in ("", "None"))])
    logger.info(text)
    return text
