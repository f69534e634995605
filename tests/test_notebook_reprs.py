"""What objects show of themselves: a line in a console, a small table in notebooks, no tensor and no long table."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import segae
from segae.evaluation.classification import ClassificationScores
from tests.fabricate import make_folder, make_images, make_pets

LONGEST = 700  # characters of a repr


@pytest.fixture(scope="module")
def encoder() -> segae.Encoder:
    return segae.create_encoder("test_resnet")


def rows_of(shown: Any) -> dict[str, str]:
    """The rows of an object's table in a notebook by name, as text; the markup must be well-formed."""
    text = shown._repr_html_()
    tree = ElementTree.fromstring(re.sub(r"(<img [^>]*)>", r"\1/>", text))
    assert tree.find("caption").text == type(shown).__name__
    return {row[0].text: "".join(row[1].itertext()) for row in tree.findall("tr")}


def pictures_of(shown: Any) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([^']+)'", shown._repr_html_())
    return [np.array(Image.open(io.BytesIO(b64decode(text)))) for text in found]


def test_an_encoder_says_what_it_is_and_where_its_weights_come_from(encoder: segae.Encoder, tmp_path: Path) -> None:
    rows = rows_of(encoder)
    assert rows["architecture"] == "test_resnet"
    assert rows["parameters"] == f"{sum(one.numel() for one in encoder.parameters()):,}"
    assert (rows["weights"], rows["source"]) == ("random", "random initialization")
    assert "test_resnet" in repr(encoder)
    assert "Conv2d" not in repr(encoder)
    assert len(repr(encoder)) < LONGEST
    assert "Conv2d" in torch.nn.Module.__repr__(encoder)  # the layers
    loaded = segae.load_encoder("pets_pseudo_masks")
    assert rows_of(loaded)["weights"] == str(loaded.info.weights) != "random"
    assert f"{loaded.info.pretraining['images_seen']:,}" in rows_of(loaded)["pretraining"]


def test_models_on_an_encoder_name_their_parts(encoder: segae.Encoder) -> None:
    rows = rows_of(segae.create_autoencoder(encoder, method="spark"))
    assert (rows["encoder"], rows["masking"]) == ("test_resnet", "sparse")
    classifier = segae.create_classifier(encoder, num_classes=["cat", "<dog>"], image_size=64)
    assert rows_of(classifier)["classes"] == "cat, <dog>"
    assert "&lt;dog&gt;" in classifier._repr_html_()
    many = segae.create_segmenter(encoder, num_classes=100, image_size=64)
    assert len(repr(many)) < LONGEST
    assert rows_of(many)["classes"].endswith("and 76 more")
    assert pictures_of(many) == []


def test_a_segmenter_of_pets_shows_its_colors_and_a_mask(encoder: segae.Encoder) -> None:
    torch.manual_seed(0)
    palette = ((230, 85, 13), (49, 54, 80))
    model = segae.create_segmenter(encoder, num_classes=["pet", "background"], palette=palette, image_size=64).train()
    random = torch.get_rng_state()
    assert "#e6550d" in model._repr_html_()
    (picture,) = pictures_of(model)
    image, painted = np.split(picture, 2, axis=1)
    assert image.std() > 10
    assert np.array_equal(painted, np.array(palette)[model.predict(image)])
    assert model.training  # as it was
    assert torch.equal(torch.get_rng_state(), random)


def test_a_data_set_shows_its_splits_and_classes_without_reading_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = segae.data.open_dataset(make_folder(tmp_path / "cells", 3, 2, size=32, values=(0, 1, 255)))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    rows = rows_of(dataset)
    assert rows["images"] == "train 3, test 2"
    assert rows["classes"].split() == ["class_0", "class_1"]
    assert rows["values that do not count"] == "255"
    assert repr(dataset).startswith("SegmentationFolder(")
    assert len(repr(dataset)) < LONGEST
    assert dataset.replace(name="other").name == "other"


def test_scores_are_a_table_of_classes() -> None:
    metrics = segae.evaluation.SegmentationMetrics(("pet", "ground"))
    metrics.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    scores = metrics.compute()
    assert rows_of(scores)["miou"] == f"{scores.miou:.3f}"
    assert rows_of(scores)["classes"] == "classIoUshare of pixelspet0.50050.0%ground0.66750.0%"
    assert "DataFrame" not in repr(scores)
    assert len(repr(scores)) < LONGEST
    images = pd.DataFrame({"name": ["a", "b"]})
    assert rows_of(ClassificationScores(("cat", "dog"), np.array([[1, 0], [1, 0]]), images))["accuracy"] == "0.500"


def test_results_of_trainings_show_the_model_and_its_curves(tmp_path: Path) -> None:
    pets = make_pets(tmp_path / "pets", 6, 2, size=32)
    small: dict[str, Any] = {"image_size": 32, "batch_size": 4, "device": "cpu", "threads": 1, "max_steps": 1}
    how: dict[str, Any] = {"out": tmp_path / "pretrain", "encoder": "test_resnet", "method": "denoise", "epochs": 1}
    pretrained = segae.pretrain(make_images(tmp_path / "photos", 6, size=32), **how, **small)
    how = {"weights": pretrained.path, "out": tmp_path / "finetune", "decoder": "linear", "epochs": 0}
    finetuned = segae.finetune(pets, **how, **small)
    for result in (pretrained, finetuned):
        rows = rows_of(result)
        assert rows["path"] == str(result.path)
        assert "test_resnet" in rows["model"]
        assert len(repr(result)) < LONGEST
        assert pictures_of(result)[-1].shape[2] == 4  # curves.png
    assert rows_of(finetuned)["validation miou"] == f"{finetuned.scores.miou:.3f}"


def test_the_report_of_a_check_is_a_table(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "<cells>", 3, 2, size=32)
    (root / "masks" / "n1.png").write_bytes(b"nothing")
    report = segae.check_data(root)
    rows = rows_of(report)
    assert rows["images"] == "train 3, test 2"
    assert "masks/n1.png" in rows["problems"]
    assert rows["next"].startswith("segae finetune ")
    assert len(repr(report)) < LONGEST
    assert str(report) != repr(report)
