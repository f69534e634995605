"""Classification: class folders in, ``segae.finetune``, ``evaluate`` and ``predict`` with a classifier."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import segae
from segae import cli
from segae.data import ClassFolders, label_subset
from segae.models import Classifier
from tests.fabricate import COLORS, save

Settings = dict[str, Any]
pytestmark = pytest.mark.usefixtures("without_pictures")
CLASSES = ("green", "red")


def make_classes(root: Path, counts: dict[str, int], size: int = 64) -> Path:
    """Images of noise about one color for each class folder."""
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng((len(name), number, place)).normal(0, 30, (size, size, 3))
            color = COLORS[1 if name == "green" else 0]
            save((noise + color).clip(0, 255).astype(np.uint8), root / name / f"{number:03}.png")
    return root


@pytest.fixture(scope="session")
def colors(shared: Path) -> Path:
    """12 training images of each of two classes, 3 for validation, 4 for the test."""
    for split, count in (("train", 12), ("val", 3), ("test", 4)):
        make_classes(shared / "colors" / split, dict.fromkeys(CLASSES, count))
    return shared / "colors"


@pytest.fixture(scope="session")
def classified(colors: Path, small: Settings) -> segae.FinetuneResult:
    settings = small | {"batch_size": 6, "epochs": 3, "lr": 1e-2}
    return segae.finetune(colors, task="classify", out=colors.parent / "classified", **settings)


def test_a_classifier_learns_and_its_file_holds_all_of_it(classified: segae.FinetuneResult, colors: Path) -> None:
    assert list(classified.log["phase"]) == ["frozen", "full", "full", "full"]
    assert classified.scores is not None
    assert classified.scores.as_row()["accuracy"] == classified.log["accuracy"].iloc[-1] == 1
    loaded = segae.load(classified.path)
    assert isinstance(loaded, Classifier)
    assert loaded.info.classes == CLASSES
    images = sorted((colors / "test" / "green").iterdir())
    assert loaded.predict(images) == ["green"] * 4
    assert loaded.predict(images[0]) == "green"
    assert segae.predict(loaded, images[0]) == "green"
    one, other = (model.predict(images, return_probabilities=True) for model in (loaded, classified.model))
    np.testing.assert_allclose(one, other, atol=1e-5)
    config = json.loads((classified.path.parent / "config.json").read_text())
    assert config["task"] == "finetune classify"
    metrics = json.loads((classified.path.parent / "metrics.json").read_text())
    assert (metrics["labels"], metrics["decoder"], metrics["split"]) == (24, "", "val")


def test_the_settings_of_a_run_make_it_again(
    classified: segae.FinetuneResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(classified.path.parent / "config.json")
    cli.main(["finetune", "--config", config, "--out", str(tmp_path / "again")])
    assert segae.models.fingerprint(segae.load(tmp_path / "again" / "model.safetensors").state_dict()) == (
        segae.models.fingerprint(segae.load(classified.path).state_dict())
    )
    settings = {**json.loads(Path(config).read_text()), "task": "classify", "lr": 0.5, "resume": True}
    with pytest.raises(segae.SegaeError, match="lr was 0.01, now 0.5"):
        segae.finetune(out=classified.path.parent, **{name: settings[name] for name in settings if name != "run"})


def test_only_the_head_moves_while_the_encoder_is_frozen(colors: Path, tmp_path: Path, small: Settings) -> None:
    start = segae.create_encoder("test_resnet")
    path = segae.models.save_encoder(start, tmp_path / "encoder.safetensors")
    settings = {**small, "encoder": None, "weights": path, "epochs": 0, "bn_mode": "strict"}
    model = segae.finetune(colors, task="classify", out=tmp_path / "run", **settings).model
    assert all(torch.equal(value, model.encoder.state_dict()[name]) for name, value in start.state_dict().items())


def test_evaluate_counts_images(classified: segae.FinetuneResult, colors: Path, tmp_path: Path) -> None:
    root = tmp_path / "colors"
    for split in ("train", "test"):
        shutil.copytree(colors / split, root / split)
    (root / "test" / "red" / "000.png").rename(root / "test" / "green" / "red.png")  # a wrong label
    scores = segae.evaluate(classified.path, root, out=tmp_path / "scores", device="cpu")
    assert scores.confusion.tolist() == [[4, 1], [0, 3]]
    row = scores.as_row()
    assert row == {"accuracy": 7 / 8, "accuracy_green": 0.8, "accuracy_red": 1.0}
    written = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert {name: written[name] for name in row} == row
    rows = pd.read_csv(tmp_path / "scores" / "per_image.csv").set_index("name")
    assert rows.loc["test/green/red.png", ["truth", "class"]].tolist() == ["green", "red"]
    assert (rows["probability"] > 0.5).all()
    assert pd.read_csv(tmp_path / "scores" / "confusion.csv", index_col="truth").loc["green", "red"] == 1


def test_predict_writes_a_table(classified: segae.FinetuneResult, colors: Path, tmp_path: Path) -> None:
    root = shutil.copytree(colors / "test", tmp_path / "test")
    (root / "red" / "001.png").write_bytes(b"no image")
    (path,) = segae.predict(classified.path, root, out=tmp_path / "out", device="cpu", batch_size=3)
    rows = pd.read_csv(path)
    assert [Path(name).parent.name for name in rows["image"]] == rows["class"].tolist() == ["green"] * 4 + ["red"] * 3
    images = rows["image"].tolist()
    best = classified.model.predict(images, return_probabilities=True).max(axis=1)
    np.testing.assert_allclose(rows["probability"], best, atol=1e-3)
    assert "001.png" in (tmp_path / "out" / "skipped.csv").read_text()


@pytest.mark.parametrize("cache", ["disk", "gpu", "none"])
@pytest.mark.parametrize("encoder", ["test_resnet", "conv_8_4"])
def test_all_caches_and_small_encoders(colors: Path, tmp_path: Path, small: Settings, cache: str, encoder: str) -> None:
    settings = small | {"encoder": encoder, "image_size": 64 if encoder == "test_resnet" else 24}
    (colors / "train" / "red" / "broken.png").write_bytes(b"no image")
    try:
        result = segae.finetune(colors, task="classify", out=tmp_path / "run", labels=8, cache=cache, **settings)
    finally:
        (colors / "train" / "red" / "broken.png").unlink()
    assert list(result.log["images"]) in ([8, 8], [7, 7])
    assert isinstance(segae.load(result.path), Classifier)


def test_label_budgets_are_stratified_and_nested(tmp_path: Path) -> None:
    train = ClassFolders(make_classes(tmp_path, {"a": 40, "b": 10}, size=8)).splits["train"]
    sizes = Counter(folder.name for folder in train.masks)
    some, more = (label_subset(train, count, seed=1) for count in (2, 15))
    assert Counter(folder.name for folder in some.masks) == {"a": 1, "b": 1}
    share = Counter(folder.name for folder in more.masks)["a"] / 15
    assert share == pytest.approx(sizes["a"] / sizes.total(), abs=1 / 15)
    assert list(more.names[:2]) == list(some.names)
    assert list(label_subset(train, 15, seed=2).names) != list(more.names)


def test_a_hash_of_the_names_splits_plain_class_folders(tmp_path: Path) -> None:
    splits = ClassFolders(make_classes(tmp_path, {"a": 40, "b": 10}, size=8)).splits
    assert 2 <= len(splits["test"]) <= 20
    assert len(splits["train"]) + len(splits["test"]) == len({*splits["train"].names, *splits["test"].names}) == 50


def test_pretraining_leaves_the_test_folder_out(colors: Path, tmp_path: Path) -> None:
    report = segae.data.find_pretraining_images([colors], near_duplicates=False)
    left_out = [path for path, reason in report.excluded if reason == "is a test image"]
    assert sorted(left_out) == sorted((colors / "test").rglob("*.png"))
    assert {path.relative_to(colors).parts[0] for path in report.kept} == {"train"}  # val/ repeats test/
    make_classes(tmp_path / "train", {"a": 2}, size=8)  # a folder without a test/ is all for training
    assert len(segae.data.find_pretraining_images([tmp_path]).kept) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "dice"}, "loss must be one of cross_entropy, got 'dice'"),
        ({"merge": ("x=green+red",)}, "merge"),
        ({"lpft_head": True}, "lpft_head"),
        ({"transfer": "encoder+decoder"}, "transfer"),
        ({"image_size": 40}, "image_size must be a multiple of the stride 32, got 40"),
        ({"labels": 100}, "labels must be an integer in \\[1, 24\\], got 100"),
    ],
)
def test_what_classification_cannot_use_is_refused(
    colors: Path, tmp_path: Path, small: Settings, changes: Settings, message: str
) -> None:
    with pytest.raises(segae.SegaeError, match=message):
        segae.finetune(colors, task="classify", out=tmp_path / "run", **(small | changes))


def test_wrong_folders_and_models_are_refused(
    classified: segae.FinetuneResult, colors: Path, pets: Path, tmp_path: Path, small: Settings
) -> None:
    one = make_classes(tmp_path / "one", {"red": 2}, size=8)
    make_classes(tmp_path / "more" / "train", {"red": 2, "green": 2}, size=8)
    more = make_classes(tmp_path / "more" / "test", {"red": 2, "blue": 2}, size=8).parent
    (tmp_path / "bare" / "train").mkdir(parents=True)
    for root, found in (
        (one, "for each of 2 or more classes.*got red"),
        (more, "got green, red"),
        (tmp_path / "bare", "got none"),
    ):
        with pytest.raises(segae.SegaeError, match=f"folder.*{found}"):
            segae.finetune(root, task="classify", out=tmp_path / "run", **small)
    with pytest.raises(segae.DataError, match="A folder per class, as these may be, needs the task classify"):
        segae.finetune(more / "test", out=tmp_path / "run", **small)
    (more / "test" / "blue").rename(more / "train" / "blue")
    with pytest.raises(segae.DataError, match="classes .*green.*got .*blue"):
        segae.evaluate(classified.path, more, device="cpu")
    with pytest.raises(segae.DataError, match="resolution"):
        segae.evaluate(classified.path, colors, resolution="original", device="cpu")
    with pytest.raises(segae.SegaeError, match="model must be a segmenter, got .*classifier"):
        segae.suggest(colors, count=1, model=classified.path, out=tmp_path / "suggest", device="cpu")
    with pytest.raises(segae.SegaeError, match="tile must be left out for a classifier, got 64"):
        segae.predict(classified.path, colors, out=tmp_path / "out", tile=64, device="cpu")
    with pytest.raises(segae.SegaeError, match="coco must be left out for a classifier, got rle"):
        segae.predict(classified.path, colors, out=tmp_path / "out", coco="rle", device="cpu")
    with pytest.raises(segae.SegaeError, match="images must be readable, got 14 of which none is"):
        segae.predict(
            classified.path, [colors / "val", colors / "test"], out=tmp_path / "big", max_pixels=9, device="cpu"
        )
    with pytest.raises(segae.SegaeError, match="num_classes must be an integer >= 2, got 1"):
        segae.create_classifier(segae.create_encoder("test_resnet"), num_classes=1)
    with pytest.raises(segae.SegaeError, match=r"images must be uint8 \(H, W, 3\), got float64"):
        classified.model.predict(np.zeros((8, 8, 3)))
