from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import segae
from segae.data import read_image
from segae.errors import DataError


def write_idx(raw: Path, images: np.ndarray, labels: np.ndarray) -> None:
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for name, array in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / name).write_bytes(header + array.tobytes())


def test_idx_files_become_a_folder_per_class(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "FashionMNIST" / "raw", images, np.arange(12, dtype=np.uint8) % 10)
    for _ in range(2):  # the second call has nothing to do
        assert segae.download("fashion_mnist", root=tmp_path) == tmp_path
    for split in ("train", "test"):
        folders = sorted(path.name for path in (tmp_path / split).iterdir())
        assert len(folders) == 10
        assert {"t-shirt", "ankle-boot", "bag"} <= set(folders)
        assert np.array_equal(read_image(tmp_path / split / "trouser" / "00011.png")[..., 0], images[11])


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw", np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8))
    (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="Fashion-MNIST could not be put into .*idx files into FashionMNIST/raw"):
        segae.download("fashion_mnist", root=tmp_path)
