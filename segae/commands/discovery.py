"""Look for what is in images without labels: anomalies, similar images, clusters, a map."""

from __future__ import annotations

import base64
import importlib
import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from segae import applications
from segae._io import require_package
from segae.applications import AnomalyDetector, ImageIndex, collect_features, list_images, open_encoder
from segae.commands._data import open_results, picture_sheet, read_pictures, takes_settings_of, write_result
from segae.config import AnomalyFitConfig, AnomalyScoreConfig, ClusterConfig, MapConfig, SearchConfig
from segae.data import read_image
from segae.errors import SegaeError
from segae.evaluation import contact_sheet
from segae.models import Autoencoder, load

logger = logging.getLogger("segae")
_HEAT_MAPS, _WIDE, _THUMBNAIL = 64, 8, 64  # pictures; of a sheet's rows and columns; side in pixels


@takes_settings_of(AnomalyFitConfig)
def fit_anomaly_detector(config: AnomalyFitConfig) -> AnomalyDetector:
    """Learn what is normal: ``fit_anomaly_detector("good", false_alarm_rate=0.05)``; see ``AnomalyFitConfig``."""
    model = config.encoder if config.model is None else load(config.model)
    if config.model is not None and not isinstance(model, Autoencoder):
        raise SegaeError(f"model must be an autoencoder, got {type(model).__name__}: give it as encoder")
    with open_results(config, "anomaly fit", "detector.safetensors") as (out, how):
        how |= {"false_alarm_rate": config.false_alarm_rate, "held_out": config.held_out}
        detector = AnomalyDetector.fit(config.images, model, **how)
        detector.save(out / "detector.safetensors")
        facts = detector.info.threshold, detector.info.held_out, *(100 * rate for rate in detector.info.rate_interval)
        logger.info("threshold %.4g, from %d held-out images: false alarms %.2f to %.2f %% (95 %% interval)", *facts)
        return detector


@takes_settings_of(AnomalyScoreConfig)
def score_anomalies(config: AnomalyScoreConfig) -> pd.DataFrame:
    """Rank images: ``score_anomalies("new", detector="detector.safetensors")``; see ``AnomalyScoreConfig``."""
    with open_results(config, "anomaly score", "scores.csv", "heatmaps", "sheet.png") as (out, how):
        detector, paths = AnomalyDetector.load(config.detector, **how), list_images(config.images)
        rows = pd.DataFrame({"image": [*map(str, paths)], "score": detector.score(paths)}).dropna()
        rows = rows.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        rows["anomaly"] = rows["score"] > detector.info.threshold
        write_result(out / "scores.csv", rows)
        shutil.rmtree(out / "heatmaps", ignore_errors=True)
        pictures, top = [], 0.0
        for rank, path in enumerate(map(Path, rows["image"][:_HEAT_MAPS]), start=1):
            heat = detector.heatmap(path)
            top = top or max(float(heat.max()), 1e-12)  # one scale: that of the most anomalous image
            colors = cv2.applyColorMap((heat / top * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
            picture = cv2.addWeighted(read_image(path)[..., ::-1], 0.5, colors, 0.5, 0)
            pictures.append(out / "heatmaps" / f"{rank:02d}_{path.stem}.jpg")
            write_result(pictures[-1], cv2.imencode(".jpg", picture)[1].tobytes())
        picture_sheet(pictures, out / "sheet.png")
        logger.info("%d of %d images are anomalies; the ranking is in %s", rows["anomaly"].sum(), len(rows), out)
        return rows


@takes_settings_of(SearchConfig)
def search_images(config: SearchConfig) -> pd.DataFrame:
    """Find the nearest images of each query: ``search_images("cat.jpg", images="photos")``; see ``SearchConfig``."""
    if bool(config.images) == bool(config.index):
        raise SegaeError(f"images must be given, or index in their place, got {config.images} and {config.index}")
    with open_results(config, "search", "hits.csv", "sheet.png") as (out, how):
        make: Any = ImageIndex.load if config.index else ImageIndex.build
        rows = make(config.index or config.images, config.encoder, **how).search(config.query, config.k)
        write_result(out / "hits.csv", rows)
        shown = rows[rows["rank"] <= _WIDE].pivot(index="query", columns="rank", values="image")[:_WIDE].reset_index()
        contact_sheet({str(title): read_pictures(names) for title, names in shown.items()}, out / "sheet.png")
        logger.info("the nearest images are in %s", out)
        return rows


@takes_settings_of(ClusterConfig)
def cluster_images(config: ClusterConfig) -> pd.DataFrame:
    """Group images: ``cluster_images("photos", k=10)``; see ``ClusterConfig``. Cluster -1 is of images in none."""
    with open_results(config, "cluster", "clusters.csv") as (out, how):
        features = collect_features(open_encoder(config.encoder), list_images(config.images), **how)
        rows = pd.DataFrame({"image": features.names, "cluster": applications.cluster(features.values, k=config.k)})
        write_result(out / "clusters.csv", rows)
        for old in out.glob("cluster_*.png"):
            old.unlink()
        for label, names in rows.groupby("cluster")["image"]:
            picture_sheet([*names], out / f"cluster_{label}.png")
        logger.info("%d clusters of %d images are in %s", rows["cluster"].max() + 1, len(rows), out)
        return rows


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
        texts = [f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}" for jpeg in jpegs]
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
