"""Fashion-MNIST (arXiv 1708.07747): 70,000 gray images of 28 x 28 pixels in ten classes, as folders of PNG files."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pooch

from segae.errors import DataError

FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
)
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_ARCHIVES = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}


def download_fashion_mnist(root: Path, *, base_url: str = _URL, archives: Mapping[str, str] = _ARCHIVES) -> Path:
    """Fetch the four idx files unless they are in ``root``, and write ``root``/train|test/<class>/<number>.png.

    Files that are there, gzipped or not, are taken as they are.

    Args:
        root: gets the archives (30 MB) and the images (300 MB on most disks).
        base_url: where the archives are.
        archives: names and checksums of the images and labels of train and test.

    Raises:
        DataError: no connection, a wrong checksum, a damaged archive, or a folder that cannot be written to.
    """
    done = root / ".images.unpacked"
    if done.is_file():
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
        files = []
        for name, checksum in archives.items():
            here = [path for path in (root / name, root / name.removesuffix(".gz")) if path.is_file()]
            how = {"fname": name, "path": root, "progressbar": sys.stderr.isatty()}
            files.append(here[0] if here else pooch.retrieve(base_url + name, checksum, **how))
        for split, images, labels in (("train", *files[:2]), ("test", *files[2:])):
            for name in FASHION_CLASSES:
                (root / split / name).mkdir(parents=True, exist_ok=True)
            for number, (image, label) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
                if not cv2.imwrite(str(root / split / FASHION_CLASSES[label] / f"{number:05d}.png"), image):
                    raise OSError(f"{root} cannot be written to")
    except (OSError, ValueError, EOFError, IndexError, struct.error) as error:  # a wrong checksum is a ValueError
        raise DataError(f"Fashion-MNIST could not be put into {root}: {error}. Check connection and space.") from error
    done.touch()  # last: it says that every image is on the disk
    return root


def read_idx(path: Path | str) -> np.ndarray:
    """Read an idx file of bytes, gzipped or not: uint8 in the shape that its header gives."""
    with gzip.open(path) if str(path).endswith(".gz") else Path(path).open("rb") as file:
        zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
        if zeros or kind != 8:
            raise ValueError(f"{path} must be an idx file of bytes, got the type {kind}")
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)
