"""Mistakes that users make, typed as they would type them: one paragraph, exit code 2, nothing lost."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from segae.cli import main

TINY = ["--encoder", "test_resnet", "--image-size", "32", "--epochs", "1", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture
def refused(capsys) -> Callable:
    """Run a command that must fail as a user's mistake, and give its message."""

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        message = capsys.readouterr().err.strip()
        assert leaving.value.code == 2, message
        assert "Traceback" not in message
        return message

    return run


@pytest.fixture
def refused_in_one_paragraph(refused) -> Callable:
    def run(*words: str | Path) -> str:
        message = refused(*words)
        assert message.splitlines()[-1].startswith("segae: ")
        return message.splitlines()[-1]

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images with masks of two classes, split by files."""
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(8):
        cv2.imwrite(str(root / "images" / f"{index}.png"), generator.integers(0, 255, (40, 48, 3), np.uint8))
        cv2.imwrite(str(root / "masks" / f"{index}.png"), generator.integers(0, 2, (40, 48), np.uint8))
    (root / "trainval.txt").write_text("".join(f"{index}\n" for index in range(6)))
    (root / "test.txt").write_text("6\n7\n")
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A pretrained encoder and a segmenter, each from one epoch."""
    root = tmp_path_factory.mktemp("trained")
    amounts = ["--train", "6", "--test", "2", "--unlabelled", "2", "--size", "32"]
    main(["data", "drawn", "--root", str(root / "d"), *amounts])
    main(["pretrain", "--data", str(root / "d"), "--out", str(root / "p"), *TINY])
    encoder = str(root / "p" / "encoder.safetensors")
    main(["segment", "--data", str(root / "d"), "--out", str(root / "s"), "--init", encoder, *TINY])
    return root


def test_missing_folder(refused_in_one_paragraph, tmp_path):
    for command in ("pretrain", "segment"):
        message = refused_in_one_paragraph(command, "--data", tmp_path / "nowhere", "--out", tmp_path / "o", *TINY)
        assert str(tmp_path / "nowhere") in message


def test_empty_folder(refused_in_one_paragraph, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in ("pretrain", "segment"):
        message = refused_in_one_paragraph(command, "--data", tmp_path / "empty", "--out", tmp_path / "o", *TINY)
        assert "empty" in message


def test_mask_without_image(refused_in_one_paragraph, folder, tmp_path):
    (folder / "images" / "3.png").unlink()
    assert "3.png" in refused_in_one_paragraph("segment", "--data", folder, "--out", tmp_path / "o", *TINY)


def test_mask_of_another_size(refused_in_one_paragraph, folder, tmp_path):
    cv2.imwrite(str(folder / "masks" / "2.png"), np.zeros((20, 48), np.uint8))
    message = refused_in_one_paragraph("segment", "--data", folder, "--out", tmp_path / "o", *TINY)
    assert "2.png" in message
    assert "20" in message
    assert "40" in message


def test_mask_with_an_undefined_value(refused_in_one_paragraph, folder, tmp_path):
    mask = np.zeros((40, 48), np.uint8)
    mask[0, 0] = 7
    cv2.imwrite(str(folder / "masks" / "2.png"), mask)
    message = refused_in_one_paragraph("segment", "--data", folder, "--out", tmp_path / "o", *TINY)
    assert "7" in message
    assert "masks" in message


def test_all_images_unreadable(refused_in_one_paragraph, folder, tmp_path):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no image at all")
    for command in ("pretrain", "segment"):
        refused_in_one_paragraph(command, "--data", folder, "--out", tmp_path / command, *TINY)


def test_one_unreadable_image_is_quarantined_and_training_goes_on(folder, tmp_path, capsys):
    bad = folder / "images" / "1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    main(["segment", "--data", str(folder), "--out", str(tmp_path / "s"), "--val-fraction", "0", *TINY])
    assert "1.png" in (tmp_path / "s" / "quarantine.csv").read_text()
    assert capsys.readouterr().out.count("1.png") == 1
    told = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert (told["labels"], told["training_images"]) == (6, 5)
    assert (tmp_path / "s" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "flag", "value", "hint"),
    [
        ("pretrain", "--encoder", "resnet1", "resnet"),
        ("segment", "--encoder", "tf_efficientnet_lite9", "tf_efficientnet_lite"),
        ("segment", "--decoder", "unett", "unet"),
        ("pretrain", "--objective", "masked", "mask"),
        ("pretrain", "--image-size", "16", "32"),
        ("segment", "--image-size", "100", "96 or 128"),
        ("pretrain", "--device", "cuda:7", "--device"),
        ("segment", "--device", "gpu", "cpu"),
        ("segment", "--labels", "900", "labelled"),
        ("segment", "--val-fraction", "1.5", "validation"),
        ("segment", "--lr", "-1", "lr"),
        ("segment", "--lr-ratio", "0", "lr_ratio"),
        ("segment", "--seed", "-1", "--seed"),
        ("pretrain", "--patch", "64", "patch"),
        ("pretrain", "--epochs", "0", "epochs"),
        ("pretrain", "--mask-ratio", "1.0", "ratio"),
        ("segment", "--batch-size", "0", "--batch-size"),
    ],
)
def test_a_wrong_value(refused_in_one_paragraph, folder, tmp_path, command, flag, value, hint):
    words = [command, "--data", folder, "--out", tmp_path / "o", *TINY]
    if flag in words:
        words[words.index(flag) + 1] = value
    else:
        words += [flag, value]
    message = refused_in_one_paragraph(*words)
    assert value in message
    assert hint in message
    assert not (tmp_path / "o" / "log.csv").exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("--data", "nowhere"), ("--labels", "900"), ("--val-fraction", "1.5"), ("--batch-size", "0")]
)
def test_overwrite_deletes_nothing_before_the_input_is_known_to_be_good(refused_in_one_paragraph, trained, flag, value):
    encoder = trained / "p" / "encoder.safetensors"
    words = ["segment", "--data", trained / "d", "--init", encoder, *TINY]
    if flag in words:
        words[words.index(flag) + 1] = value
    else:
        words += [flag, value]
    before = {path.name: path.read_bytes() for path in (trained / "s").iterdir() if path.is_file()}
    refused_in_one_paragraph(*words, "--out", trained / "s", "--overwrite")
    assert {path.name: path.read_bytes() for path in (trained / "s").iterdir() if path.is_file()} == before


def test_results_of_other_commands_are_not_overwritten(refused_in_one_paragraph, trained, tmp_path):
    model = trained / "s" / "model.safetensors"
    predict = ["predict", "--model", model, "--input", trained / "d" / "unlabelled"]
    assert "training run" in refused_in_one_paragraph(*predict, "--out", trained / "s")
    main([str(word) for word in [*predict, "--out", tmp_path / "masks"]])
    masks = sorted(path.name for path in (tmp_path / "masks").iterdir())
    command = ["pretrain", "--data", trained / "d", *TINY, "--out", tmp_path / "masks", "--overwrite"]
    assert "results of Predict" in refused_in_one_paragraph(*command)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == masks


def test_an_unknown_flag_and_an_ill_typed_value(refused, folder, tmp_path):
    assert "--epoch-count" in refused("segment", "--data", folder, "--out", tmp_path / "o", "--epoch-count", "3")
    assert "three" in refused("segment", "--data", folder, "--out", tmp_path / "o", "--epochs", "three")


def test_configuration_files(refused_in_one_paragraph, refused, folder, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"task": "Segment", "data": str(folder), "epoch": 3}))
    assert "'epochs'" in refused_in_one_paragraph("segment", "--config", path)
    path.write_text(json.dumps({"task": "Pretrain"}))
    assert "Pretrain" in refused_in_one_paragraph("segment", "--config", path)
    path.write_text("{")
    assert "not a configuration" in refused_in_one_paragraph("segment", "--config", path)
    path.write_text(json.dumps({"data": str(folder), "epochs": "many"}))
    assert "many" in refused("segment", "--config", path)


def test_a_run_can_be_repeated_from_its_configuration(folder, tmp_path):
    main(["segment", "--data", str(folder), "--out", str(tmp_path / "one"), "--labels", "4", *TINY])
    main(["segment", f"--config={tmp_path / 'one' / 'config.json'}", "--out", str(tmp_path / "two")])
    assert json.loads((tmp_path / "two" / "config.json").read_text())["labels"] == 4
    first, second = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    from segae.models.weights import read_weights

    one, two = read_weights(first)[0], read_weights(second)[0]
    assert all((one[name] == two[name]).all() for name in one)


def test_a_checkpoint_of_another_architecture(refused_in_one_paragraph, trained, tmp_path):
    words = ["segment", "--data", trained / "d", "--out", tmp_path / "o", *TINY]
    words[words.index("test_resnet")] = "test_efficientnet"
    message = refused_in_one_paragraph(*words, "--init", trained / "p" / "encoder.safetensors")
    assert "test_resnet" in message
    assert "test_efficientnet" in message


def test_a_damaged_checkpoint(refused_in_one_paragraph, trained, tmp_path):
    damaged = tmp_path / "encoder.safetensors"
    content = (trained / "p" / "encoder.safetensors").read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    command = ["segment", "--data", trained / "d", "--out", tmp_path / "o", *TINY]
    assert "damaged" in refused_in_one_paragraph(*command, "--init", damaged)
    model = tmp_path / "model.safetensors"
    model.write_bytes((trained / "s" / "model.safetensors").read_bytes()[:-1])
    for command in (["evaluate", "--data", trained / "d"], ["predict", "--input", trained / "d" / "images"]):
        assert "damaged" in refused_in_one_paragraph(*command, "--model", model, "--out", tmp_path / "o")


def test_a_file_of_the_other_stage(refused_in_one_paragraph, trained, tmp_path):
    encoder, model = trained / "p" / "encoder.safetensors", trained / "s" / "model.safetensors"
    for command in (["evaluate", "--data", trained / "d"], ["predict", "--input", trained / "d" / "images"]):
        message = refused_in_one_paragraph(*command, "--model", encoder, "--out", tmp_path / "o")
        assert "its kind is encoder. Give the model.safetensors that segae segment wrote" in message
    command = ["segment", "--data", trained / "d", "--out", tmp_path / "o", *TINY]
    message = refused_in_one_paragraph(*command, "--init", model)
    assert "its kind is segmenter. Give the encoder.safetensors that segae pretrain wrote" in message


def test_a_pickle_checkpoint_is_refused_and_not_run(refused_in_one_paragraph, trained, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name in ("encoder.pth", "encoder.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        message = refused_in_one_paragraph(
            "segment", "--data", trained / "d", "--out", tmp_path / "o", *TINY, "--init", tmp_path / name
        )
        assert "pickle" in message
    assert not (tmp_path / "ran").exists()


def test_a_run_folder_in_use(refused_in_one_paragraph, trained, tmp_path):
    command = ["pretrain", "--data", trained / "d", *TINY]
    before = (trained / "p" / "encoder.safetensors").read_bytes()
    assert "--resume" in refused_in_one_paragraph(*command, "--out", trained / "p")
    message = refused_in_one_paragraph(*command, "--out", trained / "p", "--resume", "--lr", "0.5")
    assert "lr was 0.002, now 0.5" in message
    assert (trained / "p" / "encoder.safetensors").read_bytes() == before
    changed = tmp_path / "changed"
    shutil.copytree(trained / "d", changed)
    words = ["pretrain", "--data", changed, *TINY, "--out", tmp_path / "run"]
    main([str(word) for word in words])
    next((changed / "unlabelled").iterdir()).unlink()
    assert "images have changed" in refused_in_one_paragraph(*words, "--resume")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "nothing in it is touched" in refused_in_one_paragraph(*command, "--out", tmp_path / "mine", "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_full_disk_costs_nothing_that_was_there(trained, tmp_path):
    """The operating system really refuses to write more than 300 kB to a file."""
    run = tmp_path / "p"
    shutil.copytree(trained / "p", run)
    config = json.loads((run / "config.json").read_text())
    config["out"] = str(run)
    (run / "config.json").write_text(json.dumps(config))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "from segae.cli import main; main(sys.argv[1:])"
    )
    words = ["pretrain", "--data", str(trained / "d"), "--out", str(run), *TINY, "--resume"]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "could not write" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / "encoder.safetensors").read_bytes() == before["encoder.safetensors"]
    assert {path.name for path in run.iterdir()} == set(before)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300_000


def test_a_model_of_other_classes(refused_in_one_paragraph, trained, folder, tmp_path):
    message = refused_in_one_paragraph(
        "evaluate", "--model", trained / "s" / "model.safetensors", "--data", folder, "--out", tmp_path / "o"
    )
    assert "ground, thing" in message
    assert "border" in message


def test_our_own_faults_are_reported_without_a_traceback(monkeypatch, capsys, tmp_path):
    from segae.tasks import pretrain

    def fault(config):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("segae.cli._TASKS", {"pretrain": (pretrain.Pretrain, fault)})
    with pytest.raises(SystemExit) as leaving:
        main(["pretrain", "--data", str(tmp_path)])
    shown = capsys.readouterr().err
    assert leaving.value.code == 1
    assert "Traceback" not in shown
    assert "ZeroDivisionError" in Path(shown.split("with the file ")[1].strip().rstrip(".")).read_text()
