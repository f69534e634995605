"""What a frozen encoder or an autoencoder is good for besides segmentation; no fastai in here."""

from segae.applications.features import Features, check_format, compute_features, write_features

__all__ = ["Features", "check_format", "compute_features", "write_features"]
