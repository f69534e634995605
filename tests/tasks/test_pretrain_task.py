"""`segae pretrain` keeps its promises in the files that it writes."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from segae.cli import main
from segae.errors import SegaeError
from segae.models.encoder import create_encoder, load_encoder
from segae.objectives.feature_layers import FeatureLayers
from segae.objectives.presets import make_objective
from segae.tasks.arms import parse_arm, pretraining_of
from segae.tasks.compare import Compare
from segae.tasks.pretrain import Pretrain, make_phases, run
from segae.tasks.segment import Segment
from segae.tasks.segment import run as segment
from segae.tasks.settings import _NO_MATTER, settings_of
from segae.training.run import seed_everything

SMALL = {"encoder": "test_resnet", "image_size": 64, "batch_size": 8, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "14", "--test", "4", "--unlabelled", "6", "--size", "64"])
    return root


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_eval_mode_saves_the_statistics_that_the_encoder_came_with(pets, tmp_path):
    run(Pretrain(data=(pets,), out=tmp_path / "first", objective="denoise", **SMALL))
    start = tmp_path / "first" / "encoder.safetensors"
    for mode in ("eval", "train"):
        run(Pretrain(data=(pets,), out=tmp_path / mode, init=str(start), objective="denoise", bn_mode=mode, **SMALL))
    before, kept = weights(start), weights(tmp_path / "eval" / "encoder.safetensors")
    moved = weights(tmp_path / "train" / "encoder.safetensors")
    for name in filter(is_statistic, before):
        assert torch.equal(kept[name], before[name])
    assert not any(torch.equal(moved[name], before[name]) for name in before if name.endswith("running_mean"))
    assert not all(torch.equal(kept[name], before[name]) for name in before)
    _, description = load_encoder(tmp_path / "train" / "encoder.safetensors")
    assert description.init == "ae:denoise+ae:denoise"
    assert "bn_mode train" in str(description.pretraining["settings"])


def test_decoder_denoising_leaves_the_encoder_as_it_was(pets, tmp_path):
    run(Pretrain(data=(pets,), out=tmp_path / "first", objective="mask", **SMALL))
    start = tmp_path / "first" / "encoder.safetensors"
    run(Pretrain(data=(pets,), out=tmp_path / "second", init=str(start), objective="decoder_denoise", **SMALL))
    before, after = weights(start), weights(tmp_path / "second" / "encoder.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (tmp_path / "second" / "decoder.safetensors").exists()


def test_what_is_not_asked_for_is_what_pays(pets, tmp_path):
    run(Pretrain(data=(pets,), out=tmp_path / "run", **SMALL))
    assert load_encoder(tmp_path / "run" / "encoder.safetensors")[1].init == "ae:layers"
    assert (tmp_path / "run" / "decoder.safetensors").exists()
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (resolved["lr"], resolved["decoder"], resolved["noise_sigma"]) == (0.002, "unet", None)


def test_what_the_start_knows_is_asked_again_when_a_run_is_resumed(pets, tmp_path, monkeypatch):
    run(Pretrain(data=(pets,), out=tmp_path / "first", objective="layers", **SMALL))
    start = tmp_path / "first" / "encoder.safetensors"
    config = Pretrain(data=(pets,), out=tmp_path / "whole", init=str(start), objective="feature_layers", **SMALL)
    config = replace(config, epochs=2)
    asked: list[dict[str, torch.Tensor]] = []
    fit = FeatureLayers.fit

    def ask(self: FeatureLayers, encoder: torch.nn.Module, batches: object) -> FeatureLayers:
        asked.append({name: value.clone() for name, value in encoder.state_dict().items()})
        return fit(self, encoder, batches)

    monkeypatch.setattr(FeatureLayers, "fit", ask)
    run(config)
    monkeypatch.setattr("segae.training.fit.print_epoch", lambda row: 1 / (2 - row["epoch"]))  # fails after the second
    with pytest.raises(ZeroDivisionError):
        run(replace(config, out=tmp_path / "parts"))
    monkeypatch.undo()
    monkeypatch.setattr(FeatureLayers, "fit", ask)
    run(replace(config, out=tmp_path / "parts", resume=True))
    assert len(asked) == 3
    for encoder in asked:
        assert all(torch.equal(value, weights(start)[name]) for name, value in encoder.items())
    whole, parts = (weights(tmp_path / name / "encoder.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert load_encoder(tmp_path / "parts" / "encoder.safetensors")[1].init == "ae:layers+ae:feature_layers"


def test_overwriting_leaves_nothing_of_the_old_run(pets, tmp_path):
    out = tmp_path / "run"
    run(Pretrain(data=(pets,), out=out, objective="denoise", decoder="unet", **SMALL))
    old = {path.name for path in out.iterdir()}
    assert "decoder.safetensors" in old
    run(Pretrain(data=(pets,), out=out, objective="mask", overwrite=True, **SMALL))
    assert not (out / "decoder.safetensors").exists(), "a decoder of another run would be transferred"
    assert not (out / "decoder.json").exists()
    assert {path.name for path in out.iterdir()} == old - {"decoder.safetensors", "decoder.json"}


def test_a_decoder_of_another_run_is_refused(pets, tmp_path):
    for objective in ("denoise", "mask"):
        run(Pretrain(data=(pets,), out=tmp_path / objective, objective=objective, decoder="unet", **SMALL))
    other = (tmp_path / "denoise" / "decoder.safetensors").read_bytes()
    (tmp_path / "mask" / "decoder.safetensors").write_bytes(other)
    words = ["--init", str(tmp_path / "mask" / "encoder.safetensors"), "--transfer", "encoder+decoder"]
    with pytest.raises(SystemExit) as stop:
        main(["segment", "--data", str(pets), "--out", str(tmp_path / "s"), "--encoder", "test_resnet", *words])
    assert stop.value.code == 2


def test_a_run_with_everything_resumes_bit_for_bit(pets, tmp_path, monkeypatch):
    """Decoder phase, repeated images, penalty, hard masks, probe: stopped after the first epoch, then resumed."""
    config = Pretrain(
        data=(pets,),
        out=tmp_path / "whole",
        objective="mixture",
        probe=pets,
        val_fraction=0.2,
        freeze_epochs=1,
        repeats=2,
        distance_penalty=0.1,
        hard_mask_share=0.5,
        **{**SMALL, "epochs": 2},
    )
    run(config)

    from segae.training import fit as fit_module

    class Killed(Exception):
        pass

    def kill(row: dict) -> None:
        if row["epoch"] == 2:
            raise Killed("now")  # before this epoch is saved: the first one was

    monkeypatch.setattr(fit_module, "print_epoch", kill)
    with pytest.raises(Killed):
        run(replace(config, out=tmp_path / "parts"))
    monkeypatch.undo()
    run(replace(config, out=tmp_path / "parts", resume=True))
    whole, parts = (
        weights(tmp_path / "whole" / "encoder.safetensors"),
        weights(tmp_path / "parts" / "encoder.safetensors"),
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with (tmp_path / "parts" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["decoder", "pretrain", "pretrain"]
    assert int(rows[0]["images"]) >= 2 * 12
    assert all(0 <= float(row["probe_miou"]) <= 1 for row in rows)
    assert all(np.isfinite(float(row["feature_rank"])) for row in rows)


def test_the_configuration_of_a_run_configures_other_arms(pets, tmp_path):
    out = tmp_path / "run"
    run(Pretrain(data=(pets,), out=out, objective="sparse_mask", lr=0.002, seed=3, **SMALL))
    config = Compare(data=pets, encoder="test_resnet", pretrain_config=out / "config.json")
    same = pretraining_of(config, parse_arm("ae:sparse_mask"), 0)
    assert (same.lr, same.patch, same.decoder, same.seed) == (0.002, 32, "hierarchical", 0)
    other = pretraining_of(config, parse_arm("imagenet+ae:mixture"), 0)
    assert (other.lr, other.patch, other.decoder) == (0.002, 16, "unet")
    assert other.encoder_lr_ratio < 1
    assert other.freeze_epochs == 1


@pytest.mark.parametrize("content", [{"epochs": "20"}, {"epochs": None}, {"warmup": "a"}, {"bn_mode": "strict"}])
def test_values_of_another_type_are_refused(pets, tmp_path, content):
    path = tmp_path / "pretrain.json"
    path.write_text(json.dumps(content))
    config = Compare(data=pets, pretrain_config=path)
    with pytest.raises(SegaeError, match=f"does not configure a pretraining [(]{next(iter(content))}"):
        pretraining_of(config, parse_arm("ae:mask"), 0)


def test_every_setting_of_a_pretraining_makes_it_another_one(pets, tmp_path):
    base = {"image_size": 64, "patch": 16}
    path = tmp_path / "pretrain.json"

    def digest(**more) -> str:
        path.write_text(json.dumps({**base, **more}))
        return settings_of(Compare(data=pets, encoder="test_resnet", pretrain_config=path), "ae:mixture", 0)[0]

    plain = digest()
    assert digest(boundary=0.01) == plain  # no use for it: of a file for several arms it is the others'
    others = {
        "target": "gradients", "decoder": "fpn", "image_size": 96, "epochs": 3, "repeats": 2, "batch_size": 7,
        "lr": 0.1, "warmup": 0.2, "weight_decay": 0.3, "freeze_epochs": 2, "encoder_lr_ratio": 0.5, "bn_mode": "eval",
        "distance_penalty": 0.1, "noise_sigma": 0.1, "patch": 8, "mask_ratio": 0.3, "hard_mask_share": 0.1,
        "skip_dropout": 0.5,
        "upsampling": "transposed", "output_activation": "tanh", "code_channels": 9, "val_fraction": 0.2,
        "patience": 3, "precision": "bfloat16", "micro_batch": 4,
    }  # fmt: skip
    arms = {"encoder", "init", "objective", "seed"}
    assert {*others, "boundary"} == {field.name for field in fields(Pretrain)} - set(_NO_MATTER) - arms
    for name, value in others.items():
        assert digest(**{name: value}) != plain, name


@pytest.mark.parametrize(
    ("arm", "then"), [("ae:layers", 0.0), ("imagenet+ae:feature_layers", 1 / 48), ("ae:otsu", 1 / 96)]
)
def test_a_run_from_before_the_boundary_was_a_setting_is_the_same_one(pets, tmp_path, arm, then):
    """Rows that are older keep their digest, so that they are not computed again; what has another boundary is new."""
    path = tmp_path / "pretrain.json"

    def digest(**more) -> str:
        path.write_text(json.dumps({"image_size": 64, **more}))
        return settings_of(Compare(data=pets, encoder="test_resnet", pretrain_config=path), arm, 0)[0]

    old = digest(boundary=then)
    assert (digest() == old) == (arm != "ae:layers")  # the default of layers was none, then
    assert len({old, digest(boundary=0.03), digest(boundary=0.04)}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "sparse_mask", "patch": 48, "image_size": 64}, "the patch is 48 px in images of 64 px"),
        ({"objective": "sparse_mask", "patch": 16}, "patch"),
        ({"objective": "mask", "upsampling": "transposed", "decoder": "unet"}, "only plain has a choice"),
        ({"objective": "mask", "decoder": "pan"}, "decoder pan needs images of 128 px"),
        ({"objective": "sparse_mask", "output_activation": "sigmoid"}, "bounds an output to image values"),
        ({"objective": "denoise", "encoder_lr_ratio": 0.0}, "encoder_lr_ratio is 0.0"),
        ({"objective": "denois"}, "Did you mean denoise"),
        ({"objective": "feature_layers"}, "the init is random, which has learnt nothing. Use --init imagenet"),
        ({"objective": "denoise", "mask_ratio": 0.75}, "mask_ratio is 0.75, and objective denoise has no use for it"),
        ({"objective": "mask", "noise_sigma": 0.1}, "Leave --noise-sigma out.*denoise, mixture, decoder_denoise"),
        ({"objective": "denoise", "skip_dropout": 0.5}, "no skip connections to cut"),
        ({"objective": "decoder_denoise", "decoder": "plain"}, "no segmenter can take over.*--decoder unet"),
        ({"objective": "decoder_denoise", "decoder": "linear"}, "no segmenter can take over.*--decoder unet"),
        (
            {"objective": "decoder_denoise", "distance_penalty": 0.1},
            "distance_penalty is 0.1.*Leave --distance-penalty",
        ),
        ({"objective": "decoder_denoise", "bn_mode": "eval"}, "bn_mode is eval, and decoder_denoise leaves the enc"),
        ({"objective": "decoder_denoise", "encoder_lr_ratio": 0.1}, "encoder_lr_ratio is 0.1.*such as denoise"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_before_anything_is_written(pets, tmp_path, settings, message):
    with pytest.raises(SegaeError, match=message):
        run(Pretrain(data=(pets,), out=tmp_path / "run", **{**SMALL, **settings}))
    assert not (tmp_path / "run").exists()


def test_bounded_outputs_are_image_values(pets, tmp_path):
    from segae.models.encoder import create_encoder
    from segae.tasks.prepare import build_pretrainer, objective_of, resolve

    for activation in ("sigmoid", "tanh"):
        config = Pretrain(data=(pets,), objective="denoise", output_activation=activation, **SMALL)
        encoder, description = create_encoder("test_resnet")
        config = resolve(config, description.init)
        model = build_pretrainer(config, encoder, description, objective_of(config)).eval()
        with torch.no_grad():
            output = model(100 * torch.randn(2, 3, 64, 64), None)
        shape = (1, 3, 1, 1)
        pixels = output * torch.tensor(description.std).view(shape) + torch.tensor(description.mean).view(shape)
        assert -1e-5 <= pixels.min() < 0.5 < pixels.max() <= 1 + 1e-5


def test_an_encoder_that_no_pretraining_touched_is_not_taken_for_a_pretrained_one(pets, tmp_path):
    run(Pretrain(data=(pets,), out=tmp_path / "noise", objective="decoder_denoise", **SMALL))
    start = str(tmp_path / "noise" / "encoder.safetensors")
    small = {name: value for name, value in SMALL.items() if name != "epochs"} | {"freeze_epochs": 0, "epochs": 1}
    with pytest.raises(SegaeError, match="leaves the encoder as it was.*--transfer encoder[+]decoder.*random"):
        segment(Segment(data=pets, out=tmp_path / "alone", init=start, **small))
    assert not (tmp_path / "alone").exists()
    segment(Segment(data=pets, out=tmp_path / "both", init=start, transfer="encoder+decoder", **small))
    assert (tmp_path / "both" / "model.safetensors").exists()


def test_how_an_encoder_trains_is_left_to_the_arms_that_train_one(pets, tmp_path):
    path = tmp_path / "pretrain.json"
    path.write_text(json.dumps({"distance_penalty": 0.1, "bn_mode": "eval", "encoder_lr_ratio": 0.3}))
    config = Compare(data=pets, encoder="test_resnet", pretrain_config=path)
    made = {arm: pretraining_of(config, parse_arm(arm), 0) for arm in ("ae:mask", "ae:decoder_denoise+decoder")}
    found = [(each.distance_penalty, each.bn_mode, each.encoder_lr_ratio) for each in made.values()]
    assert found == [(0.1, "eval", 0.3), (0.0, "train", 1.0)]


def test_pictures_are_there_while_it_trains(pets, tmp_path, monkeypatch):
    """Stopped after two of three epochs, a run has shown what it does."""
    monkeypatch.setattr("segae.tasks.pictures.EVERY_S", 0.0)
    seen = []

    def look(row):
        seen.append({name: (tmp_path / "run" / name).exists() for name in ("curves.png", "reconstructions.png")})
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("segae.training.fit.print_epoch", look)
    with pytest.raises(KeyboardInterrupt):
        run(Pretrain(data=(pets,), out=tmp_path / "run", objective="mask", **{**SMALL, "epochs": 3}))
    assert [set(found.values()) for found in seen] == [{False}, {True}, {True}]


def test_a_picture_that_fails_does_not_stop_a_training(pets, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("segae.tasks.pictures.EVERY_S", 0.0)
    drawn = []

    def fails_at_first(*args):
        drawn.append(args)
        if len(drawn) == 1:
            raise OSError("the pen broke")

    monkeypatch.setattr("segae.training.panels.reconstruction_sheet", fails_at_first)
    run(Pretrain(data=(pets,), out=tmp_path / "run", objective="mask", **{**SMALL, "epochs": 2}))
    assert "a picture could not be drawn (the pen broke)" in caplog.text
    assert len(drawn) == 3  # after each epoch and at the end
    assert (tmp_path / "run" / "encoder.safetensors").exists()


def test_the_decoder_goes_ahead_of_an_imagenet_encoder():
    config = Pretrain(data=(Path("x"),), objective="mask", freeze_epochs=2, encoder_lr_ratio=0.1, epochs=5, lr=1e-2)
    first, second = make_phases(config)
    assert (first.epochs, first.train_encoder) == (2, False)
    assert (second.epochs, second.train_encoder) == (5, True)
    assert second.lr_encoder == pytest.approx(0.1 * second.lr_head)


def test_a_value_for_one_of_several_objectives_is_left_out_for_the_others(pets, tmp_path):
    path = tmp_path / "pretrain.json"
    path.write_text(json.dumps({"mask_ratio": 0.3, "noise_sigma": 0.1, "patch": 8}))
    config = Compare(data=pets, encoder="test_resnet", pretrain_config=path)
    values = {
        arm: (made.noise_sigma, made.patch, made.mask_ratio)
        for arm in ("ae:denoise", "ae:mask", "ae:mixture")
        for made in [pretraining_of(config, parse_arm(arm), 0)]
    }
    assert values == {"ae:denoise": (0.1, None, None), "ae:mask": (None, 8, 0.3), "ae:mixture": (0.1, 8, 0.3)}
    path.write_text(json.dumps({"target": "patch-normalised", "patch": 8}))
    assert pretraining_of(config, parse_arm("ae:denoise"), 0).patch == 8


def test_a_frozen_encoder_with_random_weights_gets_statistics_and_keeps_its_weights(pets, tmp_path):
    """Without them its features would grow or die from layer to layer, and the decoder be trained on that."""
    run(Pretrain(data=(pets,), out=tmp_path / "run", objective="decoder_denoise", seed=3, **SMALL))
    seed_everything(3)
    fresh, _ = create_encoder("test_resnet")
    trained, description = create_encoder("test_resnet", str(tmp_path / "run" / "encoder.safetensors"))
    assert description.init == "ae:decoder_denoise"
    before, after = fresh.state_dict(), trained.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}


@pytest.mark.parametrize(("mode", "objective", "stay"), [("eval", "denoise", True), ("train", "denoise", False),
                                                         ("train", "decoder_denoise", True)])  # fmt: skip
def test_the_probe_sees_the_statistics_that_will_be_saved(pets, monkeypatch, mode, objective, stay):
    from segae.tasks.prepare import make_probe

    config = Pretrain(data=(pets,), probe=pets, objective=objective, bn_mode=mode, **SMALL)
    made = make_objective(objective, noise_sigma=0.2, patch=16, mask_ratio=0.6)
    encoder, description = create_encoder("test_resnet")
    before = {name: value.clone() for name, value in encoder.state_dict().items() if name.endswith("running_mean")}
    seen = {}
    monkeypatch.setattr(
        "segae.training.probe.linear_probe", lambda copied, **_: seen.update(copied.state_dict()) or 0.5
    )
    probe = make_probe(config, description, made, torch.device("cpu"))
    assert probe(encoder) == 0.5
    assert all(torch.equal(seen[name], value) for name, value in before.items()) == stay
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in before.items())


def test_the_probe_reads_no_test_image(pets, tmp_path):
    from segae.data.open import open_dataset
    from segae.tasks.prepare import make_probe

    spoilt = tmp_path / "spoilt"
    shutil.copytree(pets, spoilt)
    for pair in open_dataset(spoilt).splits["test"]:
        pair.image.write_bytes(b"no image")
        pair.mask.write_bytes(b"no mask")
    objective = make_objective("mask")
    scores = []
    for root in (pets, spoilt):
        config = Pretrain(data=(pets,), probe=root, objective="mask", **SMALL)
        seed_everything(0)
        encoder, description = create_encoder("test_resnet")
        scores.append(make_probe(config, description, objective, torch.device("cpu"))(encoder))
    assert scores[0] == scores[1]
