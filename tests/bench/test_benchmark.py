"""segae bench from the command line to the rows: killed, in several processes, on Ray, with runs that fail."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import pytest

from segae.bench.engine import Processes, make_engine
from segae.bench.files import BenchFiles
from segae.bench.grid import make_cell
from segae.bench.jobs import Job
from segae.cli import main
from segae.errors import SegaeError
from segae.tasks.compare import Compare
from segae.tasks.rows import read_compressed, read_rows
from segae.tasks.settings import UsedImages

COST = {"seconds", "peak_memory_mb", "date", "pretrain_seconds", "commit", "pretrain_commit"}
TINY = [
    *("--encoders", "test_resnet", "--image-size", "64", "--batch-size", "4", "--schedules", "1+1"),
    *("--budgets", "50%", "100%", "--seeds", "0", "1", "--arms", "random", "ae:mask"),
    *("--pretrain-image-size", "64", "--pretrain-epochs", "1", "--pretrain-batch-size", "4"),
    *("--devices", "cpu", "--threads", "1", "--no-estimate", "--no-page"),
]
NEEDED = [
    "torch",
    "fastai.vision.all",
    "timm",
    "segmentation_models_pytorch",
    "albumentations",
    "segae.training.learner",
]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "12", "--test", "4", "--unlabelled", "4", "--size", "64"])
    return root


@pytest.fixture(scope="module")
def undisturbed(pets, tmp_path_factory) -> tuple[Path, float]:
    """The run folder of a benchmark that nobody disturbed, and its seconds."""
    out = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(out / "cache"))
        for name in NEEDED:  # whose time is no part of the seconds
            importlib.import_module(name)
        began = time.perf_counter()
        main(bench(pets, out))
    return out, time.perf_counter() - began


def bench(pets: Path, out: Path, *more: str) -> list[str]:
    return ["bench", "--data", str(pets), "--out", str(out), *TINY, *more]


def numbers(out: Path) -> list[dict[str, str]]:
    """The rows without what they cost."""
    return [{name: value for name, value in row.items() if name not in COST} for row in read_rows(out / "bench.csv")]


def require_the_same(out: Path, other: Path) -> None:
    assert numbers(out) == numbers(other)
    for name in ("per_image", "confusion"):
        lines = [read_compressed(folder / name / "bench.csv.gz") for folder in (out, other)]
        assert lines[0]
        assert lines[0] == lines[1]


def test_every_cell_becomes_one_row_and_its_details_stand_beside_it(undisturbed):
    out, _ = undisturbed
    rows = numbers(out)
    assert len(rows) == 2 * 2 * 2
    assert {(row["init"], row["labels"], row["epoch_images"]) for row in rows} == {
        (init, *budget) for init in ("random", "ae:mask") for budget in (("6", "12"), ("12", ""))
    }
    subsets = {}
    for row in rows:
        subsets.setdefault((row["labels"], row["seed"]), set()).add(row["label_subset"])
    assert all(len(found) == 1 for found in subsets.values()), "arms saw other labelled images"
    lines = read_compressed(out / "per_image" / "bench.csv.gz")
    assert len(lines) == len(rows) * 4
    assert {line["settings"] for line in lines} == {row["settings"] for row in rows}


def test_a_finished_benchmark_trains_nothing(undisturbed, pets, capsys):
    out, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    main(bench(pets, out))
    assert "8 runs, 8 of them finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before


def test_killed_five_times_it_ends_with_the_same_rows(undisturbed, pets, tmp_path):
    other, seconds = undisturbed
    chance = random.Random(0)
    script = tmp_path / "begin.py"  # a file: the server's children know neither this module nor this test's environment
    script.write_text(
        f"import os\nos.environ['SEGAE_CACHE'] = {str(tmp_path / 'cache')!r}\n"
        f"from segae.cli import main\nmain({bench(pets, tmp_path)!r})\n"
    )
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(NEEDED)  # imported once, not after each kill
    for _ in range(5):
        process = server.Process(target=runpy.run_path, args=(str(script),))
        process.start()
        # less than the whole even if nothing were lost by the kills
        process.join(chance.uniform(0.04, 0.14) * seconds)
        assert process.exitcode is None, "it ended before it could be killed"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(tmp_path / "cache"))
        main(bench(pets, tmp_path))
    require_the_same(tmp_path, other)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Python's own handlers; a shell has what it starts in the background ignore Ctrl-C."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == usual, "a command left its own handler behind"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_end_it_leaves_the_rows_so_far(
    number, code, usual_signals, undisturbed, pets, tmp_path, capsys, monkeypatch
):
    """As Ctrl-C, a stopped container or a cluster's time limit does."""
    kept = BenchFiles.keep

    def keep(self, cell, outcome) -> None:
        kept(self, cell, outcome)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(BenchFiles, "keep", keep)
    with pytest.raises(SystemExit) as stopped:
        main(bench(pets, tmp_path))
    assert stopped.value.code == code
    assert "Repeat the command" in capsys.readouterr().err
    (row,) = numbers(tmp_path)
    assert row in numbers(undisturbed[0])


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_two_workers_give_the_rows_of_one_process(engine, undisturbed, pets, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
    main(bench(pets, tmp_path, "--jobs", "2", "--engine", engine))
    require_the_same(tmp_path, undisturbed[0])


def test_a_run_that_fails_is_told_and_sinks_no_other(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as stopped:
        main([*bench(pets, tmp_path), "--arms", "imagenet", "random", "--budgets", "100%", "--seeds", "0"])
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert "1 of 2 runs failed" in shown.err
    assert "imagenet, all labels" in shown.err
    assert [row["init"] for row in read_rows(tmp_path / "bench.csv")] == ["random"]


def test_a_run_that_cannot_even_be_tried_sinks_no_other(pets, tmp_path, capsys, monkeypatch):
    """As above, and with the estimate that is printed by default: it meets the fault first."""
    monkeypatch.setattr("segae.bench.estimate.TRIED_S", 0.1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    one = ["--arms", "random", "--budgets", "100%", "--seeds", "0", "--encoders", "nonexistent", "test_resnet"]
    with pytest.raises(SystemExit) as stopped:
        main([*bench(pets, tmp_path), *one, "--estimate"])
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert "unknown for 1 x nonexistent, unet, 1 + 1 epochs: " in shown.out
    assert "for what could be tried" in shown.out
    assert "1 of 2 runs failed" in shown.err
    assert [row["encoder"] for row in read_rows(tmp_path / "bench.csv")] == ["test_resnet"]


def test_merged_classes_reach_the_pictures_of_the_page(pets, tmp_path):
    few = ["--arms", "random", "--budgets", "100%", "--seeds", "0", "--page", "--merge", "foreground=pet+border"]
    main([*bench(pets, tmp_path), *few])
    page = (tmp_path / "index.html").read_text()
    assert "No pictures" not in page
    assert "Worst images" in page
    (row,) = read_rows(tmp_path / "bench.csv")
    assert {name for name in row if name.startswith("iou_")} == {"iou_foreground", "iou_background"}


def test_an_unexpected_error_shows_no_traceback_and_keeps_it(pets, tmp_path, capsys, monkeypatch):
    def fault(*_):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("segae.tasks.compare.run_arm", fault)
    with pytest.raises(SystemExit) as stopped:
        main([*bench(pets, tmp_path), "--arms", "random", "--budgets", "100%", "--seeds", "0"])
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert "unexpected ZeroDivisionError: planted" in shown.err
    assert "Traceback" not in shown.out + shown.err
    (log,) = (tmp_path / "logs").iterdir()
    assert "Traceback" in log.read_text()


def test_a_worker_that_dies_costs_its_own_run_and_the_next_one_gets_another(pets, tmp_path):
    base = Compare(data=pets, out=tmp_path, encoder="test_resnet", image_size=64, batch_size=4, epochs=1, device="cpu")
    long, short = (make_cell(base, arm, 0, UsedImages(base)) for arm in ("random@long", "random"))
    with Processes(1, ["cpu"], threads=1) as engine:
        engine.submit(Job(long, log=tmp_path / "long.log"))
        deadline = time.monotonic() + 120
        while not (tmp_path / "long.log").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        for child in active_children():
            os.kill(child.pid, signal.SIGKILL)
        _, outcome = engine.next()
        assert "its process ended" in outcome.failure
        assert not engine._running
        engine.submit(Job(short, log=tmp_path / "short.log"))
        job, outcome = engine.next()
    assert job.cell == short
    assert not outcome.failure
    assert 0 <= outcome.row["miou"] <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": 0}, "--jobs 2"),
        ({"jobs": 1, "threads": 0}, "--threads 1"),
        ({"jobs": 1, "address": "auto"}, "--engine ray"),
    ],
)
def test_an_impossible_engine_is_refused(settings, message):
    with pytest.raises(SegaeError, match=message):
        make_engine("local", devices=["cpu"], **settings)


def test_a_cluster_that_is_not_there_is_said_at_once():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        begun = time.monotonic()
        with (
            pytest.raises(SegaeError, match=f"no Ray cluster could be reached at {address}.*ray start --head"),
            make_engine("ray", jobs=1, devices=["cpu"], address=address),
        ):
            pass
    assert time.monotonic() - begun < 60  # Ray itself takes five minutes


def test_another_study_of_the_same_folder_takes_the_finished_runs_over(undisturbed, pets, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(undisturbed[0], out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(undisturbed[0] / "cache"))
        for _ in range(2):
            main([*bench(pets, out), "--experiment", "again", "--rows", str(out / "bench.csv")])
    assert "rows in " in capsys.readouterr().out
    rows = read_rows(out / "bench.csv")
    first, again = ([row for row in rows if row["experiment"] == name] for name in ("bench", "again"))
    assert [row["settings"] for row in again] == [row["settings"] for row in first]
    assert len(rows) == 2 * len(first)
