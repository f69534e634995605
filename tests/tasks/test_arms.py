"""Arms of a comparison, and what of a pretraining each of them takes along."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from segae.cli import main
from segae.errors import SegaeError
from segae.tasks.arms import Arm, parse_arm, pretraining_of, read_pretraining
from segae.tasks.compare import Compare
from segae.tasks.settings import settings_of
from segae.training.schedule import protocol_of

TINY = ["--encoder", "test_resnet", "--image-size", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    amounts = ["--train", "16", "--test", "6", "--unlabelled", "8", "--size", "64"]
    main(["data", "drawn", "--root", str(root), *amounts])
    return root


@pytest.fixture(scope="module")
def pretrained(pets, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    settings = ["--objective", "denoise", "--decoder", "unet", "--epochs", "1", "--batch-size", "8"]
    main(["pretrain", "--data", str(pets), "--out", str(out), *settings, *TINY])
    return out


@pytest.mark.parametrize(
    ("text", "arm", "init"),
    [
        ("random", Arm("random", "", "encoder"), "random"),
        ("imagenet", Arm("imagenet", "", "encoder"), "imagenet"),
        ("ae:mask", Arm("random", "mask", "encoder"), "ae:mask"),
        ("ae:sparse_mask+decoder", Arm("random", "sparse_mask", "encoder+decoder"), "ae:sparse_mask"),
        ("imagenet+ae:a2mim", Arm("imagenet", "a2mim", "encoder"), "imagenet+ae:a2mim"),
        ("imagenet+ae:mixture+decoder", Arm("imagenet", "mixture", "encoder+decoder"), "imagenet+ae:mixture"),
    ],
)
def test_an_arm_is_read_as_its_parts(text, arm, init):
    assert parse_arm(text) == arm
    assert parse_arm(text).init == init


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imgnet", "the arm 'imgnet' is unknown; use random, imagenet, ae:<objective>"),
        ("random+decoder", "is unknown"),
        ("foo+ae:mask", "is unknown"),
        ("ae:", "is unknown"),
        ("ae:sparse_msk", "unknown objective. Did you mean sparse_mask[?]"),
        ("ae:feature_layers", "starts from random weights.*--arms imagenet[+]ae:feature_layers, or ae:layers"),
        ("ae:feature_layers+decoder", "--arms imagenet[+]ae:feature_layers[+]decoder, or ae:layers"),
        ("imagenet+ae:decoder_denoise", "imagenet[+]ae:decoder_denoise[+]decoder"),
    ],
)
def test_an_impossible_arm_is_refused_with_the_next_thing_to_type(text, message):
    with pytest.raises(SegaeError, match=message):
        parse_arm(text)


def test_an_unknown_objective_costs_nothing(pets, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--data", str(pets), "--out", str(tmp_path / "c"), "--arms", "random", "ae:foo", *TINY])
    assert stop.value.code == 2
    assert "unknown objective" in capsys.readouterr().err
    assert not (tmp_path / "c").exists(), "another arm was trained before the mistake was noticed"


def state(path: Path, part: str) -> dict[str, torch.Tensor]:
    loaded = safetensors.torch.load_file(path)
    return {name.removeprefix(part): value for name, value in loaded.items() if name.startswith(part)}


@pytest.mark.parametrize("transfer", ["encoder", "encoder+decoder"])
def test_transfer_takes_exactly_what_it_says(pets, pretrained, tmp_path, transfer):
    """A frozen epoch with a learning rate of next to nothing: what the segmenter holds is what it started from."""
    init = str(pretrained / "encoder.safetensors")
    still = ["--freeze-epochs", "1", "--epochs", "0", "--lr", "1e-30", "--bn-mode", "strict", "--recalibrate", "False"]
    out = tmp_path / "run"
    start = ["--init", init, "--transfer", transfer, "--encoder", "test_resnet", "--device", "cpu"]
    main(["segment", "--data", str(pets), "--out", str(out), *start, *still])
    model = out / "model.safetensors"
    for name, value in state(pretrained / "encoder.safetensors", "").items():
        assert torch.equal(state(model, "encoder.")[name], value)
    weights = {n: v for n, v in state(pretrained / "decoder.safetensors", "").items() if n.endswith("weight")}
    mine = state(model, "decoder.")
    same = [torch.allclose(mine[name], value, atol=1e-6) for name, value in weights.items() if value.ndim == 4]
    assert len(same) >= 5
    assert all(same) if transfer == "encoder+decoder" else not any(same)
    assert json.loads((out / "metrics.json").read_text())["transfer"] == transfer


def test_a_decoder_for_another_model_is_refused(pets, pretrained, tmp_path, capsys):
    init = str(pretrained / "encoder.safetensors")
    base = ["segment", "--data", str(pets), "--out", str(tmp_path / "run"), "--encoder", "test_resnet"]
    base += ["--transfer", "encoder+decoder", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main([*base, "--init", init, "--decoder", "fpn"])
    assert "was pretrained with decoder unet, but the segmenter has fpn" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*base, "--init", "random"])
    assert "there is no pretrained decoder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_recalibration_changes_the_statistics_and_nothing_else(pets, pretrained, tmp_path):
    init = str(pretrained / "encoder.safetensors")
    still = ["--freeze-epochs", "1", "--epochs", "0", "--lr", "1e-30", "--recalibrate", "True", "--bn-mode", "strict"]
    out = tmp_path / "run"
    start = ["--init", init, "--encoder", "test_resnet", "--device", "cpu"]
    main(["segment", "--data", str(pets), "--out", str(out), *start, *still])
    before, after = state(pretrained / "encoder.safetensors", ""), state(out / "model.safetensors", "encoder.")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert statistics
    assert statistics <= changed
    assert all(name.endswith("num_batches_tracked") for name in changed - statistics)


@pytest.mark.parametrize("fitted", [True, False])
def test_a_head_is_fitted_where_it_is_asked_for(pets, pretrained, tmp_path, fitted):
    still = ["--freeze-epochs", "1", "--epochs", "0", "--lr", "1e-30", "--bn-mode", "strict"]
    start = ["--init", str(pretrained / "encoder.safetensors"), "--transfer", "encoder+decoder", "--device", "cpu"]
    out = tmp_path / "run"
    words = ["--out", str(out), "--encoder", "test_resnet", "--fitted-head", str(fitted), *start, *still]
    main(["segment", "--data", str(pets), *words])
    kernel = state(out / "model.safetensors", "segmentation_head.")["0.weight"]
    beside = kernel.clone()
    beside[:, :, 1, 1] = 0
    assert (float(beside.abs().max()) < 1e-12) is fitted  # the middle of the kernel alone
    assert float(kernel.abs().max()) > 1e-3
    assert json.loads((out / "metrics.json").read_text())["fitted_head"] == int(fitted)


def test_layers_with_their_decoder_begin_with_a_fitted_head():
    found = {
        (init, transfer): protocol_of(init, transfer)
        for init in ("random", "imagenet", "ae:layers", "ae:otsu", "imagenet+ae:feature_layers", "imagenet+ae:mask")
        for transfer in ("encoder", "encoder+decoder")
    }
    fitted = [place for place, protocol in found.items() if protocol.fitted_head]
    assert fitted == [("ae:layers", "encoder+decoder"), ("imagenet+ae:feature_layers", "encoder+decoder")]
    assert [(found[place].lr, found[place].lr_ratio) for place in fitted] == [(0.004, 1.0), (0.004, 0.3)]
    assert found["imagenet+ae:mask", "encoder+decoder"].lr == 0.008


def test_a_run_without_a_fitted_head_is_the_one_that_it_was_before_there_was_the_choice(pets):
    config = Compare(data=pets, encoder="test_resnet", image_size=64)
    asked = {fitted: settings_of(replace(config, fitted_head=fitted), "random", 0)[1] for fitted in (None, False, True)}
    assert asked[None] == asked[False] != asked[True]


def test_a_pretraining_file_is_the_base_and_flags_win(tmp_path):
    path = tmp_path / "pretrain.json"
    path.write_text(json.dumps({"task": "Pretrain", "lr": 0.004, "epochs": 7, "patch": 8, "init": "imagenet"}))
    config = Compare(data=Path("pets"), pretrain_config=path, pretrain_epochs=3, image_size=64)
    wanted = pretraining_of(config, parse_arm("ae:mask"), seed=5)
    assert (wanted.lr, wanted.epochs, wanted.patch, wanted.init, wanted.seed) == (0.004, 3, 8, "random", 5)
    assert (wanted.image_size, wanted.decoder) == (64, "plain")
    path.write_text(json.dumps({"objective": "decoder_denoise", "init": "imagenet", "freeze_epochs": 0}))
    assert pretraining_of(config, parse_arm("imagenet+ae:mask"), seed=0).freeze_epochs == 1
    path.write_text(json.dumps({"task": "Pretrain", "lr": 0.004, "epochs": 7, "patch": 8, "init": "imagenet"}))
    assert pretraining_of(config, parse_arm("ae:mask+decoder"), seed=5).decoder == "unet"
    assert pretraining_of(replace(config, pretrain_seed=9), parse_arm("ae:mask"), seed=5).seed == 9
    for content in ("[]", '{"task": "Segment"}', '{"learning_rate": 1}', "{"):
        path.write_text(content)
        with pytest.raises(SegaeError, match="does not configure a pretraining"):
            read_pretraining(path, parse_arm("ae:mask"))


def test_the_recipes_configure_a_pretraining():
    found = sorted((Path(__file__).resolve().parent.parent.parent / "recipes").glob("pretrain*.json"))
    assert len(found) >= 3
    for path in found:
        config = Compare(data=Path("pets"), pretrain_config=path)
        assert pretraining_of(config, parse_arm("ae:sparse_mask"), seed=0).epochs >= 1


def test_pretrainings_from_imagenet_are_gentle_by_default():
    config = Compare(data=Path("pets"))
    gentle = pretraining_of(config, parse_arm("imagenet+ae:sparse_mask"), 0)
    free = pretraining_of(config, parse_arm("ae:sparse_mask"), 0)
    assert gentle.encoder_lr_ratio < free.encoder_lr_ratio == 1
    assert gentle.freeze_epochs > free.freeze_epochs == 0


def test_settings_tell_runs_apart_and_share_a_pretraining(pets):
    config = Compare(data=pets, encoder="test_resnet", image_size=64, pretrain_decoder="unet")
    alone, both = settings_of(config, "ae:mask", 0), settings_of(config, "ae:mask+decoder", 0)
    assert alone[0] == both[0], "the same pretraining would be run twice"
    assert alone[1] != both[1]
    for other in (
        replace(config, bn_mode="eval"),
        replace(config, warmup=0.1),
        replace(config, recalibrate=True),
        replace(config, epochs=5),
    ):
        assert settings_of(other, "ae:mask", 0)[0] == alone[0]
        assert settings_of(other, "ae:mask", 0)[1] != alone[1]
    assert settings_of(replace(config, pretrain_lr=0.1), "ae:mask", 0)[0] != alone[0]
    assert settings_of(replace(config, device="cuda"), "ae:mask", 0) == alone


def test_compare_runs_encoder_and_whole_model_from_one_pretraining(pets, tmp_path):
    rows = tmp_path / "rows.csv"
    arms = ["random", "ae:mixture", "ae:mixture+decoder"]
    amounts = ["--seeds", "0", "--epochs", "1", "--pretrain-epochs", "1", "--pretrain-decoder", "unet"]
    places = ["--data", str(pets), "--out", str(tmp_path / "c"), "--rows", str(rows)]
    main(["compare", *places, "--arms", *arms, *amounts, *TINY])
    with rows.open() as file:
        found = {(row["init"], row["transfer"]): row for row in csv.DictReader(file)}
    assert set(found) == {("random", "encoder"), ("ae:mixture", "encoder"), ("ae:mixture", "encoder+decoder")}
    assert len(list((tmp_path / "c").glob("pretrain-*"))) == 1
    assert found["ae:mixture", "encoder"]["pretrain_decoder"] == "unet"
    assert found["random", "encoder"]["pretrain_decoder"] == ""
    scores = {row["miou"] for row in found.values()}
    assert len(scores) == 3
