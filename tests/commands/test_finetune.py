"""``segae.finetune`` from a labeled data set to the files of its run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from PIL import Image

import segae
from segae.applications.trust import TrustScore
from segae.models import Weights, find_weights
from segae.training import finetune_defaults
from tests.fabricate import make_folder, save

Settings = dict[str, Any]
pytestmark = pytest.mark.usefixtures("without_pictures")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def cells(shared: Path) -> Path:
    """8 training, 3 validation and 3 test images of two classes."""
    return make_folder(shared / "cells", 8, 3, val=3, classes=("ground", "cell"))


@pytest.fixture
def quick(small: Settings) -> Settings:
    return small | {"batch_size": 4, "freeze_epochs": 0}


def test_the_run_folder_holds_everything(finetuned: segae.FinetuneResult, denoised: segae.PretrainResult) -> None:
    folder, info = finetuned.path.parent, finetuned.model.info
    assert (info.encoder.weights, info.image_size) == (denoised.encoder.info.weights, 64)
    assert info.training["pretrain_images"] == denoised.encoder.info.pretraining["images"]
    assert not {"seconds", "date"} & set(info.training)
    metrics, config = read(folder / "metrics.json"), read(folder / "config.json")
    assert config["lr_ratio"] == metrics["lr_ratio"] == finetune_defaults(Weights("random", "denoise")).lr_ratio
    assert (metrics["method"], metrics["method_args"]["sigma"], metrics["weights"]) == ("denoise", 0.5, "random")
    assert metrics["labels"] < 14  # the others are for validation
    assert list(finetuned.log["phase"]) == ["frozen", "full"]
    assert finetuned.scores is not None
    assert finetuned.scores.miou == pytest.approx(finetuned.log["miou"].iloc[-1], abs=1e-6)
    for picture in ("sheet.png", "curves.png"):
        assert np.asarray(Image.open(folder / picture).convert("RGB")).std() > 5
    unet = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3).eval()
    unet.load_state_dict(weights(finetuned.path), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        # the trained weights are channels_last
        torch.testing.assert_close(unet(images), finetuned.model.eval()(images), atol=1e-3, rtol=1e-2)


def test_the_test_split_is_never_read(pets: Path, tmp_path: Path, quick: Settings) -> None:
    spoilt = shutil.copytree(pets, tmp_path / "pets")
    for line in (spoilt / "annotations" / "test.txt").read_text().splitlines():
        (spoilt / "images" / f"{line.split()[0]}.jpg").write_bytes(b"no image")
    for name, root in (("whole", pets), ("spoilt", spoilt)):
        segae.finetune(root, out=tmp_path / name, labels=4, val_fraction=0.0, **quick)
    assert same(tmp_path / "whole" / "model.safetensors", tmp_path / "spoilt" / "model.safetensors")
    assert not (tmp_path / "spoilt" / "skipped.csv").exists()


def test_encoder_and_decoder_are_transferred(
    pets: Path, masked: segae.PretrainResult, tmp_path: Path, quick: Settings
) -> None:
    settings = quick | {"weights": masked.path, "transfer": "encoder+decoder", "freeze_epochs": 1, "epochs": 0}
    result = segae.finetune(pets, out=tmp_path / "run", bn_mode="strict", **settings)
    start, after = weights(masked.path), weights(result.path)
    assert all(torch.equal(after[f"encoder.{name}"], value) for name, value in start.items())
    config = read(tmp_path / "run" / "config.json")
    assert config["lpft_head"] is True  # what suits pseudo masks with their decoder
    assert str(result.model.info.encoder.weights) == "random+pseudo_masks:color+decoder"
    alone = Path(shutil.copy(masked.path, tmp_path / "encoder.safetensors"))
    for start, message in ((alone, "decoder"), ("random", "weights must be")):
        with pytest.raises(segae.SegaeError, match=message):
            segae.finetune(pets, out=tmp_path / "none", **(settings | {"weights": start}))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("given", ["name", "file"])
def test_the_name_of_published_weights_is_noted(pets: Path, tmp_path: Path, quick: Settings, given: str) -> None:
    start = find_weights("pets_pseudo_masks") if given == "file" else "pets_pseudo_masks"
    settings = {name: value for name, value in quick.items() if name != "encoder"} | {"max_steps": 1}
    segae.finetune(pets, out=tmp_path / "run", weights=start, **settings)
    assert read(tmp_path / "run" / "metrics.json")["weights_source"] == "published weights pets_pseudo_masks"


def test_a_val_split_is_used_for_validation(cells: Path, tmp_path: Path, quick: Settings) -> None:
    result = segae.finetune(cells, out=tmp_path / "run", **quick)
    assert result.scores is not None
    assert len(result.scores.per_image) == 3
    metrics = read(tmp_path / "run" / "metrics.json")
    assert (metrics["labels"], metrics["training_images"], metrics["split"]) == (8, 8, "val")


@pytest.mark.parametrize(("labels", "count"), [(0.5, 4), (3, 3), (None, 8)])
def test_label_budgets_are_numbers_or_shares(
    cells: Path, tmp_path: Path, quick: Settings, labels: float | None, count: int
) -> None:
    result = segae.finetune(cells, out=tmp_path / "run", labels=labels, epoch_images=6, **quick)
    assert read(tmp_path / "run" / "metrics.json")["labels"] == count
    assert list(result.log["images"]) == [6]  # every budget sees as many images


def test_classes_are_merged_and_the_loss_is_dice(pets: Path, tmp_path: Path, quick: Settings) -> None:
    merge = ("foreground=pet+border",)
    result = segae.finetune(pets, out=tmp_path / "run", merge=merge, loss="dice", augment=False, **quick)
    assert result.model.info.classes == ("foreground", "background")
    assert 0 < result.log["train_loss"].iloc[0] < 1
    scores = segae.evaluate(result.path, pets, device="cpu")  # merged as in the training
    assert scores.classes == ("foreground", "background")


def test_an_interrupted_run_resumes_bit_for_bit(
    pets: Path, tmp_path: Path, quick: Settings, interrupt: Callable[[int], None]
) -> None:
    settings = quick | {"freeze_epochs": 1, "labels": 6, "recalibrate": True}
    whole = segae.finetune(pets, out=tmp_path / "whole", **settings)
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        segae.finetune(pets, out=tmp_path / "parts", **settings)
    with pytest.raises(segae.SegaeError, match="lr was 0.004, now 0.5"):
        segae.finetune(pets, out=tmp_path / "parts", resume=True, **(settings | {"lr": 0.5}))
    parts = segae.finetune(pets, out=tmp_path / "parts", resume=True, **settings)
    assert same(whole.path, parts.path)
    assert list(parts.log["train_loss"]) == list(whole.log["train_loss"])


def test_one_unreadable_image_is_skipped_and_does_not_change_the_budget(
    cells: Path, tmp_path: Path, quick: Settings
) -> None:
    root = shutil.copytree(cells, tmp_path / "cells")
    (root / "images" / "n1.png").write_bytes((root / "images" / "n1.png").read_bytes()[:100])
    segae.finetune(root, out=tmp_path / "run", **quick)
    metrics = read(tmp_path / "run" / "metrics.json")
    assert (metrics["labels"], metrics["label_fraction"], metrics["training_images"]) == (8, 1.0, 7)
    assert "n1.png" in (tmp_path / "run" / "skipped.csv").read_text()


def test_what_would_fail_or_mislead_at_the_end_is_said_before_training(
    cells: Path, tmp_path: Path, quick: Settings
) -> None:
    other = shutil.copytree(cells, tmp_path / "other")
    save(np.zeros((20, 48), np.uint8), other / "masks" / "n12.png")  # of a test image
    single = shutil.copytree(cells, tmp_path / "single")
    for path in (single / "masks").iterdir():
        save(np.zeros((64, 64), np.uint8), path)
    for root, message in ((other, "n12.png"), (single, "one class")):
        with pytest.raises(segae.DataError, match=message):
            segae.finetune(root, out=tmp_path / "run", **quick)
    assert not (tmp_path / "run").exists()


def test_gradient_checkpointing_changes_no_weight(cells: Path, tmp_path: Path, quick: Settings) -> None:
    for name, thrifty in (("plain", False), ("thrifty", True)):
        segae.finetune(cells, out=tmp_path / name, labels=4, gradient_checkpointing=thrifty, **quick)
    assert same(tmp_path / "plain" / "model.safetensors", tmp_path / "thrifty" / "model.safetensors")


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_weights(
    cells: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_model = torch.nn.Module.compile
    # traced and cut into graphs, but not turned into machine code, which takes minutes on a CPU
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_model(self, backend="eager"))
    for name in ("plain", "compiled"):
        segae.finetune(cells, out=tmp_path / name, labels=4, compile=name == "compiled", **quick)
    one, other = (weights(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert list(one) == list(other)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_a_trust_score_of_training_and_validation_images_lies_beside_the_model(
    finetuned: segae.FinetuneResult,
) -> None:
    trust = TrustScore.load(finetuned.path.with_name("trust.npz"), segae.load_segmenter(finetuned.path))
    assert trust.features.shape[0] + len(trust.held_out) == 14
