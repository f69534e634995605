"""The ways in which images reach a training, as a user asks for them."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from segae.cli import main
from segae.errors import SegaeError
from segae.tasks.compute import loader_batch
from segae.tasks.data_path import agreed_data_path, choose_data_path
from segae.tasks.pretrain import Pretrain

PRETRAIN = ["pretrain", "--encoder", "test_resnet", "--image-size", "64", "--batch-size", "8", "--device", "cpu"]
SEGMENT = ["segment", "--encoder", "test_resnet", "--image-size", "64", "--batch-size", "4", "--device", "cpu"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "14", "--test", "4", "--unlabelled", "10", "--size", "64"])
    return root


@pytest.fixture(scope="module")
def shard(pets) -> Path:
    target = pets.parent / "pets-000.tar"
    with tarfile.open(target, "w") as tar:
        for path in sorted((pets / "unlabelled").rglob("*.jpg")) or sorted((pets / "unlabelled").rglob("*.png")):
            tar.add(path, path.name)
    return target


def log(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [
            {key: float(value) for key, value in row.items() if key != "phase" and value}
            for row in csv.DictReader(file)
        ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


@pytest.mark.parametrize("path", ["device", "live"])
def test_pretraining_sees_the_same_images_by_every_path(pets, tmp_path, path):
    for which in ("cache", path):
        given = ["--data", str(pets), "--out", str(tmp_path / which), "--epochs", "2", "--data-path", which]
        main([*PRETRAIN, "--objective", "denoise", "--val-fraction", "0.2", *given])
    expected, seen = log(tmp_path / "cache"), log(tmp_path / path)
    assert [row["images"] for row in seen] == [row["images"] for row in expected]
    # other crops in training; the same clean validation images, which live decoding gives exactly where they are small
    for one, other in zip(seen, expected, strict=True):
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=0.15)
    described = json.loads((tmp_path / path / "encoder.json").read_text())["pretraining"]
    same = json.loads((tmp_path / "cache" / "encoder.json").read_text())["pretraining"]
    assert (described["images"], described["split_hash"]) == (same["images"], same["split_hash"])
    assert f"data_path {path}" in described["settings"]


@pytest.mark.parametrize("path", ["device", "live"])
def test_segmentation_learns_by_every_path(pets, tmp_path, path):
    for which in ("cache", path):
        given = ["--data", str(pets), "--out", str(tmp_path / which), "--epochs", "2", "--data-path", which]
        main([*SEGMENT, "--val-fraction", "0.3", "--recalibrate", "True", *given])
    seen, expected = log(tmp_path / path), log(tmp_path / "cache")
    assert [row["images"] for row in seen] == [row["images"] for row in expected]
    assert seen[-1]["train_loss"] < seen[0]["train_loss"]
    for one, other in zip(seen, expected, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.15)
    assert (tmp_path / path / "sheet.png").stat().st_size > 1000


def test_live_decoding_replaces_and_lists_what_it_cannot_read(pets, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((pets / "images").iterdir())[:9]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "run"
    main(
        [
            *PRETRAIN,
            "--data",
            str(folder),
            "--out",
            str(out),
            "--epochs",
            "1",
            "--data-path",
            "live",
            "--val-fraction",
            "0",
        ]
    )
    assert log(out)[0]["images"] == 10
    assert "broken.jpg" in (out / "quarantine.csv").read_text()


def test_a_stream_of_shards_pretrains_and_resumes(shard, tmp_path):
    pytest.importorskip("webdataset", reason="the extra 'streaming' is not installed")
    given = ["--data", str(shard), "--objective", "denoise", "--epoch-images", "8", "--batch-size", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main([*PRETRAIN, *given, "--out", str(whole), "--epochs", "3"])
    assert [row["images"] for row in log(whole)] == [8, 8, 8]
    described = json.loads((whole / "encoder.json").read_text())["pretraining"]
    assert (described["images"], described["images_seen"]) == (8, 24)

    _interrupt_after(2, [*PRETRAIN, *given, "--out", str(parts), "--epochs", "3"])
    assert len(log(parts)) == 2
    main([*PRETRAIN, *given, "--out", str(parts), "--epochs", "3", "--resume"])
    assert [row["train_loss"] for row in log(parts)] == [row["train_loss"] for row in log(whole)]
    first, second = weights(whole / "encoder.safetensors"), weights(parts / "encoder.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_mask_that_cannot_be_right_is_told_without_a_traceback(pets, tmp_path, capsys, monkeypatch, workers):
    root = tmp_path / "pets"
    shutil.copytree(pets, root)
    names = [line.split()[0] for line in (root / "annotations" / "trainval.txt").read_text().splitlines()]
    given = ["--data", str(root), "--init", "random", "--epochs", "1", "--freeze-epochs", "0", "--val-fraction", "0"]
    for name in names[1:]:
        Image.new("L", (64, 64), 77).save(root / "annotations" / "trimaps" / f"{name}.png")
    monkeypatch.setattr("segae.tasks.labelled.SAMPLED", 1)  # the others are read while training
    with pytest.raises(SystemExit) as stopped:
        main([*SEGMENT, *given, "--out", str(tmp_path / "run"), "--data-path", "live", "--workers", workers])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "77" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_damaged_first_shard_costs_its_images_and_not_the_encoder(shard, tmp_path):
    pytest.importorskip("webdataset", reason="the extra 'streaming' is not installed")
    (tmp_path / "s0.tar").write_bytes(b"no archive" * 200)
    (tmp_path / "s1.tar").write_bytes(shard.read_bytes())
    given = ["--data", str(tmp_path / "s*.tar"), "--objective", "denoise", "--epoch-images", "8", "--batch-size", "4"]
    main([*PRETRAIN, *given, "--out", str(tmp_path / "run"), "--epochs", "1"])
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    assert (tmp_path / "run" / "reconstructions.png").exists()
    assert "s0.tar" in (tmp_path / "run" / "quarantine.csv").read_text()


def test_one_unreadable_image_does_not_change_the_label_budget(pets, tmp_path, capsys):
    root = tmp_path / "pets"
    shutil.copytree(pets, root)
    first = (root / "annotations" / "trainval.txt").read_text().split("\n")[0]
    (root / "images" / f"{first.split()[0]}.jpg").write_bytes(b"no picture")
    given = ["--data", str(root), "--init", "random", "--epochs", "1", "--freeze-epochs", "0"]
    main([*SEGMENT, *given, "--out", str(tmp_path / "run"), "--val-fraction", "0"])
    whole = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (whole["labels"], whole["label_fraction"]) == (14, 1.0)
    assert "13 training images" in capsys.readouterr().out


def _interrupt_after(epochs: int, command: list[str]) -> None:
    from segae.training import fit as fit_module

    original = fit_module.SaveResume.after_epoch

    def after_epoch(self) -> None:
        original(self)
        if len(self.learn.epoch_clock.log) == epochs:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module.SaveResume, "after_epoch", after_epoch)
        with pytest.raises(SystemExit) as stopped:
            main(command)
    assert stopped.value.code == 130


def test_activation_checkpointing_changes_no_weight(pets, tmp_path):
    for name, more in (("plain", []), ("thrifty", ["--activation-checkpointing"])):
        main([*SEGMENT, "--data", str(pets), "--out", str(tmp_path / name), "--epochs", "1", *more])
    plain, thrifty = (weights(tmp_path / name / "model.safetensors") for name in ("plain", "thrifty"))
    assert all(torch.equal(plain[name], thrifty[name]) for name in plain)


def test_small_batches_make_the_steps_of_the_large_one(pets, tmp_path):
    for name, more in (("whole", []), ("parts", ["--micro-batch", "2"])):
        main(
            [*SEGMENT, "--data", str(pets), "--out", str(tmp_path / name), "--epochs", "1", "--bn-mode", "eval", *more]
        )
    whole, parts = log(tmp_path / "whole"), log(tmp_path / "parts")
    for one, other in zip(parts, whole, strict=True):  # the decoder's BatchNorm sees two images instead of four
        assert one["lr_head"] == pytest.approx(other["lr_head"])
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.2)
    for name, batch in (("whole", 4), ("parts", 2)):  # what was computed, where the configuration says auto
        said = json.loads((tmp_path / name / "metrics.json").read_text())
        assert (said["precision"], said["micro_batch"], said["data_path"]) == ("float32", batch, "cache")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--objective", "sparse_mask", "--patch", "32", "--activation-checkpointing"],
            "activation_checkpointing computes",
        ),
        (["--micro-batch", "3"], "micro_batch is 3 and batch_size 8"),
        (["--data-path", "device", "--workers", "2"], "workers is 2"),
        (["--workers", "-1"], "workers is -1; it must be 0 or more"),
        (["--epoch-images", "100"], "epoch_images is 100, which counts images of shards"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(pets, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        main([*PRETRAIN, "--data", str(pets), "--out", str(tmp_path / "run"), *more])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shards_and_folders_do_not_mix(pets, shard, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*PRETRAIN, "--data", str(shard), str(pets), "--out", str(tmp_path / "run")])
    assert "shards alone or folders alone" in capsys.readouterr().err


def test_auto_holds_images_on_a_gpu_that_has_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    gpu = torch.device("cuda", 0)
    assert choose_data_path("auto", 200, gpu, 0) == "device"
    assert choose_data_path("auto", 300, gpu, 0) == "cache"
    assert choose_data_path("auto", 200, gpu, 4) == "cache"
    assert choose_data_path("auto", 200, CPU, 0) == "cache"
    assert choose_data_path("live", 200, gpu, 0) == "live"


@pytest.mark.parametrize(("command", "target"), [(PRETRAIN, "encoder"), (SEGMENT, "model")])
def test_a_resumed_run_keeps_the_path_that_it_began_with(pets, tmp_path, monkeypatch, capsys, command, target):
    given = [*command, "--data", str(pets), "--epochs", "2", "--val-fraction", "0.2"]
    asked, parts = tmp_path / "asked", tmp_path / "parts"
    main([*given, "--out", str(asked), "--data-path", "device"])
    monkeypatch.setattr("segae.tasks.data_path.choose_data_path", lambda *_: "device")
    _interrupt_after(1, [*given, "--out", str(parts)])
    monkeypatch.setattr("segae.tasks.data_path.choose_data_path", lambda *_: "cache")  # the device is full now
    with pytest.raises(SystemExit):
        main([*given, "--out", str(parts), "--resume", "--workers", "1"])
    assert "began with its images on the device" in capsys.readouterr().err
    main([*given, "--out", str(parts), "--resume"])
    first, second = (weights(run / f"{target}.safetensors") for run in (asked, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = {name: json.loads((parts / f"{name}.json").read_text())["data_path"] for name in ("config", "metrics")}
    assert found == {"config": "auto", "metrics": "device"}
    if target == "encoder":
        assert "data_path device" in json.loads((parts / "encoder.json").read_text())["pretraining"]["settings"]


def test_all_processes_take_one_path(tmp_path, monkeypatch):
    monkeypatch.setattr("segae.tasks.data_path.choose_data_path", lambda *_: "device")
    config = Pretrain(data=(), out=tmp_path)
    assert agreed_data_path(config, 1, CPU) == "device"
    monkeypatch.setattr("segae.training.distributed.gathered", lambda value: [value, "cache"])  # another's GPU is full
    assert agreed_data_path(config, 1, CPU) == "cache"


def test_the_loader_s_batch_divides_the_step():
    assert loader_batch(Pretrain(data=(), batch_size=32)) == 32
    assert loader_batch(Pretrain(data=(), batch_size=32, micro_batch=8)) == 8
    with pytest.raises(SegaeError, match="micro_batch is 0"):
        loader_batch(Pretrain(data=(), batch_size=32, micro_batch=0))


def test_a_compiled_model_trains_to_the_same_weights(pets, tmp_path, monkeypatch):
    compile_model = torch.nn.Module.compile
    # traced and cut into graphs, but not turned into machine code, which takes minutes on a CPU
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_model(self, backend="eager"))
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        main([*SEGMENT, "--data", str(pets), "--out", str(tmp_path / name), "--epochs", "1", *more])
    plain, compiled = (weights(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert list(plain) == list(compiled)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3, msg=name)
