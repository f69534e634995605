"""Download data sets; nothing is downloaded unless this is called."""

from pathlib import Path

from segae._io import logger
from segae._settings import takes_settings_of
from segae.config import DownloadConfig
from segae.data import download_fashion_mnist, download_pets, open_dataset


@takes_settings_of(DownloadConfig)
def download(config: DownloadConfig) -> Path:
    """Download and unpack a data set and return its folder; what is there already is not downloaded again.

    Raises:
        SegaeError: no connection, a wrong checksum, or a full disk. Archives that arrived whole are kept.

    Example:
        >>> pets = download("pets", root="data/pets")  # doctest: +SKIP
    """
    root = Path(config.root or f"data/{config.name}")
    if config.name == "fashion_mnist":
        folder = download_fashion_mnist(root)
        logger.info("%s: 60,000 images in train, 10,000 in test, a folder per class", folder)
        return folder
    folder = download_pets(root)
    splits = open_dataset(folder).splits
    logger.info("%s: %s", folder, ", ".join(f"{len(pairs)} {split} images" for split, pairs in splits.items()))
    return folder
