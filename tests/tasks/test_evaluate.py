from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torchmetrics.classification as other
from numpy.typing import NDArray
from PIL import Image

from segae.data.images import read_image
from segae.data.resize import resize_image
from segae.data.transforms import eval_transform
from segae.errors import SegaeError
from segae.models.segmenter import load_segmenter, save_segmenter
from segae.tasks.evaluate import Evaluate, run
from segae.tasks.readings import LEDGER
from segae.tasks.same_classes import open_as_trained
from segae.training.evaluation import evaluate_model, normalise, predict_logits, predict_masks

MakeSegmenter = Callable[..., Path]
NAMES = [f"cat_{index}" for index in range(5)]


def write_pets(root: Path, *, highest: int = 3) -> Path:
    """Five test images and one training image in the official layout, of different sizes."""
    generator = np.random.default_rng(0)
    for folder in ("images", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    for index, name in enumerate([*NAMES, "dog_0"]):
        size = (80 + 5 * index, 70 + 3 * index)
        image = Image.fromarray(generator.integers(0, 256, (6, 9, 3), np.uint8))
        trimap = Image.fromarray(generator.integers(1, highest + 1, (4, 5), np.uint8))
        image.resize(size, Image.Resampling.BICUBIC).save(root / "images" / f"{name}.jpg")
        trimap.resize(size, Image.Resampling.NEAREST).save(root / "annotations/trimaps" / f"{name}.png")
    (root / "annotations" / "test.txt").write_text("".join(f"{name} 1 1 1\n" for name in NAMES))
    (root / "annotations" / "trainval.txt").write_text("dog_0 1 1 1\n")
    return root


def write_folder(root: Path, values: tuple[int, ...]) -> Path:
    """The same kind of pictures as images/ + masks/, all of them in the test split."""
    generator = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(root / "images" / f"{name}.png")
        mask = generator.choice(np.array(values, np.uint8), (64, 64))
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "test.txt").write_text("\n".join(NAMES[:4]))
    (root / "train.txt").write_text(NAMES[4])
    return root


def logits_by_hand(model_file: Path, image: NDArray[np.uint8]) -> torch.Tensor:
    model, description = load_segmenter(model_file)
    image_chw = eval_transform(64, description.mean, description.std)(image=resize_image(image, 64))["image"]
    with torch.no_grad():
        return model.eval()(image_chw[None])


def miou_by_hand(model_file: Path, root: Path, *, original: bool) -> float:
    """torchmetrics over one image at a time, without any of the library's evaluation."""
    metric = other.MulticlassJaccardIndex(3)
    for name in NAMES:
        logits = logits_by_hand(model_file, read_image(root / "images" / f"{name}.jpg"))
        trimap = np.asarray(Image.open(root / "annotations/trimaps" / f"{name}.png")) - 1
        if original:
            logits = torch.nn.functional.interpolate(logits, trimap.shape, mode="bilinear")
        else:
            trimap = cv2.resize(trimap, (64, 64), interpolation=cv2.INTER_NEAREST_EXACT)
        metric.update(logits.argmax(dim=1), torch.from_numpy(trimap.astype(np.int64))[None])
    return metric.compute().item()


@pytest.mark.parametrize("resolution", ["model", "original"])
def test_scores_equal_those_of_torchmetrics_image_by_image(
    make_segmenter: MakeSegmenter, tmp_path: Path, resolution: str
) -> None:
    model, pets = make_segmenter(), write_pets(tmp_path / "pets")
    config = Evaluate(model, pets, resolution=resolution, batch_size=2, device="cpu")  # type: ignore[arg-type]
    scores = run(config)
    by_hand = miou_by_hand(model, pets, original=resolution == "original")
    assert scores.miou == pytest.approx(by_hand, abs=1e-4)
    pixels = sum((80 + 5 * i) * (70 + 3 * i) for i in range(5)) if resolution == "original" else 5 * 64 * 64
    assert scores.confusion.sum() == pixels
    assert (scores.confusion.sum(axis=0) > 0).all()  # all classes are predicted, so the test can fail


def test_the_results_folder_tells_the_scores_and_where_they_come_from(
    make_segmenter: MakeSegmenter, tmp_path: Path
) -> None:
    model, pets = make_segmenter(), write_pets(tmp_path / "pets")
    scores = run(Evaluate(model, pets, device="cpu"))
    out = model.parent / "evaluate-test"
    written = json.loads((out / "metrics.json").read_text())
    assert {name: written[name] for name in scores.as_row()} == scores.as_row()
    assert written["confusion"] == scores.confusion.tolist()
    assert written["images"] == 5
    assert written["split"] == "test"
    assert len(written["model_sha256"]) == 64
    assert len(written["split_hash"]) == 16
    assert written["training"] == {"init": "random", "seed": 0}
    assert written["versions"]
    assert json.loads((out / "config.json").read_text())["resolution"] == "model"
    table = pd.read_csv(out / "per_image.csv")
    assert sorted(table["name"]) == NAMES
    assert table["miou"].to_numpy() == pytest.approx(scores.per_image)
    for picture in ("confusion.png", "sheet.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 300
    assert not (out / "quarantine.csv").exists()


def test_scores_are_printed_as_fractions_like_those_of_every_table(
    make_segmenter: MakeSegmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = run(Evaluate(make_segmenter(), write_pets(tmp_path / "pets"), device="cpu"))
    shown = dict(re.findall(r"^(\D+?) +(\d\.\d{3})$", capsys.readouterr().out, re.MULTILINE))
    assert {name.replace(" ", "_"): float(value) for name, value in shown.items()} == {
        name: round(value, 3) for name, value in scores.as_row().items()
    }
    assert 0 < scores.miou < 1


def test_a_class_that_is_nowhere_is_null(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    names = ("background", "cell", "dust", "never")
    model_file = make_segmenter(names)
    model, description = load_segmenter(model_file)
    with torch.no_grad():
        model.segmentation_head[0].bias[3] = -1e6
    save_segmenter(model_file, model, description)
    data = write_folder(tmp_path / "cells", (0, 1, 2))
    scores = run(Evaluate(model_file, data, out=tmp_path / "out", device="cpu", classes=names))
    assert np.isnan(scores.iou[3])
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["iou_never"] is None
    assert 0 < scores.miou < 1


def test_unreadable_images_are_left_out_and_listed(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    pets = write_pets(tmp_path / "pets")
    (pets / "images" / "cat_3.jpg").write_bytes(b"\xff\xd8\xff no picture")
    scores = run(Evaluate(make_segmenter(), pets, out=tmp_path / "out", device="cpu"))
    assert len(scores.per_image) == 4
    assert "cat_3.jpg" in (tmp_path / "out" / "quarantine.csv").read_text()
    assert "cat_3" not in (tmp_path / "out" / "per_image.csv").read_text()


@pytest.mark.parametrize("classes", [("pet", "background"), ("background", "pet", "border")])
def test_classes_that_are_not_the_models_are_refused(
    make_segmenter: MakeSegmenter, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    pets = write_pets(tmp_path / "pets")
    with pytest.raises(SegaeError, match=rf"trained for the {len(classes)} classes {', '.join(classes)}"):
        run(Evaluate(make_segmenter(classes), pets, out=tmp_path / "out", device="cpu"))
    assert not (tmp_path / "out").exists()


def test_class_names_can_be_given_for_a_folder(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, data = make_segmenter(("background", "cell")), write_folder(tmp_path / "cells", (0, 255))
    with pytest.raises(SegaeError, match="type --classes background cell"):
        run(Evaluate(model, data, device="cpu"))
    scores = run(Evaluate(model, data, device="cpu", classes=("background", "cell")))
    assert scores.classes == ("background", "cell")
    assert len(scores.per_image) == 4


def test_a_folder_that_lacks_a_class_is_read_as_the_model_was_trained(
    make_segmenter: MakeSegmenter, tmp_path: Path
) -> None:
    model, description = load_segmenter(make_segmenter())
    path = tmp_path / "trained" / "model.safetensors"
    save_segmenter(path, model, replace(description, mask_values=(1, 2, 3)))
    _, description = load_segmenter(path)
    data = write_folder(tmp_path / "pets", (1, 2))
    opened = open_as_trained(data, description.classes, (), description)
    assert opened.mask_values == (1, 2, 3)  # alone its masks would have been read as 0, 1, 2
    other = write_folder(tmp_path / "others", (10, 20, 30))
    assert open_as_trained(other, description.classes, (), description).mask_values == (10, 20, 30)
    wrong = write_folder(tmp_path / "wrong", (1, 7))
    with pytest.raises(SegaeError, match=r"hold the values 1, 7.*which were 1, 2, 3"):
        open_as_trained(wrong, description.classes, (), description)


def test_images_of_other_channels_than_the_models_are_refused() -> None:
    with pytest.raises(SegaeError, match="have 3 channels and the model takes 4"):
        normalise(np.zeros((1, 8, 8, 3), np.uint8), (0.5,) * 4, (0.5,) * 4, torch.device("cpu"))


def test_an_unknown_split_is_an_error_that_names_the_splits(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    pets = write_pets(tmp_path / "pets")
    with pytest.raises(SegaeError, match=r"'holdout'.*train \(1 images\), test \(5 images\)"):
        run(Evaluate(make_segmenter(), pets, split="holdout", device="cpu"))


def test_the_metrics_of_a_training_run_are_not_overwritten(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, pets = make_segmenter(), write_pets(tmp_path / "pets")
    (model.parent / "log.csv").write_text("epoch\n")
    (model.parent / "metrics.json").write_text("{}")
    with pytest.raises(SegaeError, match="folder of a training run"):
        run(Evaluate(model, pets, out=model.parent, device="cpu"))
    assert (model.parent / "metrics.json").read_text() == "{}"


def test_scores_of_another_kind_do_not_take_the_place_of_earlier_ones(
    make_segmenter: MakeSegmenter, tmp_path: Path
) -> None:
    model, pets = make_segmenter(), write_pets(tmp_path / "pets")
    foreign = tmp_path / "mine" / "metrics.json"
    foreign.parent.mkdir()
    foreign.write_text("{}")
    with pytest.raises(SegaeError, match=r"metrics\.json, and .* holds no earlier results of segae evaluate"):
        run(Evaluate(model, pets, out=foreign.parent, device="cpu"))
    assert foreign.read_text() == "{}"
    assert not (model.parent / LEDGER).exists()  # the test split was not read for it
    for resolution in ("model", "original", "model"):
        run(Evaluate(model, pets, resolution=resolution, device="cpu"))  # type: ignore[arg-type]
    assert json.loads((model.parent / "evaluate-test" / "metrics.json").read_text())["resolution"] == "model"
    assert (model.parent / "evaluate-test-original" / "metrics.json").exists()
    out = tmp_path / "out"
    run(Evaluate(model, pets, out=out, device="cpu"))
    with pytest.raises(SegaeError, match="split was 'test', now 'train'"):
        run(Evaluate(model, pets, split="train", out=out, device="cpu"))
    run(Evaluate(model, pets, split="train", out=out, device="cpu", overwrite=True))
    assert json.loads((out / "metrics.json").read_text())["split"] == "train"


def test_evaluation_leaves_every_module_in_its_mode_and_its_statistics_alone(
    make_segmenter: MakeSegmenter,
) -> None:
    model, description = load_segmenter(make_segmenter())
    model.train()
    model.encoder.eval()  # as a frozen encoder is
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    evaluate_model(
        model,
        images,
        np.zeros((3, 64, 64), np.uint8),
        classes=description.classes,
        mean=description.mean,
        std=description.std,
        batch_size=2,
    )
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    next(predict_logits(model, images, description.mean, description.std, batch_size=1))  # left half-way
    assert [module.training for module in model.modules()] == modes


def test_predicted_masks_are_those_that_are_scored(make_segmenter: MakeSegmenter) -> None:
    model, description = load_segmenter(make_segmenter())
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    how = {"mean": description.mean, "std": description.std, "batch_size": 2}
    masks = predict_masks(model, images, **how)
    assert masks.dtype == np.uint8
    assert masks.shape == (3, 64, 64)
    assert evaluate_model(model, images, masks, classes=description.classes, **how).miou == 1
    assert predict_masks(model, images[:0], **how).shape == (0, 64, 64)


def test_normalisation_is_that_of_the_training_pipeline() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = normalise(image[None], mean, std, torch.device("cpu"))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours[0], eval_transform(64, mean, std)(image=image)["image"], rtol=0, atol=1e-5)


def test_the_pixels_of_each_image_stand_beside_its_score(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, pets = make_segmenter(), write_pets(tmp_path / "pets")
    scores = run(Evaluate(model, pets, out=tmp_path / "out", device="cpu"))
    table = pd.read_csv(tmp_path / "out" / "per_image.csv")
    both, either = (
        table[[f"{kind}_{name}" for name in scores.classes]].to_numpy() for kind in ("intersection", "union")
    )
    assert both.dtype == np.int64
    assert both.sum(axis=0) / either.sum(axis=0) == pytest.approx(scores.iou)
    assert np.nanmean(np.where(either > 0, both / np.maximum(either, 1), np.nan), axis=1) == pytest.approx(
        table["miou"]
    )


def merged_segmenter(make_segmenter: MakeSegmenter, *merge: str) -> Path:
    """A segmenter that says it was trained with these classes merged."""
    model_file = make_segmenter(("foreground", "background"))
    model, description = load_segmenter(model_file)
    save_segmenter(model_file, model, replace(description, details={"merge": json.dumps(merge)}))
    return model_file


def test_a_model_is_scored_with_the_classes_merged_as_it_was_trained(
    make_segmenter: MakeSegmenter, tmp_path: Path
) -> None:
    model, pets = merged_segmenter(make_segmenter, "foreground=pet+border"), write_pets(tmp_path / "pets")
    found = run(Evaluate(model, pets, out=tmp_path / "a", device="cpu"))
    typed = run(Evaluate(model, pets, out=tmp_path / "b", device="cpu", merge=("foreground=border+pet",)))
    assert found.classes == ("foreground", "background")
    assert found.confusion.tolist() == typed.confusion.tolist()
    pixels = 0
    for name in NAMES:
        trimap = np.asarray(Image.open(pets / "annotations/trimaps" / f"{name}.png"))
        pixels += int((cv2.resize(trimap, (64, 64), interpolation=cv2.INTER_NEAREST_EXACT) != 2).sum())
    assert found.confusion[0].sum() == pixels
    with pytest.raises(SegaeError, match=r"trained with --merge foreground=pet\+border, and --merge foreground=pet"):
        run(Evaluate(model, pets, out=tmp_path / "c", device="cpu", merge=("foreground=pet", "background=border")))


def test_another_data_set_may_have_the_classes_without_merging(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, data = merged_segmenter(make_segmenter, "foreground=pet+border"), write_folder(tmp_path / "d", (0, 255))
    scores = run(Evaluate(model, data, device="cpu", classes=("foreground", "background")))
    assert len(scores.per_image) == 4
    with pytest.raises(SegaeError, match="no class pet that could be merged"):
        run(Evaluate(model, data, device="cpu", classes=("back", "fore")))
