"""What a frozen encoder or an autoencoder is good for besides segmentation; no fastai in here."""

from segae.applications.features import (
    Features,
    check_format,
    collect_features,
    compute_features,
    open_encoder,
    require_layer,
    write_features,
)
from segae.applications.selection import select_images
from segae.applications.visualization import pca_colors

__all__ = [
    "Features", "check_format", "collect_features", "compute_features", "open_encoder", "pca_colors", "require_layer",
    "select_images", "write_features",
]  # fmt: skip
