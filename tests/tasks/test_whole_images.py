"""An objective that crops by itself is given whole images, whatever way they come; the others are given crops."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from segae.data.quarantine import Quarantine
from segae.models.encoder import create_encoder
from segae.tasks.loading import load_unlabelled, random_change, random_transform
from segae.tasks.pretrain import Pretrain

SIZE = 32
CPU = torch.device("cpu")


@pytest.fixture
def framed(tmp_path: Path) -> Path:
    """Grey images in a white frame, which a crop loses on one side at least."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(12):
        image = np.full((SIZE, SIZE, 3), 40 + index, np.uint8)
        cv2.rectangle(image, (0, 0), (SIZE - 1, SIZE - 1), (255, 255, 255), 1)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


def config(data: Path, objective: str, **more: str) -> Pretrain:
    return Pretrain(data=(data,), objective=objective, image_size=SIZE, val_fraction=0.0, workers=0, **more)


def has_all_its_frame(image: torch.Tensor) -> bool:
    edges = (image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1])
    return all(bool((edge > 0.9).all()) for edge in edges)


@pytest.mark.parametrize("data_path", ["cache", "live", "device"])
@pytest.mark.parametrize(("objective", "whole"), [("layers", True), ("denoise", False)])
def test_only_who_crops_by_itself_gets_whole_images(framed: Path, objective: str, whole: bool, data_path: str) -> None:
    _, description = create_encoder("tf_efficientnet_lite0", "random")
    asked = config(framed, objective, data_path=data_path) if data_path != "device" else config(framed, objective)
    if data_path == "device":
        image = torch.full((12, 3, SIZE, SIZE), 0.0)
        image[:, :, [0, -1]] = image[:, :, :, [0, -1]] = 1.0
        matrix = random_change(asked)(12, torch.Generator().manual_seed(0)).matrix_n23
        place = torch.nn.functional.affine_grid(matrix, list(image.shape), align_corners=False)
        seen = list(torch.nn.functional.grid_sample(image, place, align_corners=False))
    else:
        items = load_unlabelled(asked, description, CPU, Quarantine()).train
        seen = [items[index] for index in range(12)]
    assert [has_all_its_frame(one) for one in seen].count(True) == (12 if whole else 0)


def test_whole_images_are_still_mirrored(framed: Path) -> None:
    _, description = create_encoder("tf_efficientnet_lite0", "random")
    transform = random_transform(config(framed, "layers"), description)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, : SIZE // 2] = 255
    lit = {bool(transform(image=image)["image"][0, 0, 0] > 0) for _ in range(40)}
    assert lit == {True, False}
