"""Which runs may be resumed from where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segae.errors import SegaeError
from segae.tasks.pretrain import Pretrain
from segae.tasks.segment import Segment
from segae.training import provenance
from segae.training.provenance import start_provenance
from segae.training.run import DONE_FILE, RESUME_FILE, open_run_folder


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two working directories, the first one entered, with a data set, an encoder and an interrupted run in it."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "data", home / "more", home / "other", elsewhere):
        folder.mkdir(parents=True)
    (home / "encoder.safetensors").write_bytes(b"weights")
    (home / "other.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(home)
    return home, elsewhere


def begin(config: Segment | Pretrain) -> None:
    assert not open_run_folder(config.out, config, resume=False, overwrite=False)
    (config.out / RESUME_FILE).touch()


def goes_on(config: Segment | Pretrain) -> bool:
    return open_run_folder(config.out, config, resume=True, overwrite=False)


def test_a_run_is_resumed_with_its_paths_typed_in_another_way(places, monkeypatch):
    home, elsewhere = places
    typed = Segment(data=Path("data"), out=Path("run"), init="encoder.safetensors")
    begin(typed)
    absolute = replace(typed, data=home / "data", out=home / "run", init=str(home / "encoder.safetensors"))
    assert goes_on(absolute)
    assert goes_on(typed)
    monkeypatch.chdir(elsewhere)
    assert goes_on(absolute)
    up = Path("..") / "home"
    assert goes_on(replace(typed, data=up / "data", out=up / "run", init=str(up / "encoder.safetensors")))
    config = json.loads((home / "run" / "config.json").read_text())
    assert config["data"] == str(up / "data")
    monkeypatch.chdir(home)
    assert goes_on(typed)


def test_several_folders_count_by_where_they_lead(places, monkeypatch):
    home, elsewhere = places
    begin(Pretrain(data=(Path("data"), Path("more")), out=Path("run")))
    monkeypatch.chdir(elsewhere)
    assert goes_on(Pretrain(data=(home / "data", home / "more"), out=home / "run"))
    for data in ((home / "data",), (home / "data", home / "other")):
        with pytest.raises(SegaeError, match="data was"):
            goes_on(Pretrain(data=data, out=home / "run"))


@pytest.mark.parametrize(
    ("name", "value"), [("data", "other"), ("init", "other.safetensors"), ("init", "imagenet"), ("encoder", "resnet18")]
)
def test_another_path_or_name_is_still_another_run(places, name, value):
    typed = Segment(data=Path("data"), out=Path("run"), init="encoder.safetensors")
    begin(typed)
    with pytest.raises(SegaeError, match=f"{name} was .*{value}"):
        goes_on(replace(typed, **{name: Path(value) if name == "data" else value}))


def test_a_name_is_no_path(places):
    """A file that happens to be called like an init does not make it another one, nor the same as another."""
    home, _ = places
    begin(Segment(data=Path("data"), out=Path("run"), init="imagenet"))
    (home / "imagenet").write_bytes(b"a file")
    (home / "random").write_bytes(b"a file")
    assert goes_on(Segment(data=Path("data"), out=Path("run"), init="imagenet"))
    with pytest.raises(SegaeError, match="init was 'imagenet', now 'random'"):
        goes_on(Segment(data=Path("data"), out=Path("run"), init="random"))


def test_a_run_that_began_before_a_setting_existed_had_its_default(places):
    typed = Segment(data=Path("data"), out=Path("run"))
    begin(typed)
    path = Path("run") / "config.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("loss", "merge")}
    path.write_text(json.dumps(older))
    with pytest.raises(SegaeError, match="now 'dice'"):
        goes_on(replace(typed, loss="dice"))
    assert goes_on(typed)


def test_resume_and_overwrite_together_are_refused_and_nothing_is_lost(places):
    typed = Segment(data=Path("data"), out=Path("run"))
    begin(typed)
    with pytest.raises(SegaeError, match="--resume and --overwrite were both given"):
        open_run_folder(typed.out, typed, resume=True, overwrite=True)
    assert (typed.out / RESUME_FILE).exists()


def test_the_same_words_typed_elsewhere_are_another_place(places, monkeypatch):
    home, elsewhere = places
    (elsewhere / "data").mkdir()
    (elsewhere / "encoder.safetensors").write_bytes(b"weights")
    typed = Segment(data=home / "data", out=home / "run", init="encoder.safetensors")
    begin(typed)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(SegaeError, match="init was"):
        goes_on(typed)
    assert goes_on(replace(typed, init=str(home / "encoder.safetensors")))
    with pytest.raises(SegaeError, match="data was"):
        goes_on(replace(typed, data=Path("data"), init=str(home / "encoder.safetensors")))


def test_a_stream_is_the_same_wherever_its_address_is_typed(places, monkeypatch):
    home, elsewhere = places
    typed = Pretrain(data=(Path("hf://owner/name?split=train"),), out=home / "run")
    begin(typed)
    monkeypatch.chdir(elsewhere)
    assert goes_on(typed)


CPU = torch.device("cpu")


def started(folder: Path, **more: object) -> dict[str, str]:
    return start_provenance(folder, CPU, "abc", **{"resume": True, **more})


def test_a_resumed_run_names_all_that_it_ran_on_and_when_it_began(places, monkeypatch):
    first = started(Path("run"), resume=False)
    there = {"commit": "1234", "versions": "torch 9", "device": "a GPU", "date": "2031-01-01"}
    monkeypatch.setattr(provenance, "provenance", lambda device: dict(there))
    for _ in range(2):  # going on twice on the same machine adds nothing
        resumed = started(Path("run"))
        assert resumed == {name: f"{first[name]}..{value}" for name, value in there.items()} | {"date": first["date"]}
    (Path("run") / DONE_FILE).write_text("{}")
    monkeypatch.setattr(provenance, "provenance", lambda device: dict.fromkeys(there, "later"))
    assert started(Path("run")) == resumed


def test_an_encoder_that_was_replaced_is_not_taken_for_the_old_one(places):
    home, _ = places
    started(Path("run"), resume=False, init="encoder.safetensors")
    assert started(Path("run"), init=str(home / "encoder.safetensors"))
    (home / "encoder.safetensors").write_bytes(b"other weights")
    with pytest.raises(SegaeError, match=r"encoder\.safetensors has changed since it began"):
        started(Path("run"), init="encoder.safetensors")
    with pytest.raises(SegaeError, match="training images have changed"):
        start_provenance(Path("run"), CPU, "other", init="random", resume=True)
