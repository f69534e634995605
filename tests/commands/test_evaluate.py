"""``segae.evaluate``: scores that another library confirms, and the files that say where they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torchmetrics.classification as other
from PIL import Image

import segae
from segae.data import eval_transform, read_image, resize_image
from tests.fabricate import make_folder, make_pets

MakeSegmenter = Callable[..., Path]
NAMES = [f"cat_{index}" for index in range(5)]
CLASSES = ("pet", "background", "border")


def write_pets(root: Path) -> Path:
    """Five test images and a training image in the official layout, of different sizes."""
    generator = np.random.default_rng(0)
    for folder in ("images", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    for index, name in enumerate([*NAMES, "dog_0"]):
        size = (80 + 5 * index, 70 + 3 * index)
        image = Image.fromarray(generator.integers(0, 256, (6, 9, 3), np.uint8))
        trimap = Image.fromarray(generator.integers(1, 4, (4, 5), np.uint8))
        image.resize(size, Image.Resampling.BICUBIC).save(root / "images" / f"{name}.jpg")
        trimap.resize(size, Image.Resampling.NEAREST).save(root / "annotations/trimaps" / f"{name}.png")
    (root / "annotations" / "test.txt").write_text("".join(f"{name} 1 1 1\n" for name in NAMES))
    (root / "annotations" / "trainval.txt").write_text("dog_0 1 1 1\n")
    return root


@pytest.fixture(scope="module")
def sized_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pets(tmp_path_factory.mktemp("sized") / "pets")


@pytest.mark.parametrize("resolution", ["model", "original"])
def test_scores_equal_those_of_torchmetrics_image_by_image(
    make_segmenter: MakeSegmenter, sized_pets: Path, tmp_path: Path, resolution: str, without_pictures: None
) -> None:
    path = make_segmenter()
    scores = segae.evaluate(path, sized_pets, resolution=resolution, batch_size=2, device="cpu")
    model, metric, pixels = segae.load_segmenter(path).eval(), other.MulticlassJaccardIndex(3), 0
    transform = eval_transform(64, model.info.encoder.mean, model.info.encoder.std)
    for name in NAMES:
        image = resize_image(read_image(sized_pets / "images" / f"{name}.jpg"), 64)
        with torch.no_grad():
            logits = model(transform(image=image)["image"][None])
        trimap = np.asarray(Image.open(sized_pets / "annotations/trimaps" / f"{name}.png")) - 1
        if resolution == "original":
            logits = torch.nn.functional.interpolate(logits, trimap.shape, mode="bilinear")
        else:
            trimap = cv2.resize(trimap, (64, 64), interpolation=cv2.INTER_NEAREST_EXACT)
        metric.update(logits.argmax(dim=1), torch.from_numpy(trimap.astype(np.int64))[None])
        pixels += trimap.size
    assert scores.miou == pytest.approx(metric.compute().item(), abs=1e-4)
    assert scores.confusion.sum() == pixels
    assert (scores.confusion.sum(axis=0) > 0).all()  # all classes are predicted, so the test can fail
    suffix = "" if resolution == "model" else "-original"
    assert (path.parent / f"evaluate-test{suffix}" / "metrics.json").exists()


def test_the_folder_holds_the_scores_and_where_they_come_from(
    make_segmenter: MakeSegmenter, sized_pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="segae")
    path = make_segmenter(seed=0, dataset="others")
    scores = segae.evaluate(path, sized_pets, device="cpu")
    out = path.parent / "evaluate-test-pets"  # the model is of another data set
    written = json.loads((out / "metrics.json").read_text())
    assert {name: written[name] for name in scores.as_row()} == scores.as_row()
    assert (written["images"], written["split"], written["training"]["seed"]) == (5, "test", 0)
    assert len(written["model_sha256"]) == 64
    assert written["versions"]
    table, confusion = pd.read_csv(out / "per_image.csv"), pd.read_csv(out / "confusion.csv", index_col="truth")
    assert sorted(table["name"]) == NAMES
    both, either = (
        table[[f"{kind}_{name}" for name in CLASSES]].sum().to_numpy() for kind in ("intersection", "union")
    )
    assert both / either == pytest.approx(list(scores.iou.values()))
    assert confusion.to_numpy().tolist() == scores.confusion.tolist() == written["confusion"]
    for picture in ("confusion.png", "sheet.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 300
    shown = dict(re.findall(r"^(\D+?) +(\d\.\d{3})$", caplog.messages[-1], re.MULTILINE))
    assert {name.replace(" ", "_"): float(value) for name, value in shown.items()} == {
        name: round(value, 3) for name, value in scores.as_row().items()
    }


def test_a_model_in_memory_is_scored_where_it_is_and_nothing_is_written(
    make_segmenter: MakeSegmenter, sized_pets: Path, tmp_path: Path, without_pictures: None
) -> None:
    path = make_segmenter()
    model = segae.load_segmenter(path).train()
    assert segae.evaluate(model, sized_pets).as_row() == segae.evaluate(path, sized_pets).as_row()
    assert model.training
    assert [child.name for child in path.parent.iterdir() if child.is_dir()] == ["evaluate-test"]
    segae.evaluate(model, sized_pets, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["model"].startswith("weights ")


@pytest.mark.usefixtures("without_pictures")
def test_a_class_that_is_nowhere_is_null(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    names = ("background", "cell", "dust", "never")
    model = segae.load_segmenter(make_segmenter(names))
    with torch.no_grad():
        model.segmentation_head[0].bias[3] = -1e6
    path = segae.save_segmenter(model, tmp_path / "m.safetensors")
    data = make_folder(tmp_path / "cells", 1, 4, values=(0, 1, 2))
    scores = segae.evaluate(path, data, out=tmp_path / "out", device="cpu", classes=names)
    assert np.isnan(scores.iou["never"])
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["iou_never"] is None
    assert 0 < scores.miou < 1


@pytest.mark.usefixtures("without_pictures")
def test_unreadable_images_are_skipped_and_listed(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    pets = make_pets(tmp_path / "pets", 2, 5)
    bad = sorted((pets / "annotations" / "test.txt").read_text().split())[-1]
    (pets / "images" / f"{bad}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    model = make_segmenter()
    scores = segae.evaluate(model, pets, out=tmp_path / "out", device="cpu")
    assert len(scores.per_image) == 4
    assert f"{bad}.jpg" in (tmp_path / "out" / "skipped.csv").read_text()
    assert bad not in (tmp_path / "out" / "per_image.csv").read_text()


@pytest.mark.usefixtures("without_pictures")
def test_classes_are_those_of_the_model(make_segmenter: MakeSegmenter, sized_pets: Path, tmp_path: Path) -> None:
    model = make_segmenter(("foreground", "background"), merge=["foreground=pet+border"])
    merged = segae.evaluate(model, sized_pets, out=tmp_path / "a", device="cpu")  # as it was trained
    typed = segae.evaluate(model, sized_pets, out=tmp_path / "b", device="cpu", merge=["foreground=border+pet"])
    assert merged.classes == ("foreground", "background")
    assert merged.confusion.tolist() == typed.confusion.tolist()
    folder = make_folder(tmp_path / "cells", 1, 2, values=(0, 255))
    assert segae.evaluate(model, folder, device="cpu", classes=("foreground", "background")).miou > 0
    with pytest.raises(segae.DataError, match="class_0, class_255"):
        segae.evaluate(model, folder, device="cpu")
    with pytest.raises(segae.DataError, match="merge must be"):
        segae.evaluate(model, sized_pets, device="cpu", merge=["foreground=pet", "background=border+background"])
    with pytest.raises(segae.DataError, match="classes"):
        segae.evaluate(make_segmenter(("back", "front")), folder, classes=("foreground", "background"), device="cpu")


@pytest.mark.usefixtures("without_pictures")
def test_results_of_another_kind_are_not_replaced(
    make_segmenter: MakeSegmenter, sized_pets: Path, tmp_path: Path
) -> None:
    model, out = make_segmenter(), tmp_path / "out"
    for name, content in (("log.csv", "epoch\n"), ("metrics.json", "{}")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(segae.SegaeError, match="out must be a folder for the results of evaluate"):
            segae.evaluate(model, sized_pets, out=folder, device="cpu")
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, content)]
    for _ in range(2):
        segae.evaluate(model, sized_pets, out=out, device="cpu")
    with pytest.raises(segae.SegaeError, match="split was 'test', now 'train'"):
        segae.evaluate(model, sized_pets, split="train", out=out, device="cpu")
    segae.evaluate(model, sized_pets, split="train", out=out, device="cpu", overwrite=True)
    assert json.loads((out / "metrics.json").read_text())["split"] == "train"
    with pytest.raises(segae.DataError, match=r"split must be .*test \(5 images\).*got 'holdout'"):
        segae.evaluate(model, sized_pets, split="holdout", device="cpu")
