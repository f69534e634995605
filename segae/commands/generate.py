"""Generate images from random codes of an autoencoder."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from segae._io import logger
from segae._settings import takes_settings_of
from segae.applications import list_images
from segae.applications.generation import encode_images, interpolate, open_autoencoder, sample
from segae.commands._data import open_results, write_result
from segae.config import GenerateConfig
from segae.data import cache_images
from segae.errors import SegaeError
from segae.evaluation import contact_sheet

_FITTED, _SHOWN = 4096, 16  # images for mean and covariance; rows of the sheet


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
            known = cache_images(list_images(config.images), model.encoder.info.format, how["skipped"])
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
