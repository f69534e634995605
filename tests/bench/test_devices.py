"""Which of several devices a run gets: one that is free, so that no two runs share one while another rests."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from segae.bench.benchmark import Bench, run
from segae.bench.engine import Processes
from segae.bench.grid import make_cell
from segae.bench.jobs import Job, Outcome
from segae.data.drawn_pets import draw_pets
from segae.errors import SegaeError
from segae.tasks.compare import Compare
from segae.tasks.settings import UsedImages

GPUS = ("cuda:0", "cuda:1")


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    draw_pets(root, train=4, test=2, size=32, seed=0, progress=False)
    return root


class Pool:
    """Stands in for the processes: a job ends when the test says so, or at once, and fails with its device's name."""

    at_once = False
    made: list[Pool]

    def __init__(self, processes: int, **_) -> None:
        self.processes, self.running = processes, {}
        self.made.append(self)

    def schedule(self, function, args) -> Future:
        (job,) = args
        self.running[job.device] = future = Future()
        if self.at_once:
            self.end(job.device)
        return future

    def end(self, device: str) -> None:
        self.running[device].set_result(Outcome(failure=f"was on {device}"))

    def close(self) -> None: ...

    stop = join = close


@pytest.fixture
def pool(monkeypatch) -> type[Pool]:
    monkeypatch.setattr(Pool, "made", [], raising=False)
    monkeypatch.setattr("pebble.ProcessPool", Pool)
    return Pool


def test_a_run_gets_the_device_that_is_free(pool, pets, tmp_path):
    config = Compare(data=pets, out=tmp_path, encoder="test_resnet", image_size=64)
    job = Job(make_cell(config, "random", 0, UsedImages(config)))
    with Processes(2, GPUS, threads=1) as engine:
        engine.submit(job)
        engine.submit(replace(job, pretraining=True))
        (running,) = pool.made
        assert list(running.running) == list(GPUS)
        assert not engine.has_room()
        for device in ("cuda:1", "cuda:1", "cuda:0"):
            running.end(device)
            ended, _ = engine.next()
            assert ended.device == device
            assert engine.has_room()
            engine.submit(job)
            assert not running.running[device].done(), f"the run did not take the free {device}"


def test_the_devices_of_the_command_line_are_all_used(pool, pets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Pool, "at_once", True)
    how = {"encoders": ("test_resnet",), "arms": ("random",), "budgets": ("100%",), "seeds": (0, 1, 2)}
    with pytest.raises(SegaeError, match="3 of 3 runs failed"):
        run(Bench(data=pets, out=tmp_path, devices=GPUS, estimate=False, **how))
    assert pool.made[0].processes == 2
    shown = capsys.readouterr().out
    assert all(f"was on {device}" in shown for device in GPUS)
