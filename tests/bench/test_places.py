"""Paths mean the folder in which segae bench was typed, wherever a run is computed; and its files are its own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from segae.bench.benchmark import Bench, run
from segae.bench.grid import Cell, make_cell
from segae.bench.jobs import Job, Outcome, do
from segae.bench.planning import cells_of, grids_of, in_place, with_data
from segae.cli import main
from segae.data.drawn_pets import draw_pets
from segae.errors import SegaeError
from segae.tasks.compare import Compare
from segae.tasks.settings import UsedImages


@pytest.fixture
def typed_here(tmp_path, monkeypatch) -> Path:
    """A folder with a data set, further images and a pretraining file; the commands are typed in it."""
    here = tmp_path / "m"
    draw_pets(here / "pets", train=4, test=2, size=32, seed=0, unlabelled=0, progress=False)
    for place in (here / "more", tmp_path / "z-more"):
        draw_pets(place / "drawn", train=2, test=1, size=32, seed=1, progress=False)
        (place / "drawn" / "images").rename(place / "pictures")
    (here / "pretraining.json").write_text('{"epochs": 1}')
    monkeypatch.chdir(here)
    return here


class Recorder:
    """An engine that fails every job and remembers what it was given."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.waiting: list[Job] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def has_room(self) -> bool:
        return True

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.waiting.append(job)

    def next(self) -> tuple[Job, Outcome]:
        return self.waiting.pop(0), Outcome(failure="no luck")


def paths_of(job: Job) -> list[Path]:
    config = job.cell.config
    values = [getattr(config, field.name) for field in fields(config)]
    values += [job.log, job.cell.pretraining, job.cell.used.config.data, *job.cell.used.config.unlabelled]
    return [
        path for value in values for path in (value if isinstance(value, tuple) else [value]) if isinstance(path, Path)
    ]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_what_a_worker_is_given_names_the_same_places_from_any_folder(engine, typed_here, monkeypatch, tmp_path):
    recorder = Recorder()
    monkeypatch.setattr("segae.bench.engine.make_engine", lambda *_, **__: recorder)
    config = Bench(
        data=Path("pets"),
        unlabelled=(Path("more/pictures"),),
        rows=Path("rows/bench.csv"),
        pretrain_config=Path("pretraining.json"),
        encoders=("test_resnet",),
        arms=("random", "ae:mask"),
        budgets=("100%",),
        engine=engine,
        estimate=False,
    )
    with pytest.raises(SegaeError, match="no luck"):
        run(config)
    assert {job.pretraining for job in recorder.jobs} == {True, False}
    for job in recorder.jobs:
        found = paths_of(job)
        assert all(path.is_absolute() for path in found), found
        assert job.cell.config.out == typed_here / "runs" / "bench"
        assert job.cell.config.data.samefile(typed_here / "pets")


def settings(config: Bench) -> list[str]:
    base, grids = grids_of(config)
    return [cell.settings for cell in cells_of(base, grids, 4)]


@pytest.mark.parametrize("more", ["more/pictures", "../z-more/pictures", "absolute"])
def test_a_run_is_the_same_one_that_it_was_with_relative_paths(more, typed_here):
    """Absolute folders come before relative ones, and not so when both are absolute: the order counts."""
    unlabelled = typed_here.parent / "z-more" / "pictures" if more == "absolute" else Path(more)
    how = {"encoders": ("test_resnet",), "arms": ("random", "ae:mask"), "budgets": ("100%",)}
    typed = with_data(Bench(data=Path("pets"), unlabelled=(unlabelled,), **how))
    assert settings(in_place(typed)) == settings(typed)
    assert in_place(typed).out.is_absolute()


TINY = [
    *("--encoders", "test_resnet", "--image-size", "64", "--batch-size", "4", "--schedules", "0+1"),
    *("--budgets", "100%", "--seeds", "0", "--arms", "random"),
    *("--devices", "cpu", "--threads", "1", "--no-estimate", "--no-page"),
]


def test_a_run_typed_with_relative_paths_goes_on_from_another_folder(typed_here, monkeypatch, capsys):
    main(["bench", "--data", "pets", "--out", "runs", *TINY])
    assert "1 runs, 0 of them finished already" in capsys.readouterr().out
    (typed_here / "below").mkdir()
    monkeypatch.chdir(typed_here / "below")
    main(["bench", "--data", "../pets", "--out", "../runs", *TINY])
    assert "1 runs, 1 of them finished already" in capsys.readouterr().out
    assert not list((typed_here / "below").iterdir())


@pytest.mark.parametrize("more", [[], ["--tune", "lr=0.1"]])
def test_a_table_of_something_else_is_refused_and_left_as_it_was(more, typed_here, capsys, monkeypatch):
    monkeypatch.setattr("segae.bench.engine.make_engine", lambda *_, **__: pytest.fail("something was trained"))
    foreign = typed_here / "prices.csv"
    foreign.write_text("fruit,price\napple,1\n")
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--data", "pets", "--out", "runs", "--rows", "prices.csv", *TINY, *more])
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "prices.csv is no table of result rows: it has no column experiment" in told
    assert "--rows" in told
    assert foreign.read_text() == "fruit,price\napple,1\n"


def job(typed_here: Path, *, pretraining: bool = False) -> Job:
    config = Compare(data=Path("pets"), out=Path("runs"), encoder="test_resnet", image_size=64, batch_size=6)
    cell: Cell = make_cell(config, "ae:mask", 0, UsedImages(config))
    return Job(cell, pretraining=pretraining, log=typed_here / "logs" / "run.log")


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 9 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")]
)
def test_a_full_memory_is_no_fault_of_ours(error, typed_here, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr("segae.tasks.compare.run_arm", full)
    outcome = do(job(typed_here))
    assert not outcome.ours
    assert "the memory is full: " in outcome.failure
    assert "allocate" in outcome.failure
    assert "--batch-size 3" in outcome.failure


def test_another_error_stays_one_of_ours(typed_here, monkeypatch):
    monkeypatch.setattr("segae.tasks.compare.pretrain_arm", lambda *_: {}["planted"])
    outcome = do(job(typed_here, pretraining=True))
    assert outcome.ours
    assert "unexpected KeyError" in outcome.failure
