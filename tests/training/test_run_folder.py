"""Which folders may be used, resumed and overwritten; locks; where a run's numbers come from."""

import json
import multiprocessing
import os
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
from tests.training.learners import CPU, Tiny, segmentation, without_times

TRAINER = {"seed": 0, "device": "cpu", "threads": None, "precision": "auto"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a data set, an encoder and folders elsewhere."""
    for name in ("home/data", "home/more", "home/other", "elsewhere/data"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("encoder", "other"):
        (tmp_path / "home" / f"{name}.safetensors").write_bytes(name.encode())
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def open_run(out: Path | str = "run", *, task: str = "pretrain", resume: bool = False, overwrite: bool = False, **more):
    base = {"data": "data", "weights": "encoder.safetensors", "method": "spark", "out": str(out), "trainer": TRAINER}
    return open_run_folder(Path(out), {**base, **more}, task=task, resume=resume, overwrite=overwrite)


def begin(**more: Any) -> None:
    with open_run(**more) as folder:
        assert not folder.resume
        (folder.path / "resume.pt").touch()


def goes_on(out: Path | str = "run", **more: Any) -> bool:
    with open_run(out, resume=True, **more) as folder:
        return folder.resume


def config(out: str = "run") -> dict:
    return json.loads(Path(out, "config.json").read_text())


def test_a_run_is_resumed_with_its_paths_typed_in_another_way_but_not_from_other_places(home, monkeypatch):
    begin(data=["data", "more"])
    absolute = {"data": [str(home / "data"), str(home / "more")], "weights": str(home / "encoder.safetensors")}
    assert goes_on(home / "run", **absolute)
    monkeypatch.chdir(home.parent / "elsewhere")
    up = Path("..") / "home"
    others = {"data": [str(up / "data"), str(up / "more")], "weights": str(up / "encoder.safetensors")}
    assert goes_on(up / "run", **others)
    with pytest.raises(SegaeError, match="data"):  # the same text leads elsewhere
        goes_on(home / "run", **{**absolute, "data": ["data", "more"]})


@pytest.mark.parametrize(
    "other",
    [
        *[{"data": "other"}, {"data": ["data", "other"]}, {"weights": "other.safetensors"}, {"weights": "imagenet"}],
        *[{"method": "denoise"}, {"trainer": {**TRAINER, "seed": 1}}, {"trainer": {**TRAINER, "precision": "float32"}}],
    ],
)
def test_other_settings_are_another_run(other):
    begin()
    with pytest.raises(SegaeError, match=next(iter(other))):
        goes_on(**other)
    assert goes_on(trainer={**TRAINER, "device": "cuda", "threads": 4, "max_steps": 9}, brand_new=1)


def test_a_setting_that_is_called_like_a_folder_stays_as_it_was_typed():
    begin(out="spark")
    assert config("spark")["method"] == "spark"
    assert goes_on("spark")


def test_a_run_folder_that_was_moved_is_resumed(home):
    phases = freeze_finetune_phases(1, 1)
    expected = fit(segmentation(Tiny, size=16), phases)
    with open_run("run", pictures="run") as folder:  # a path inside
        fit(segmentation(Tiny, size=16, max_steps=3), phases, resume_file=folder.path / "resume.pt")  # the first epoch
    Path("run").rename("moved")
    assert str(home / "run") not in Path("moved", "config.json").read_text()
    with open_run("moved", pictures="moved", resume=True) as folder:
        log = fit(segmentation(Tiny, size=16), phases, resume=folder.resume, resume_file=folder.path / "resume.pt")
    assert without_times(log) == without_times(expected)


def test_both_flags_neither_flag_another_task_and_foreign_files_are_refused():
    begin()
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_text("keep")
    for out, more in (
        *[("run", {"resume": True, "overwrite": True}), ("run", {}), ("run", {"task": "finetune", "overwrite": True})],
        *[("mine", {"overwrite": True}), ("encoder.safetensors", {})],
    ):
        with pytest.raises(SegaeError, match=out.partition(".")[0]):
            open_run(out, **more)
    assert goes_on()
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["x" * 300, "encoder.safetensors/run"])
def test_impossible_folders_are_refused(name):
    with pytest.raises(SegaeError, match="out"):
        open_run(name)
    with pytest.raises(SegaeError, match="written"):
        open_result_folder(Path(name), {}, task="evaluate", files=["metrics.json"])


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else():
    begin()
    for name in ("notes.txt", "model.safetensors"):
        Path("run", name).touch()
    with open_run(method="denoise", overwrite=True) as folder:
        assert not folder.resume
    assert {path.name for path in Path("run").iterdir() if path.name[0] != "."} == {"config.json", "notes.txt"}
    assert config()["method"] == "denoise"


def forked(work: Callable[[], None]) -> Any:
    """Start a process in which nothing is imported again; what is forked may not have threads."""
    with limit_threads(1):
        process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        process.start()
    return process


def test_a_second_process_is_refused_with_the_first_ones_id_and_a_killed_one_blocks_nobody():
    def hold() -> None:
        with open_run():
            Path("opened").touch()
            time.sleep(60)

    first = forked(hold)
    while not Path("opened").exists():
        time.sleep(0.05)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(SegaeError, match=str(first.pid)):
            open_run(**flags)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with open_run(resume=True) as folder:
        assert not folder.resume
        with pytest.raises(SegaeError, match=str(os.getpid())):
            open_run(resume=True)
    for _ in range(2):
        open_run(resume=True).close()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_kill_while_a_file_is_written_leaves_a_folder_that_can_be_used(count):
    def work() -> None:
        replace, calls = Path.replace, []

        def die(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = die  # type: ignore[method-assign]
        opened = open_run()
        opened.start(CPU, images="abc")
        opened.write_metrics({"done": 1})

    process = forked(work)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(Path("run").glob(".*.segae-part"))
    with open_run(resume=count > 1) as folder:  # before the first file was there it is a new folder
        assert not folder.resume
    assert not list(Path("run").glob(".*.segae-part")), "temporary files of a dead process"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"task": 3}', "\0\0"])
def test_damaged_text_files_stop_no_resume(content, caplog):
    begin()
    for name in ("config.json", "log.csv"):
        Path("run", name).write_text(content)
    assert goes_on()
    assert "config.json" in caplog.text
    assert config()["task"] == "pretrain"
    Path("run", "config.json").write_text(content)
    with pytest.raises(SegaeError, match="run"):  # without a flag it is still a run
        open_run()


def test_the_number_of_threads_is_noted_and_another_one_is_reported(caplog):
    with limit_threads(1):
        begin()
        assert goes_on()
        assert caplog.text == ""
    with limit_threads(2):
        assert goes_on()
    assert "threads was 1" in caplog.text
    assert config()["run"]["threads"] == 1


def test_equal_runs_leave_equal_weight_files(tmp_path):
    for name in ("one", "two"):
        seed_everything(3)
        save_encoder(create_encoder("test_resnet"), tmp_path / name / "encoder.safetensors")
    one, two = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def start(**more: Any) -> dict[str, str]:
    with open_run(resume=Path("run").exists()) as folder:
        (folder.path / "resume.pt").touch()
        return folder.start(CPU, **{"images": "abc", "weights": "encoder.safetensors", **more})


def test_a_resumed_run_names_all_that_it_ran_on_and_refuses_other_inputs(home, monkeypatch):
    first = start()
    assert f"torch {torch.__version__.split('+')[0]}" in first["versions"]
    assert first["device"].startswith("cpu (")
    assert set(first) == set(provenance(CPU))
    there = {"commit": "1234", "versions": "torch 9", "device": "a GPU", "date": "2031-01-01"}
    monkeypatch.setattr(run, "provenance", lambda device: dict(there))
    for _ in range(2):  # going on twice on the same machine adds nothing
        resumed = start(weights=home / "encoder.safetensors")
        assert resumed == {name: f"{first[name]}..{value}" for name, value in there.items()} | {"date": first["date"]}
    assert read_metrics(Path("run")) is None
    with open_run(resume=True) as folder:
        folder.write_metrics({"score": 1})
    assert read_metrics(Path("run")) == {"score": 1}
    monkeypatch.setattr(run, "provenance", lambda device: dict.fromkeys(there, "later"))
    assert start() == resumed
    with pytest.raises(SegaeError, match="images"):
        start(images="other")
    (home / "encoder.safetensors").write_bytes(b"other weights")
    with pytest.raises(SegaeError, match="weights"):
        start()


def test_results_are_written_again_but_not_over_others(home):
    def take(out: str = "results", task: str = "evaluate", overwrite: bool = False, **more: Any) -> Path:
        chosen = {"model": "encoder.safetensors", "data": "data", **more}
        return open_result_folder(Path(out), chosen, task=task, files=["metrics.json"], overwrite=overwrite)

    folder = take()
    assert take(data=str(home / "data")) == folder
    for other in ({"data": "other"}, {"task": "predict"}, {"task": "predict", "overwrite": True}):
        with pytest.raises(SegaeError, match="results"):
            take(**other)
    take(data="other", overwrite=True)
    begin()
    Path("run", "log.csv").touch()
    for out in ("run", "encoder.safetensors"):
        with pytest.raises(SegaeError, match="out|written"):
            take(out, overwrite=True)
