"""Group images by their features."""

import pandas as pd

from segae import applications
from segae._io import logger
from segae._settings import takes_settings_of
from segae.applications import collect_features, list_images, open_encoder
from segae.commands._data import open_results, picture_sheet, write_result
from segae.config import ClusterConfig


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
