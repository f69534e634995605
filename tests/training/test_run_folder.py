"""Which folders may be used, resumed and overwritten; locks; where a run's numbers come from."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segae.errors import SegaeError
from segae.models import create_encoder, save_encoder
from segae.training import (
    fit,
    freeze_finetune_phases,
    limit_threads,
    open_result_folder,
    open_run_folder,
    provenance,
    read_metrics,
    run,
    seed_everything,
)
from tests.training.learners import CPU, Tiny, changed, segmentation, state, without_times

TRAINER = {"seed": 0, "device": "cpu", "threads": None, "precision": "auto"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a data set, an encoder and folders elsewhere."""
    for name in ("home/data", "home/more", "home/other", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("encoder", "other"):
        (tmp_path / "home" / f"{name}.safetensors").write_bytes(name.encode())
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def settings(**changes) -> dict:
    base = {"data": "data", "weights": "encoder.safetensors", "encoder": "resnet18", "out": "run", "trainer": TRAINER}
    return {**base, **changes}


def begin(out: Path | str = "run", **changes) -> None:
    with open_run_folder(Path(out), settings(**changes), task="pretrain") as folder:
        assert not folder.resume
        (folder.path / "resume.pt").touch()


def goes_on(out: Path | str = "run", **changes) -> bool:
    with open_run_folder(Path(out), settings(out=str(out), **changes), task="pretrain", resume=True) as folder:
        return folder.resume


def test_a_run_is_resumed_with_its_paths_typed_in_another_way(home, monkeypatch):
    begin()
    absolute = {"data": str(home / "data"), "weights": str(home / "encoder.safetensors")}
    assert goes_on(home / "run", **absolute)
    monkeypatch.chdir(home.parent / "elsewhere")
    assert goes_on(home / "run", **absolute)
    up = Path("..") / "home"
    assert goes_on(up / "run", data=str(up / "data"), weights=str(up / "encoder.safetensors"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "other"),
        ("data", ["data", "other"]),
        ("weights", "other.safetensors"),
        ("weights", "imagenet"),
        ("encoder", "resnet34"),
        ("trainer", {**TRAINER, "seed": 1}),
        ("trainer", {**TRAINER, "precision": "float32"}),
    ],
)
def test_other_settings_are_another_run(home, name, value):
    begin()
    with pytest.raises(SegaeError, match=name):
        goes_on(**{name: value})
    assert goes_on()


def test_several_folders_count_by_where_they_are(home):
    begin(data=["data", "more"])
    assert goes_on(data=[str(home / "data"), str(home / "more")])
    with pytest.raises(SegaeError, match="other"):
        goes_on(data=["data", "other"])


def test_where_a_run_computes_may_change_and_new_settings_of_a_later_version_are_no_obstacle(home):
    begin()
    assert goes_on(trainer={**TRAINER, "device": "cuda", "threads": 4, "max_steps": 9}, brand_new=1)


def test_the_same_text_in_another_working_directory_is_another_place(home, monkeypatch):
    begin()
    (home.parent / "elsewhere" / "data").mkdir()
    monkeypatch.chdir(home.parent / "elsewhere")
    with pytest.raises(SegaeError, match="data"):
        goes_on(home / "run", weights=str(home / "encoder.safetensors"))


def test_a_run_folder_that_was_moved_is_resumed(home):
    begin(cache_folder="run")  # a path inside
    shutil.move(home / "run", home / "moved")
    assert goes_on("moved", cache_folder="moved")
    assert str(home / "run") not in (home / "moved" / "config.json").read_text()


@pytest.mark.parametrize("where", ["first", "moved"])
def test_a_training_goes_on_in_a_folder_that_was_moved(home, where):
    whole = segmentation(Tiny, size=16)
    expected = fit(whole, freeze_finetune_phases(1, 1))
    phases = freeze_finetune_phases(1, 1)
    with open_run_folder(Path("first"), settings(), task="finetune") as folder:
        learner = segmentation(Tiny, size=16, max_steps=3)  # one epoch of two
        files = {"log_csv": folder.path / "log.csv", "resume_file": folder.path / "resume.pt"}
        fit(learner, phases, **files)
    Path("first").rename(where)
    with open_run_folder(Path(where), settings(), task="finetune", resume=True) as folder:
        learner = segmentation(Tiny, size=16)
        files = {"log_csv": folder.path / "log.csv", "resume_file": folder.path / "resume.pt"}
        log = fit(learner, phases, resume=folder.resume, **files)
    assert without_times(log) == without_times(expected)
    assert changed(learner.model, state(whole.model)) == set()


def test_both_flags_neither_flag_another_task_and_foreign_files_are_refused(home):
    begin()
    (home / "mine").mkdir()
    (home / "mine" / "notes.txt").write_text("keep")
    for out, more in (
        ("run", {"resume": True, "overwrite": True}),
        ("run", {}),
        ("run", {"task": "finetune", "overwrite": True}),
        ("mine", {"overwrite": True}),
        ("encoder.safetensors", {}),
    ):
        with pytest.raises(SegaeError, match=out.partition(".")[0]):
            open_run_folder(Path(out), settings(), **{"task": "pretrain", **more})
    assert (home / "run" / "resume.pt").exists()
    assert [path.name for path in (home / "mine").iterdir()] == ["notes.txt"]


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(home):
    begin()
    for name in ("notes.txt", "model.safetensors"):
        (home / "run" / name).touch()
    with open_run_folder(Path("run"), settings(encoder="resnet34"), task="pretrain", overwrite=True) as folder:
        assert not folder.resume
        names = {path.name for path in folder.path.iterdir() if not path.name.startswith(".")}
    assert names == {"config.json", "notes.txt"}
    assert json.loads((home / "run" / "config.json").read_text())["encoder"] == "resnet34"


def forked(work: Callable[[], None]) -> Any:
    """Start a process in which nothing is imported again; what is forked may not have threads."""
    with limit_threads(1):
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    return process


def test_a_second_process_is_refused_with_the_first_ones_id_and_a_killed_one_blocks_nobody(home):
    def hold() -> None:
        with open_run_folder(home / "run", {}, task="pretrain"):
            Path("opened").touch()
            time.sleep(60)

    first = forked(hold)
    while not Path("opened").exists():
        time.sleep(0.05)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(SegaeError, match=str(first.pid)):
            open_run_folder(home / "run", {}, task="pretrain", **flags)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with open_run_folder(home / "run", {}, task="pretrain", resume=True) as folder:
        assert not folder.resume
        with pytest.raises(SegaeError, match=str(os.getpid())):
            open_run_folder(home / "run", {}, task="pretrain", resume=True)
    for _ in range(2):
        open_run_folder(home / "run", {}, task="pretrain", resume=True).close()


def killed_while_writing(folder: Path, count: int) -> None:
    """Open a run folder in another process, which is killed while it writes its file number ``count``."""

    def work() -> None:
        replace, calls = Path.replace, []

        def die(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = die  # type: ignore[method-assign]
        opened = open_run_folder(folder, settings(), task="pretrain")
        opened.start(CPU, images="abc")
        opened.write_metrics({"done": 1})

    process = forked(work)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_kill_while_a_file_is_written_leaves_a_folder_that_can_be_used(home, count):
    killed_while_writing(home / "run", count)
    assert list((home / "run").glob(".*.segae-part"))
    if count == 1:  # nothing was there yet
        with open_run_folder(home / "run", settings(), task="pretrain") as folder:
            assert not folder.resume
    else:
        assert not goes_on(home / "run")
    assert not list((home / "run").glob(".*.segae-part")), "temporary files of a dead process"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"task": 3}', "\0\0"])
def test_damaged_text_files_stop_no_resume(home, content, caplog):
    begin()
    for name in ("config.json", "log.csv"):
        (home / "run" / name).write_text(content)
    assert goes_on()
    assert "config.json" in caplog.text
    assert json.loads((home / "run" / "config.json").read_text())["task"] == "pretrain"
    (home / "run" / "config.json").write_text(content)
    with pytest.raises(SegaeError, match="run"):  # without a flag it is still a run
        open_run_folder(home / "run", settings(), task="pretrain")


def test_the_number_of_threads_is_noted_and_another_one_is_reported(home, caplog):
    with limit_threads(1):
        begin()
        assert goes_on()
        assert caplog.text == ""
    with limit_threads(2):
        assert goes_on()
    assert "threads was 1" in caplog.text
    assert json.loads((home / "run" / "config.json").read_text())["run"]["threads"] == 1


def test_equal_runs_leave_equal_weight_files(tmp_path):
    for name in ("one", "two"):
        seed_everything(3)
        save_encoder(create_encoder("test_resnet"), tmp_path / name / "encoder.safetensors")
    one, two = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def start(**more) -> dict[str, str]:
    flags = {"resume": (Path("run") / "config.json").exists()}
    with open_run_folder(Path("run"), settings(), task="pretrain", **flags) as folder:
        (folder.path / "resume.pt").touch()
        return folder.start(CPU, **{"images": "abc", "weights": "encoder.safetensors", **more})


def test_a_resumed_run_names_all_that_it_ran_on_and_when_it_began(home, monkeypatch):
    first = start()
    assert read_metrics(Path("run")) is None
    there = {"commit": "1234", "versions": "torch 9", "device": "a GPU", "date": "2031-01-01"}
    monkeypatch.setattr(run, "provenance", lambda device: dict(there))
    for _ in range(2):  # going on twice on the same machine adds nothing
        resumed = start()
        assert resumed == {name: f"{first[name]}..{value}" for name, value in there.items()} | {"date": first["date"]}
    with open_run_folder(Path("run"), settings(), task="pretrain", resume=True) as folder:
        folder.write_metrics({"score": 1})
    assert read_metrics(Path("run")) == {"score": 1}
    monkeypatch.setattr(run, "provenance", lambda device: dict.fromkeys(there, "later"))
    assert start() == resumed


def test_other_images_and_a_replaced_encoder_are_refused(home):
    start()
    assert start(weights=home / "encoder.safetensors")
    with pytest.raises(SegaeError, match="images"):
        start(images="other")
    (home / "encoder.safetensors").write_bytes(b"other weights")
    with pytest.raises(SegaeError, match="weights"):
        start()


def test_provenance_names_versions_device_and_date():
    found = provenance(CPU)
    assert set(found) == {"commit", "versions", "device", "date"}
    assert f"torch {torch.__version__.split('+')[0]}" in found["versions"]
    assert found["device"].startswith("cpu (")
    assert len(found["date"]) == 10


def test_results_are_written_again_but_not_over_others(home):
    def take(out: str = "results", task: str = "evaluate", overwrite: bool = False, **more) -> Path:
        chosen = {"model": "encoder.safetensors", "data": "data", **more}
        return open_result_folder(Path(out), chosen, task=task, files=["metrics.json"], overwrite=overwrite)

    folder = take()
    (folder / "metrics.json").write_text('{"miou": 1}')
    assert take(data=str(home / "data")) == folder
    assert read_metrics(folder) == {"miou": 1}
    for other in ({"data": "other"}, {"task": "predict"}, {"task": "predict", "overwrite": True}):
        with pytest.raises(SegaeError, match="results"):
            take(**other)
    take(data="other", overwrite=True)
    begin()
    (home / "run" / "log.csv").touch()
    for out in ("run", "encoder.safetensors"):
        with pytest.raises(SegaeError, match="out|written"):
            take(out, overwrite=True)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20, 0.5, float("nan"), "0"])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(SegaeError, match="seed"):
        seed_everything(seed)
