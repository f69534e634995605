"""A benchmark from its call to rows and report: repeated, killed, in several processes, with runs that fail."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

import segae
from segae.bench import runner
from segae.bench.results import COLUMNS, read_details, read_rows
from segae.errors import DataError, SegaeError
from tests.fabricate import make_pets

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COST = {"seconds", "peak_memory_mb", "date", "pretrain_seconds", "commit", "pretrain_commit"}
TINY: dict[str, Any] = {
    **{"weights": ["random", "random+pseudo_masks+decoder"], "labels": 0.5, "seeds": 2, "encoders": "test_resnet"},
    **{"schedules": "0+1", "finetune": {"image_size": 64, "batch_size": 4}, "device": "cpu", "threads": 1},
    "pretrain": {"image_size": 64, "epochs": 1, "batch_size": 8},
}


@pytest.fixture(scope="module", autouse=True)
def no_sheets() -> Iterator[None]:
    """Drawing them takes half of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pretrain.reconstruction_sheet", "finetune.segmentation_sheet", "evaluate.segmentation_sheet"):
            verb, _, function = name.partition(".")
            patch.setattr(importlib.import_module(f"segae.commands.{verb}"), function, lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training, 4 test and 4 unlabeled images."""
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 12, 4, unlabeled=4)


@pytest.fixture(scope="module")
def finished(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, segae.BenchResult, list[str]]:
    """The folder of a benchmark, its result, and what was logged."""
    out, messages = tmp_path_factory.mktemp("finished") / "out", []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("segae")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return out, segae.benchmark(pets, out=out, **TINY), messages
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def copy(finished: tuple[Path, segae.BenchResult, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the verbs that were called since, each with its folder."""
    calls: list[str] = []

    def note(verb: str) -> Callable[..., Any]:
        real = getattr(runner, verb)
        return lambda *a, **k: calls.append(f"{verb} {k['out']}") or real(*a, **k)

    for verb in ("pretrain", "finetune", "evaluate"):
        monkeypatch.setattr(runner, verb, note(verb))
    return calls


def numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without what they cost, in the order of their ids."""
    return rows.drop(columns=list(COST)).sort_values("run_id").reset_index(drop=True)


def require_same(out: Path, other: Path, experiment: str = "bench") -> None:
    pd.testing.assert_frame_equal(numbers(read_rows(out / "bench.csv")), numbers(read_rows(other / "bench.csv")))
    for kind in ("per_image", "confusion", "curves"):
        tables = [read_details(folder / "bench.csv", experiment, kind) for folder in (out, other)]
        first, second = (table.sort_values(list(table)).reset_index(drop=True) for table in tables)
        pd.testing.assert_frame_equal(first, second)


def test_every_run_is_a_row_that_says_what_was_done(pets: Path, finished: tuple[Path, segae.BenchResult, Any]) -> None:
    out, result, _ = finished
    rows = result.runs
    assert result.report == out / "index.html"
    assert "pseudo-masks" in result.report.read_text()
    assert set(COLUMNS) <= set(rows)
    assert list(zip(rows["method"], rows["seed"], strict=True)) == [
        *((method, seed) for method in ("", "pseudo_masks") for seed in (0, 1))
    ]
    same = {"dataset": "pets", "split": "test", "labels": 6, "label_fraction": 0.5, "epoch_images": 12, "steps": 3}
    same |= {"encoder": "test_resnet", "decoder": "unet", "image_size": 64, "freeze_epochs": 0, "epochs": 1}
    same |= {"batch_size": 4, "loss": "cross_entropy", "augment": "1", "weights": "random", "finetuning": "supervised"}
    assert (rows[list(same)] == pd.Series(same)).all(axis=None)
    plain, pretrained = rows.iloc[0], rows.iloc[2]
    assert plain[["method", "method_args", "method_family", "pretrain_dataset"]].tolist() == ["", "", "", ""]
    assert plain[[name for name in rows if name.startswith("pretrain_")]].replace("", np.nan).isna().all()
    assert pretrained["method_family"] == "pseudo_masks"
    assert json.loads(pretrained["method_args"])["source"] == "color"
    assert pretrained["transfer"] == "encoder+decoder"
    assert (pretrained["pretrain_images"], pretrained["pretrain_epochs"]) == (16, 1)  # without the test images
    assert pretrained["pretrain_images_seen"] <= 16
    assert pretrained["pretrain_seconds"] > 0
    assert pretrained["pretrain_batch_size"] == 8
    assert pretrained["pretrain_seed"] == 0
    subsets = rows.groupby("seed")["label_subset"].unique()
    assert [len(found) for found in subsets] == [1, 1]
    metrics = json.loads((out / f"test-random-{plain['run_id']}" / "test" / "metrics.json").read_text())
    assert plain["miou"] == pytest.approx(metrics["miou"], rel=1e-5)
    truth = pd.DataFrame(metrics["confusion"], metrics["classes"], metrics["classes"]).loc[["pet", "background"]]
    ious = [truth.loc[name, name] / (truth.loc[name].sum() + truth[name].drop(name).sum()) for name in truth.index]
    assert plain["miou_without_border"] == pytest.approx(np.mean(ious), rel=1e-5)
    images = read_details(out / "bench.csv", "bench", "per_image")
    assert images is not None
    assert images.groupby("run_id").size().to_dict() == dict.fromkeys(rows["run_id"], 4)


def test_one_line_per_run_is_logged_and_the_rest_is_in_files(finished: tuple[Path, Any, list[str]]) -> None:
    out, _, messages = finished
    assert sum("runs done" in line for line in messages) == 4
    assert sum("pretrainings done" in line for line in messages) == 2
    assert sum("left out of pretraining" in line for line in messages) == 1
    assert not any("images/s" in line or "training and" in line for line in messages)
    logs = [path.read_text() for path in (out / "logs").iterdir()]
    assert len(logs) == 6
    assert all("images/s" in text for text in logs)


def test_a_finished_benchmark_trains_nothing(pets: Path, copy: Path, done: list[str], finished: Any) -> None:
    result = segae.benchmark(pets, out=copy, **TINY)
    assert not done
    pd.testing.assert_frame_equal(result.runs, finished[1].runs)


def test_a_run_without_a_row_is_scored_again_and_no_other(
    pets: Path, copy: Path, done: list[str], finished: Any
) -> None:
    lines = (copy / "bench.csv").read_text().splitlines(keepends=True)
    (copy / "bench.csv").write_text("".join(lines[:2] + lines[3:]))
    segae.benchmark(pets, out=copy, **TINY)
    assert done == [f"evaluate {copy / f'test-random-{finished[1].runs.iloc[1].run_id}' / 'test'}"]
    require_same(copy, finished[0])


def test_shards_make_the_grid_together_and_another_study_reuses_the_runs(
    pets: Path, copy: Path, done: list[str], finished: Any
) -> None:
    ids = list(finished[1].runs["run_id"])
    how = {"out": copy, "experiment": "again", "report": False, **TINY}
    assert list(segae.benchmark(pets, shard="1/2", **how).runs["run_id"]) == ids[::2]
    assert list(segae.benchmark(pets, shard="2/2", **how).runs["run_id"]) == ids[1::2]
    assert [call.partition(" ")[0] for call in done] == ["evaluate"] * 4
    segae.benchmark(pets, **how)
    assert len(done) == 4
    for shard in ("0/2", "3/2", "half", "1/2/3"):
        with pytest.raises(SegaeError, match=f"shard must .*{shard}"):
            segae.benchmark(pets, shard=shard, **how)


def test_an_encoder_file_with_its_decoder_is_a_variant(pets: Path, copy: Path, finished: Any) -> None:
    row = finished[1].runs.iloc[2]
    file = next(copy.glob("pretrain-*-*/encoder.safetensors"))
    for file in copy.glob("pretrain-*/encoder.safetensors"):
        if json.loads(file.with_suffix(".json").read_text())["pretraining"]["seed"] == 0:
            how = TINY | {"weights": [f"{file}+decoder"], "seeds": 1, "report": False}
            (found,) = segae.benchmark(pets, out=copy.parent / "file", **how).runs.itertuples()
            assert (found.miou, found.method, found.transfer) == (row.miou, "pseudo_masks", "encoder+decoder")
            assert found.pretrain_images_seen == row.pretrain_images_seen


def test_a_run_that_fails_is_reported_at_the_end_and_the_others_are_kept(pets: Path, copy: Path) -> None:
    how = TINY | {"weights": ["imagenet", *TINY["weights"]], "seeds": 1, "rows": copy / "more.csv"}
    with pytest.raises(SegaeError, match=r"1 of 3 runs failed:\n  imagenet, 6 labels.*seed 0.*[Ii]mage[Nn]et"):
        segae.benchmark(pets, out=copy, **how)
    assert list(read_rows(copy / "more.csv")["method"]) == ["", "pseudo_masks"]


def test_a_pretraining_that_fails_costs_the_runs_that_need_it(
    pets: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "pretrain", lambda **_: {}["planted"])
    how = TINY | {"weights": ["random", "random+inpaint"], "pretrain_seed": 0}
    with pytest.raises(SegaeError, match=r"(?s)2 of 4 runs failed.*unexpected KeyError: 'planted'.*fault of segae"):
        segae.benchmark(pets, out=copy, **how)
    (log,) = (copy / "logs").glob("pretrain-random-inpaint-*")
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("more", [{}, {"tune": "lr=0.1"}])
def test_a_table_of_something_else_is_refused_and_left_as_it_was(
    pets: Path, tmp_path: Path, done: list[str], more: dict[str, Any]
) -> None:
    foreign = tmp_path / "prices.csv"
    foreign.write_text("fruit,price\napple,1\n")
    with pytest.raises(DataError, match=r"prices.csv lacks the columns"):
        segae.benchmark(pets, out=tmp_path, rows=foreign, **TINY, **more)
    assert foreign.read_text() == "fruit,price\napple,1\n"
    assert not done


SCRIPT = '''
import os, sys
from pathlib import Path

import segae
from segae.methods import Corrupted


@segae.register_method("fatal")
class Fatal(segae.Method):
    """End the process in which it is used, or be denoising of a kind."""

    died: str = ""

    def corrupt(self, images, generator, difficulty=None):
        if self.died:
            Path(self.died).touch()
            os._exit(9)
        return Corrupted(images * 0.5)

    def loss(self, prediction, target, mask):
        return (prediction - target).abs().mean()


segae.benchmark(sys.argv[1], out=sys.argv[2], **{settings!r})
'''


def start(pets: Path, out: Path, **settings: Any) -> subprocess.Popen[str]:
    """Run a script without a guard of its main part, as a user may write it."""
    script = out.parent / "script.py"
    script.write_text(SCRIPT.replace("{settings!r}", repr(TINY | settings)))
    how: dict[str, Any] = {"cwd": REPOSITORY, "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, "text": True}
    return subprocess.Popen([sys.executable, script, pets, out], stdout=-1, stderr=-1, **how)


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_run_and_the_error_says_so(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = ["random+fatal", f"random+fatal:{tmp_path / 'died'}", "random"]
    process = start(pets, out, weights=weights, jobs=2, seeds=1)
    _, error = process.communicate(timeout=600)
    assert (tmp_path / "died").exists()
    assert "1 of 3 runs failed" in error
    assert "its process was killed" in error
    assert error.count("Warning") <= 1  # of the script's own import
    assert list(read_rows(out / "bench.csv")["method"]) == ["fatal", ""]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_benchmark_that_is_killed_leaves_no_process_and_ends_with_the_same_rows(
    pets: Path, tmp_path: Path, finished: Any, jobs: int
) -> None:
    out = tmp_path / "out"
    process, deadline = start(pets, out, jobs=jobs), time.monotonic() + 300
    while not (out / "bench.csv").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    assert len(read_rows(out / "bench.csv")) < 4
    segae.benchmark(pets, out=out, **TINY)
    require_same(out, finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_two_jobs_give_the_rows_of_one(engine: str, pets: Path, tmp_path: Path, finished: Any) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    result = segae.benchmark(pets, out=tmp_path, jobs=2, engine=engine, **TINY)
    assert list(result.runs["run_id"]) == list(finished[1].runs["run_id"])
    require_same(tmp_path, finished[0])
