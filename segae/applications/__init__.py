"""What a frozen encoder or an autoencoder is good for besides segmentation; no fastai in here."""

from segae.applications.anomaly import AnomalyDetector
from segae.applications.clustering import cluster, project
from segae.applications.features import (
    Features,
    check_format,
    collect_features,
    compute_features,
    list_images,
    open_encoder,
    require_layer,
    write_features,
)
from segae.applications.retrieval import ImageIndex
from segae.applications.selection import select_images
from segae.applications.visualization import pca_colors
from segae.models import load

__all__ = [
    "AnomalyDetector", "Features", "ImageIndex", "check_format", "cluster", "collect_features", "compute_features",
    "list_images", "load", "open_encoder", "pca_colors", "project", "require_layer", "select_images", "write_features",
]  # fmt: skip
