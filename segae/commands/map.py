"""Draw a map of images as one HTML file."""

import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from segae import applications
from segae._io import data_uri, logger, require_package
from segae._settings import takes_settings_of
from segae.applications import collect_features, list_images, open_encoder
from segae.commands._data import open_results, read_pictures, write_result
from segae.config import MapConfig

_THUMBNAIL = 64  # side in pixels


@takes_settings_of(MapConfig)
def map_images(config: MapConfig) -> pd.DataFrame:
    """Draw a map of images as one HTML file: ``map_images("photos", how="pca")``; see ``MapConfig``."""
    require_package("bokeh", "map")
    parts = ("embed", "models", "palettes", "plotting", "resources")
    embed, models, palettes, plotting, resources = (importlib.import_module(f"bokeh.{part}") for part in parts)
    with open_results(config, "map", "map.csv", "map.html") as (out, how):
        features = collect_features(open_encoder(config.encoder), list_images(config.images), **how)
        rows = pd.DataFrame(applications.project(features.values, how=config.how), columns=["x", "y"])
        rows["image"], rows["class"] = features.names, [Path(name).parent.name for name in features.names]
        write_result(out / "map.csv", rows)
        jpegs = [cv2.imencode(".jpg", one[..., ::-1])[1] for one in read_pictures(features.names, _THUMBNAIL)]
        texts = [data_uri("image/jpeg", jpeg.tobytes()) for jpeg in jpegs]
        colors = np.array(palettes.Category20[20])[pd.factorize(rows["class"], sort=True)[0] % 20]
        tip = models.HoverTool(tooltips='<img src="@picture" width="128"><div>@class: @image</div>')
        tools: Any = [tip, "pan", "wheel_zoom", "box_zoom", "reset", "save"]
        plot = plotting.figure(tools=tools, active_scroll="wheel_zoom", sizing_mode="stretch_both")
        points = rows.assign(picture=texts, color=colors)
        plot.scatter("x", "y", source=points, size=7, color="color", legend_group="class")
        page = embed.file_html(plot, resources.INLINE, "Map of images").encode("utf-8", "replace")
        write_result(out / "map.html", page)
        logger.info("the map of %d images is %s", len(rows), out / "map.html")
        return rows
