"""Learn what is normal, and rank images by how anomalous they are."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from segae._io import logger
from segae._settings import takes_settings_of
from segae.applications import AnomalyDetector, list_images
from segae.commands._data import open_results, picture_sheet, write_result
from segae.config import AnomalyFitConfig, AnomalyScoreConfig
from segae.data import read_picture
from segae.errors import SegaeError
from segae.models import Autoencoder, load

_HEAT_MAPS = 64  # that are drawn, of the most anomalous images


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
            picture = cv2.addWeighted(read_picture(path)[..., ::-1], 0.5, colors, 0.5, 0)
            pictures.append(out / "heatmaps" / f"{rank:02d}_{path.stem}.jpg")
            write_result(pictures[-1], cv2.imencode(".jpg", picture)[1].tobytes())
        picture_sheet(pictures, out / "sheet.png")
        logger.info("%d of %d images are anomalies; the ranking is in %s", rows["anomaly"].sum(), len(rows), out)
        return rows
