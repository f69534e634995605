"""Show the layers, shapes and parameter counts of a model, and what its file says."""

import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torchinfo

from segae._io import logger
from segae._settings import takes_settings_of
from segae.applications import AnomalyDetector
from segae.config import DescribeConfig
from segae.errors import SegaeError
from segae.models import create_encoder, load, published_weights


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
    shape = (1, encoder.in_channels, *getattr(info, "format", encoder.format).shape)
    layers = torchinfo.summary(network, shape, col_names=("output_size", "num_params"), depth=4, mode="eval", verbose=0)
    facts = pd.json_normalize(asdict(model.info)).iloc[0].items()
    text = "\n".join([str(layers), *(f"{name}: {value}" for name, value in facts if str(value) not in ("", "None"))])
    logger.info(text)
    return text
