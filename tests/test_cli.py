"""What the command line does beside calling the verbs: help, files of settings, messages, signals, exit codes."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segae import cli
from segae.cli import COMMANDS, main
from segae.errors import OutOfMemoryError, SegaeError
from tests.command_lines import parse_command
from tests.fabricate import make_images, make_pets

HEAVY = "import sys; heavy = {'torch', 'timm', 'fastai', 'albumentations', 'numpy'} & set(sys.modules)"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings that verbs are called with; none of them runs."""
    calls: list[dict[str, Any]] = []

    class Modules:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return lambda *_, **settings: calls.append(settings) if settings else None

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Modules())
    return calls


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return make_pets(tmp_path / "pets", 1, 1)


def leave(*words: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    return leaving.value.code


def python(*words: str, code: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "segae.cli"]
    return subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, check=False, **more)


def test_help_is_fast_and_names_every_command() -> None:
    started = time.perf_counter()
    shown = python("--help")
    seconds = time.perf_counter() - started
    assert all(f"\n  {name} " in shown.stdout for name in COMMANDS)
    code = f"from segae.cli import main; main(['--help']); {HEAVY}; assert not heavy, heavy"
    assert python(code=code).returncode == 0
    assert seconds < 3  # 0.3 on an idle machine


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_what_matters_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"Example: segae {name}" in shown
    first, _, rest = shown.partition(" more options")
    for setting in COMMANDS[name].config.MAIN[1:]:
        assert f"--{setting.replace('_', '-')} " in first.replace(",", " "), setting
        assert f"--{setting.replace('_', '-')} " not in rest.partition(" pretrain options")[0], setting
    if name in ("pretrain", "finetune", "bench"):
        assert "--device" in rest
        assert "--trainer" not in shown


def test_methods_are_listed_with_family_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "--method", "help"])
    shown = capsys.readouterr().out
    assert "denoise (autoencoding): " in shown
    assert "pseudo_masks (pseudo masks): " in shown
    assert "--method-args.sigma (default: 0.5)" in shown


def test_a_wrong_folder_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom segae.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
    )
    code += f"{HEAVY}\nprint(code, heavy)"
    for command in (["finetune", "nowhere"], ["pretrain", "nowhere"], ["evaluate", ".", "--model", "x.safetensors"],
                    ["predict", "nowhere.jpg", "--model", "x"], ["report", "none.csv"], ["bench", "."]):  # fmt: skip
        done = python(*command, code=code, cwd=tmp_path)
        assert done.stdout.strip() == "2 set()", done
        assert "must be" in done.stderr


def test_flags_reach_the_verb_by_name(pets: Path, called: list[dict[str, Any]]) -> None:
    args = ["--method", "denoise", "--method-args.sigma", "0.2", "--method_args.target=hog", "--trainer.seed", "3"]
    main(
        ["pretrain", str(pets), str(pets), *args, "--device", "cpu", "--lr", "1e-3", "--no-near-duplicates", "--resume"]
    )
    (settings,) = called
    assert settings["method_args"] == {"sigma": 0.2, "target": "hog"}
    assert (settings["data"], settings["lr"], settings["resume"]) == ((str(pets),) * 2, 1e-3, True)
    assert (settings["trainer"]["seed"], settings["trainer"]["device"]) == (3, "cpu")
    assert settings["near_duplicates"] is False
    main(["finetune", str(pets), "--labels", "0.1", "--recalibrate", "True", "--merge", "foreground=pet+border"])
    assert (called[1]["labels"], called[1]["recalibrate"]) == (0.1, True)
    assert called[1]["merge"] == ("foreground=pet+border",)
    main(["finetune", str(pets), "--labels", "30"])
    assert called[2]["labels"] == 30
    assert isinstance(called[2]["labels"], int)


def test_nested_settings_and_presets_of_a_benchmark(pets: Path, called: list[dict[str, Any]]) -> None:
    main(
        ["bench", str(pets), "--preset", "smp", "--finetune.batch-size", "16", "--pretrain.epochs", "5", "--jobs", "2"]
    )
    main(["bench", "--preset", "quick", "--labels", "4", "--method-args.inpaint.mask-ratio", "0.75", "--cache", "none"])
    main(["quickstart"])
    main(["quickstart", str(pets), "--seeds", "1"])
    smp, quick, plain, own = called
    assert (smp["finetune"]["batch_size"], smp["finetune"]["loss"], smp["pretrain"]["epochs"]) == (16, "dice", 5)
    assert (quick["labels"], quick["trainer"]["cache"], quick["pretrain"]["epochs"]) == ((4,), "none", 3)
    assert quick["method_args"] == {"inpaint": {"mask_ratio": 0.75}}
    assert (plain["preset"], plain["data"], plain["out"]) == ("quick", None, "runs/quickstart")
    assert (own["data"], own["seeds"], own["weights"]) == (str(pets), 1, plain["weights"])


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_gives_settings_and_flags_win(
    tmp_path: Path, pets: Path, called: list[dict[str, Any]], suffix: str
) -> None:
    path = tmp_path / f"settings.{suffix}"
    content = {"task": "finetune", "run": {"date": "now"}, "data": str(pets), "epochs": 7, "device": "cpu"}
    content |= {"labels": None, "classes": ["a", "b"], "trainer": {"seed": 5, "workers": 2}, "augment": False}
    yaml = (
        "data: " + str(pets) + "\nepochs: 7\ndevice: cpu\nlr: 1e-3\nclasses: [a, b]\ntrainer: {seed: 5, workers: 2}\n"
    )
    path.write_text(json.dumps({**content, "lr": 1e-3}) if suffix == "json" else f"{yaml}augment: false\n")
    main(["finetune", f"--config={path}", "--epochs", "2", "--seed", "6"])
    (settings,) = called
    assert (settings["epochs"], settings["lr"], settings["augment"], settings["data"]) == (2, 1e-3, "none", str(pets))
    assert settings["classes"] == ("a", "b")
    trainer = settings["trainer"]
    assert (trainer["seed"], trainer["workers"], trainer["device"]) == (6, 2, "cpu")


def test_a_flag_that_names_its_section_is_not_taken_for_a_misspelled_one() -> None:
    found: Any = parse_command(
        "segae bench DATA --finetune.reconstruction-weight 0.1 --pretrain.hard-mask-fraction 0.2"
    )
    assert (found.finetune.reconstruction_weight, found.pretrain.hard_mask_fraction) == (0.1, 0.2)


@pytest.mark.parametrize("typed", ["--image-sze", "--image_szie", "--image-size"])
def test_a_misspelled_flag_of_a_section_is_recognized(
    typed: str, pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("bench", pets, typed, 64) == 2
    shown = capsys.readouterr().err
    assert all(one in shown for one in (typed, "--pretrain.image-size", "--finetune.image-size"))
    for flag in ("--encodrs", "--weigths"):
        assert leave("bench", pets, flag, "x") == 2
        assert "Perhaps you meant" in capsys.readouterr().err


def test_one_way_from_a_message_to_the_next_thing_to_type(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(error: Exception, *more: str) -> tuple[int, str]:
        def run(name: str, words: list[str]) -> None:
            raise error

        monkeypatch.setattr(cli, "_run", run)
        code = leave("finetune", pets, *more)
        return code, capsys.readouterr().err

    assert say(SegaeError("warmup must be in (0, 1), got 2"))[1].count("--warmup") == 1
    assert "Change --device" in say(SegaeError("device must be one of cpu, got gpu"))[1]
    assert "Change FOLDER" in say(SegaeError("data must be a folder, got x"))[1]
    assert "--resume" in say(SegaeError("out must be a new folder, got runs: give resume=True or overwrite=True"))[1]
    assert "--method-args.sigma" in say(SegaeError("sigma must be > 0, got 0"), "--method-args.sigma", "0")[1]
    assert "--" not in say(SegaeError("mask.png holds the value 7"))[1]
    assert "set --resume to" in say(SegaeError("set resume=True to continue"))[1]
    code, shown = say(OutOfMemoryError("the memory is full (CUDA). Use a smaller batch_size."))
    assert (code, "--batch-size" in shown) == (2, True)
    worker = "Caught SegaeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert say(SegaeError(f"{worker}segae.errors.DataError: bad mask"))[1] == "segae: bad mask.\n"


@pytest.mark.parametrize("name", ["pretrain", "evaluate"])
def test_an_interruption_says_how_to_continue(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(number: int) -> Callable[..., None]:
        return lambda *_: signal.raise_signal(number)

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        monkeypatch.setattr(cli, "_run", stop(number))
        assert leave(name) == code
        assert ("--resume" in capsys.readouterr().err) == (name == "pretrain")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_fault_of_segae_is_kept_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*_: Any) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(cli, "_run", fault)
    assert leave("pretrain") == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "ZeroDivisionError" in Path(shown.split("with the file ")[1].strip().rstrip(".")).read_text()


def test_warnings_of_other_libraries_are_shown_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = importlib.import_module("logging").getLogger

    def work(*_: Any) -> None:
        warnings.warn("of a library", FutureWarning, stacklevel=1)
        logger("library").warning("from its log")
        logger("segae").warning("of segae")
        logger("segae").info("line")
        logger("segae").debug("detail")

    monkeypatch.setattr(cli, "_run", work)
    main(["report"])
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("line\n", "warning: of segae\n")
    with pytest.warns(FutureWarning, match="of a library"):
        main(["report", "-v"])
    assert "detail" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    command = [sys.executable, "-m", "segae.cli", "finetune", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_file_name_that_is_no_text_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))
    assert leave("report", "none.csv") == 2
    print(os.fsdecode(b"a\xff.jpg"), "cannot be read")
    sys.stdout.flush()
    assert b"a\\udcff.jpg cannot be read" in written.getvalue()


def test_several_processes_are_for_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "model.safetensors").touch()
    assert leave("predict", make_images(tmp_path / "images", 1), "--model", tmp_path / "model.safetensors") == 2
    shown = capsys.readouterr().err
    assert "segae predict must run in one process" in shown
    assert shown.startswith("segae (process ? of 2): ")


def test_the_main_path_as_a_user_types_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pets, run = make_pets(tmp_path / "pets", 8, 3, unlabeled=4), tmp_path / "runs"
    small = ["--encoder", "test_resnet", "--image-size", "64", "--epochs", "1", "--batch-size", "4", "--threads", "1"]
    main(["pretrain", str(pets), "--out", str(run / "p"), "--method", "denoise", "--device", "cpu", *small])
    weights = ["--weights", str(run / "p" / "encoder.safetensors"), "--device", "cpu", *small]
    main(["finetune", str(pets), "--out", str(run / "f"), *weights, "--freeze-epochs", "0", "--max-steps", "1"])
    model = ["--model", str(run / "f" / "model.safetensors"), "--device", "cpu"]
    main(["evaluate", str(pets), *model])
    main(["predict", str(pets / "unlabeled"), *model, "--out", str(run / "masks"), "--no-overlay"])
    shown = capsys.readouterr()
    assert "epoch   1" in shown.out
    assert "stopped after 1 optimizer steps" in shown.out
    assert "\nmiou " in shown.out
    assert "warning: 3 of 15 images are left out of pretraining" in shown.err
    assert len(list((run / "masks").glob("*.png"))) == 4
    assert (run / "f" / "evaluate-test" / "metrics.json").exists()
    config = ["--config", str(run / "f" / "config.json"), "--out", str(run / "again")]
    main(["finetune", *config])
    first, second = ((run / name / "model.safetensors").read_bytes() for name in ("f", "again"))
    assert first == second
