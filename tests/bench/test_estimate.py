"""What is said of the time before a benchmark starts: for each kind of run, with the threads and jobs it will have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segae.bench.benchmark import Bench, run
from segae.bench.estimate import StandIns, estimate, tell_estimate
from segae.bench.grid import Cell, make_cells
from segae.bench.planning import with_data
from segae.data.drawn_pets import draw_pets
from segae.errors import SegaeError
from segae.tasks.compare import Compare
from segae.tasks.plan import Plan
from segae.training.forecast import Forecast

TRAIN, TEST = 8, 2
HOUR = 3600.0


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    draw_pets(root, train=TRAIN, test=TEST, size=32, seed=0, progress=False)
    return root


def cells(pets: Path, out: Path, arms=("random",), seeds=(0, 1), encoders=("test_resnet",)) -> list[Cell]:
    base = Compare(data=pets, out=out, arms=arms, seeds=seeds, image_size=64, pretrain_epochs=1)
    return make_cells(base, TRAIN, encoders=encoders, decoders=["unet"], budgets=["100%"], schedules=["1+1"])


class Trial:
    """Stands in for ten seconds of training: an hour for a run, ten for a pretraining; no encoder but test_resnet."""

    def __init__(self) -> None:
        self.seen: list[Plan] = []
        self.threads: list[int] = []

    def __call__(self, planned: Plan) -> Forecast:
        self.seen.append(planned)
        self.threads.append(torch.get_num_threads())
        if planned.encoder == "huge":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        if planned.encoder != "test_resnet":
            raise SegaeError(f"no encoder {planned.encoder}.")
        training = HOUR if planned.kind == "segment" else 10 * HOUR
        return Forecast(training, 0, 0, 0, 0, 0, images_per_second=1e9, peak_memory_mb=1, energy_wh=None)


@pytest.fixture
def trial(monkeypatch) -> Trial:
    stand_in = Trial()
    monkeypatch.setattr("segae.bench.estimate.plan", stand_in)
    return stand_in


def told(capsys, pets: Path, out: Path, found: list[Cell], **how) -> str:
    tell_estimate(Bench(data=pets, out=out, devices=("cpu",), **how), found)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("seeds", "jobs", "said"),
    [
        ((0, 1), None, "2 runs to be done: about 2 h 00 min."),
        ((0, 1), 2, "2 runs to be done: about 1 h 00 min with 2 at once."),
        ((0, 1, 2, 3), 2, "4 runs to be done: about 2 h 00 min with 2 at once."),
        ((0, 1), 8, "2 runs to be done: about 1 h 00 min with 2 at once."),
        ((0,), 2, "1 run to be done: about 1 h 00 min."),
    ],
)
def test_the_time_is_that_of_the_runs_that_are_done_at_once(seeds, jobs, said, trial, pets, tmp_path, capsys):
    assert said in told(capsys, pets, tmp_path, cells(pets, tmp_path, seeds=seeds), jobs=jobs)
    assert len(trial.seen) == 1, "two runs of one kind need one trial"


def test_a_run_waits_for_its_pretraining_however_many_are_done_at_once(trial, pets, tmp_path, capsys):
    found = cells(pets, tmp_path, arms=("random", "ae:mask"))
    shown = told(capsys, pets, tmp_path, found, jobs=8)
    assert "4 runs and 2 pretrainings to be done: about 11 h 00 min with 4 at once." in shown


@pytest.mark.parametrize(
    ("how", "wanted"),
    [({"jobs": 4, "threads": 3}, 3), ({"jobs": 2}, 4), ({"threads": 5}, 5), ({}, 7), ({"engine": "ray", "jobs": 4}, 2)],
)
def test_the_trial_has_the_threads_that_a_run_will_have(how, wanted, trial, pets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    try:
        told(capsys, pets, tmp_path, cells(pets, tmp_path), **how)
        assert torch.get_num_threads() == 7, "what comes after the trial has as many as before"
    finally:
        torch.set_num_threads(before)
    assert trial.threads == [wanted]


def test_scoring_and_a_single_decoding_count(pets, tmp_path, monkeypatch):
    paid = Forecast(
        training_s=100,
        validation_s=0,
        between_s=0,
        start_s=0,
        decode_s=40,
        finish_s=5,
        images_per_second=0.5,
        peak_memory_mb=1,
        energy_wh=None,
    )
    monkeypatch.setattr("segae.bench.estimate.plan", lambda planned: paid)
    scoring = TEST / 0.5 / 3 + 5
    decoding = 40 / TRAIN * (TRAIN + TEST)
    for seeds in ((0,), (0, 1, 2)):
        found = estimate(cells(pets, tmp_path, seeds=seeds), "cpu")
        assert found.work_s == pytest.approx(len(seeds) * (100 + 5 + scoring) + decoding)


@pytest.mark.parametrize(
    ("encoder", "why"), [("nonexistent", "no encoder nonexistent"), ("huge", "the memory is full: CUDA out of memory")]
)
def test_a_kind_that_cannot_be_tried_is_said_and_the_others_are_told(encoder, why, trial, pets, tmp_path, capsys):
    found = cells(pets, tmp_path, encoders=(encoder, "test_resnet"))
    shown = told(capsys, pets, tmp_path, found)
    assert "4 runs to be done: about 2 h 00 min for what could be tried." in shown
    assert f"unknown for 2 x {encoder}, unet, 1 + 1 epochs: {why}" in shown
    assert "no time is known" in told(capsys, pets, tmp_path, found[:2])


def test_a_device_that_is_not_there_is_said_before_anything_is_tried(trial, pets, tmp_path):
    with pytest.raises(SegaeError, match="'cuda:77' is not there"):
        tell_estimate(Bench(data=pets, out=tmp_path, devices=("cpu", "cuda:77")), cells(pets, tmp_path))
    assert not trial.seen


def test_of_images_that_are_not_there_yet_the_number_decides(trial, pets, tmp_path):
    estimate(cells(pets, tmp_path, arms=("ae:mask",)), "cpu", StandIns(3680, 3669, 100))
    assert {(planned.kind, planned.images, planned.data) for planned in trial.seen} == {
        ("segment", 3680, ()),
        ("pretrain", 3780, ()),
    }


def test_the_estimate_comes_before_the_download(trial, tmp_path, capsys, monkeypatch):
    class NoConnection(Exception):
        pass

    def download(config):
        assert trial.seen, "nothing was tried before the download"
        assert "downloaded" in capsys.readouterr().out
        raise NoConnection

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segae.tasks.data.run_pets", download)
    with pytest.raises(NoConnection):
        run(Bench(preset="full", encoders=("test_resnet",), arms=("random", "ae:mask"), devices=("cpu",)))
    assert {planned.images for planned in trial.seen} == {3680}


def test_what_was_told_before_the_download_is_not_told_again(trial, pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segae.tasks.data.run_pets", lambda config: pets)
    new = Bench(preset="smp", encoders=("test_resnet",), devices=("cpu",))
    assert not with_data(new).estimate
    assert with_data(Bench(preset="smp", devices=("cpu",), tune=("lr=0.1",))).estimate
    tried = len(trial.seen)
    for archive in ("images", "annotations"):
        (tmp_path / "data" / "pets").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "pets" / f".{archive}.tar.gz.unpacked").touch()
    assert with_data(new).estimate, "they were there already: the missing runs are still to be counted"
    assert len(trial.seen) == tried
