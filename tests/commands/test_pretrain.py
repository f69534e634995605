"""``segae.pretrain`` from images to the files of its run folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

import segae
from segae.methods import Corrupted
from tests.fabricate import make_images

Settings = dict[str, Any]
pytestmark = pytest.mark.usefixtures("without_pictures")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def assert_equal(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def is_picture(path: Path) -> bool:
    return np.asarray(Image.open(path).convert("RGB")).std() > 5


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_run_folder_holds_everything(pets: Path, denoised: segae.PretrainResult) -> None:
    folder, info = denoised.path.parent, denoised.encoder.info
    assert (str(info.weights), info.weights.method, info.image_size) == ("random+denoise", "denoise", 64)
    assert info.pretraining["images"] == 20  # 14 training and 6 unlabeled ones: none of the test split
    assert 0 < info.pretraining["images_seen"] <= 40
    assert denoised.decoder_path is None  # plain cannot segment
    assert list(denoised.log["epoch"]) == [1, 2]
    assert {"train_loss", "valid_loss", "r2", "seconds"} <= set(denoised.log)
    config, metrics = read(folder / "config.json"), read(folder / "metrics.json")
    assert (config["method_args"]["sigma"], config["lr"], config["decoder"]) == (0.5, 1e-3, "plain")
    assert (config["run"]["cache"], metrics["excluded_images"]) == ("disk", 4)
    assert metrics["seconds"] > 0
    assert is_picture(folder / "curves.png")
    assert is_picture(folder / "reconstructions.png")
    loaded, images = segae.load(folder / "autoencoder.safetensors"), torch.randn(2, 3, 64, 64)
    expected = denoised.autoencoder.eval().reconstruct(images)  # of channels_last weights
    torch.testing.assert_close(loaded.eval().reconstruct(images), expected, atol=1e-3, rtol=1e-3)


def test_the_encoder_has_statistics_of_clean_images_and_what_restores_of_corrupted_ones(
    pets: Path, tmp_path: Path, small: Settings
) -> None:
    found = {}
    for method in ("reconstruct", "inpaint"):
        result = segae.pretrain(pets / "images", method=method, out=tmp_path / method, **small)
        encoder, autoencoder = segae.load(result.path), segae.load(tmp_path / method / "autoencoder.safetensors")
        first = next(name for name in encoder.state_dict() if name.endswith("running_var"))
        found[method] = encoder.state_dict()[first], autoencoder.encoder.state_dict()[first]
        assert torch.equal(result.encoder.state_dict()[first], found[method][0])
        assert torch.equal(result.autoencoder.encoder.state_dict()[first], found[method][1])
    assert torch.equal(*found["reconstruct"])
    clean, seen = found["inpaint"]
    # 60 % of the image is hidden, which is zeros
    assert 0.2 < (seen / clean).mean() < 0.8


def test_defaults_are_pseudo_masks_by_color(masked: segae.PretrainResult) -> None:
    config = read(masked.path.parent / "config.json")
    assert (config["method"], config["method_args"]["source"], config["lr"]) == ("pseudo_masks", "color", 0.002)
    assert config["decoder"] == "unet"
    assert masked.decoder_path is not None
    assert masked.decoder_path.is_file()


def test_equal_runs_give_equal_files_without_seconds_and_dates(pets: Path, tmp_path: Path, small: Settings) -> None:
    for name in ("one", "two"):
        segae.pretrain(pets, out=tmp_path / name, method="denoise", decoder="unet", **small)
    for file in ("encoder.safetensors", "encoder.json", "decoder.safetensors", "autoencoder.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_an_interrupted_run_resumes_bit_for_bit(
    pets: Path, tmp_path: Path, small: Settings, interrupt: Callable[[int], None]
) -> None:
    """Decoder phase, repeated images, penalty, hard masks and probe; the folder is moved in between."""
    settings = small | {"method": "inpaint", "probe": pets, "val_fraction": 0.2, "freeze_epochs": 1, "repeats": 2}
    settings |= {"distance_penalty": 0.1, "hard_mask_fraction": 0.5, "epochs": 2}
    whole = segae.pretrain(pets, out=tmp_path / "whole", **settings)
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        segae.pretrain(pets, out=tmp_path / "parts", **settings)
    shutil.move(tmp_path / "parts", tmp_path / "moved")
    parts = segae.pretrain(pets, out=tmp_path / "moved", resume=True, **settings)
    assert_equal(whole.path, parts.path)
    assert list(parts.log["phase"]) == ["decoder", "pretrain", "pretrain"]
    for column in ("train_loss", "valid_loss", "probe_miou"):
        assert list(parts.log[column]) == list(whole.log[column])
    assert parts.log["probe_miou"].between(0, 1).all()
    assert pd.read_csv(tmp_path / "moved" / "log.csv")["images"][0] >= 2 * 12


@segae.register_method("look")
class Look(segae.Method):
    """Give back the image; count what the encoder looked like when it was asked."""

    seen: ClassVar[list[Any]] = []

    def corrupt(self, images, generator, difficulty=None):
        return Corrupted(images)

    def loss(self, prediction, target, mask):
        return (prediction - target).square().mean()

    def prepare(self, encoder, batches):
        Look.seen.append(([value.clone() for value in encoder.parameters()], sum(map(len, batches))))


def test_a_method_of_ones_own_is_prepared_with_the_start_of_a_resumed_run_too(
    pets: Path, tmp_path: Path, small: Settings, interrupt: Callable[[int], None]
) -> None:
    settings = small | {"method": "look", "epochs": 2, "val_fraction": 0.0}
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        segae.pretrain(pets, out=tmp_path / "run", **settings)
    result = segae.pretrain(pets, out=tmp_path / "run", resume=True, **settings)
    (first, images), (second, again) = Look.seen
    assert images == again == 16  # two whole batches of 20 images
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert result.encoder.info.weights.method == "look"
    with pytest.raises(segae.SegaeError, match="method_args must be empty"):
        segae.pretrain(pets, method=Look(), method_args={"sigma": 1}, out=tmp_path / "other")


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_eval_mode_keeps_the_statistics_of_the_start(
    pets: Path, denoised: segae.PretrainResult, tmp_path: Path, small: Settings
) -> None:
    before = weights(denoised.path)
    for mode in ("eval", "train"):
        settings = small | {"weights": denoised.path, "method": "denoise", "bn_mode": mode}
        result = segae.pretrain(pets, out=tmp_path / mode, **settings)
        after = weights(result.path)
        same = [torch.equal(after[name], before[name]) for name in before if name.endswith("running_mean")]
        assert all(same) if mode == "eval" else not any(same)
        assert not all(torch.equal(after[name], before[name]) for name in before)
    assert str(result.encoder.info.weights) == "random+denoise+denoise"
    assert result.encoder.info.weights.start == "random+denoise"


def test_decoder_denoising_leaves_an_encoder_as_it_was_and_gives_random_weights_statistics(
    pets: Path, denoised: segae.PretrainResult, tmp_path: Path, small: Settings
) -> None:
    kept = segae.pretrain(pets, out=tmp_path / "kept", weights=denoised.path, method="ddep", **small)
    assert_equal(denoised.path, kept.path)
    fresh = segae.pretrain(pets, out=tmp_path / "fresh", method="ddep", seed=3, **small)
    torch.manual_seed(3)
    before, after = segae.create_encoder("test_resnet").state_dict(), weights(fresh.path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(filter(is_statistic, before))
    with pytest.raises(segae.SegaeError, match="transfer must be encoder[+]decoder"):
        segae.finetune(pets, out=tmp_path / "alone", weights=fresh.path, device="cpu")
    assert not (tmp_path / "alone").exists()


def test_overwriting_leaves_nothing_of_the_earlier_run(pets: Path, tmp_path: Path, small: Settings) -> None:
    out = tmp_path / "run"
    segae.pretrain(pets, out=out, method="denoise", decoder="unet", **small)
    assert (out / "decoder.safetensors").exists()
    with pytest.raises(segae.SegaeError, match="out must be a new folder"):
        segae.pretrain(pets, out=out, method="inpaint", **small)
    segae.pretrain(pets, out=out, method="inpaint", decoder="plain", overwrite=True, **small)
    assert not list(out.glob("decoder.*"))


def test_changed_copies_of_test_images_are_left_out_and_listed(pets: Path, tmp_path: Path, small: Settings) -> None:
    more = make_images(tmp_path / "more", 8, seed=5)
    test = (pets / "annotations" / "test.txt").read_text().split()[0]
    image = Image.open(pets / "images" / f"{test}.jpg")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((80, 80)).save(more / "mirrored.png")
    shutil.copy(pets / "images" / f"{test}.jpg", more / "copy.jpg")
    result = segae.pretrain([pets, more], out=tmp_path / "run", method="denoise", **small)
    listed = pd.read_csv(tmp_path / "run" / "skipped.csv")["path"]
    assert sum(listed.str.endswith(("mirrored.png", "copy.jpg"))) == 2
    assert read(tmp_path / "run" / "metrics.json")["excluded_images"] == len(listed) == 6
    assert result.encoder.info.pretraining["images"] == 28
    kept = segae.pretrain([pets, more], out=tmp_path / "b", method="denoise", near_duplicates=False, **small)
    assert kept.encoder.info.pretraining["images"] == 29


def test_a_trial_run_stops_after_its_steps(pets: Path, tmp_path: Path, small: Settings) -> None:
    result = segae.pretrain(pets, out=tmp_path / "run", method="denoise", max_steps=2, **(small | {"epochs": 9}))
    assert list(result.log["images"]) == [16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "spark", "method_args": {"patch_size": 48}}, "patch_size"),
        ({"method": "inpaint", "upsampling": "transposed", "decoder": "unet"}, "upsampling must be nearest"),
        ({"method": "inpaint", "decoder": "pan"}, "decoder pan"),
        ({"method": "spark", "output_activation": "sigmoid"}, "output_activation must be none"),
        ({"method": "denoise", "encoder_lr_ratio": 0.0}, "encoder_lr_ratio must be"),
        ({"method": "denois"}, "did you mean denoise"),
        ({"method": "pseudo_masks", "method_args": {"source": "features"}}, "weights must be pretrained"),
        ({"method": "denoise", "method_args": {"mask_ratio": 0.75}}, "sigma"),
        ({"method": "denoise", "skip_dropout": 0.5}, "skip_dropout must be"),
        ({"method": "ddep", "decoder": "plain"}, "decoder must be one of unet.*got plain"),
        ({"method": "ddep", "distance_penalty": 0.1}, "distance_penalty must be 0.0 .*got 0.1"),
        ({"method": "ddep", "bn_mode": "eval"}, "bn_mode must be train .*got eval"),
        ({"method": "spark", "gradient_checkpointing": True}, "masking must be dense"),
        ({"method": "denoise", "accumulate": 3}, "accumulate must be a divisor of batch_size 8, got 3"),
        ({"method": "denoise", "epoch_images": 100}, "epoch_images must be None"),
        ({"method": "denoise", "cache": "gpu", "workers": 2}, "workers must be 0 .*got 2"),
        ({"encoder": "test_convnext", "weights": "ENCODER"}, "encoder must be test_resnet.*test_convnext"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_before_anything_is_written(
    pets: Path, denoised: segae.PretrainResult, tmp_path: Path, small: Settings, settings: Settings, message: str
) -> None:
    if "weights" in settings:
        settings = settings | {"weights": denoised.path}
    with pytest.raises(segae.SegaeError, match=message):
        segae.pretrain(pets, out=tmp_path / "run", **(small | settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mode", "method", "stay"), [("eval", "denoise", True), ("train", "denoise", False),
                                                      ("train", "ddep", True)])  # fmt: skip
def test_the_probe_sees_statistics_like_those_that_will_be_saved(
    pets: Path,
    denoised: segae.PretrainResult,
    tmp_path: Path,
    small: Settings,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    method: str,
    stay: bool,
) -> None:
    seen: dict[str, torch.Tensor] = {}
    module = sys.modules["segae.commands.pretrain"]
    monkeypatch.setattr(module, "linear_probe", lambda encoder, **_: seen.update(encoder.state_dict()) or 0.5)
    settings = small | {"weights": denoised.path, "method": method, "bn_mode": mode, "probe": pets, "max_steps": 1}
    result = segae.pretrain(pets, out=tmp_path / "run", **settings)
    assert list(result.log["probe_miou"]) == [0.5]
    start = weights(denoised.path)
    assert all(torch.equal(seen[name], start[name]) for name in start if name.endswith("running_mean")) == stay


def test_the_probe_reads_no_test_image(pets: Path, tmp_path: Path, small: Settings) -> None:
    spoilt, scores = shutil.copytree(pets, tmp_path / "spoilt"), []
    for line in (spoilt / "annotations" / "test.txt").read_text().splitlines():
        (spoilt / "images" / f"{line.split()[0]}.jpg").write_bytes(b"no image")
        (spoilt / "annotations" / "trimaps" / f"{line.split()[0]}.png").write_bytes(b"no mask")
    for root in (pets, spoilt):
        settings = small | {"method": "denoise", "probe": root, "max_steps": 1}
        scores += list(segae.pretrain(pets, out=tmp_path / f"{len(scores)}", **settings).log["probe_miou"])
    assert scores[0] == scores[1]
