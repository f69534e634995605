"""A benchmark from its call to rows and report: repeated, killed, in several processes, with runs that fail."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import segae
from segae._io import process_runs
from segae.bench import compare_rows, runner
from segae.bench.next_steps import next_steps
from segae.bench.results import COLUMNS, read_details, read_rows
from segae.config import PretrainSettings
from segae.errors import DataError, SegaeError
from tests.command_lines import parse_command
from tests.fabricate import make_pets
from tests.pictures import draw_nothing

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COST = ["seconds", "peak_memory_mb", "date", "pretrain_seconds", "commit", "pretrain_commit"]
TINY = {
    **{"weights": ["random", "random+pseudo_masks+decoder"], "labels": 0.5, "seeds": 2, "encoders": "test_resnet"},
    **{"schedules": "0+1", "device": "cpu", "threads": 1},
    "finetune": {"image_size": "32x64", "batch_size": 4, "weight_decay": 0.02},
    "pretrain": {"image_size": 32, "epochs": 1, "batch_size": 8},
}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 12, 4, unlabeled=4)


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        yield


@pytest.fixture(scope="module")
def finished(pets, tmp_path_factory):
    """The folder of a benchmark, its rows, and what was logged."""
    out, messages, logger = tmp_path_factory.mktemp("finished") / "out", [], logging.getLogger("segae")
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    result = segae.benchmark(pets, out=out, **TINY)
    logger.removeHandler(handler)
    assert result.report == out / "index.html"
    assert "pseudo-masks" in result.report.read_text()
    return out, result.runs, messages


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture
def done(monkeypatch):
    """What was trained and scored since, as texts such as ``evaluate FOLDER``."""
    calls = []

    def note(verb, real):
        return lambda *a, **k: calls.append(f"{verb} {k['out']}") or real(*a, **k)

    for verb in ("pretrain", "finetune", "evaluate"):
        monkeypatch.setattr(runner, verb, note(verb, getattr(runner, verb)))
    return calls


def tables(folder):
    """What a benchmark found, in any order and at any cost."""
    rows = folder / "bench.csv"
    found = [read_rows(rows).drop(columns=COST)]
    found += [read_details(rows, "bench", kind) for kind in ("per_image", "confusion", "curves")]
    return [table.sort_values(list(table)).reset_index(drop=True) for table in found]


def require_same(out, other):
    for first, second in zip(tables(out), tables(other), strict=True):
        pd.testing.assert_frame_equal(first, second)


def test_every_run_is_a_row_that_says_what_was_done(finished):
    out, rows, _ = finished
    assert set(COLUMNS) <= set(rows)
    assert [list(rows["method"]), list(rows["seed"])] == [["", "", "pseudo_masks", "pseudo_masks"], [0, 1, 0, 1]]
    same = {"dataset": "pets", "split": "test", "labels": 6, "label_fraction": 0.5, "epoch_images": 12, "steps": 3}
    same |= {"encoder": "test_resnet", "decoder": "unet", "image_size": "32x64", "freeze_epochs": 0, "epochs": 1}
    same |= {"batch_size": 4, "loss": "cross_entropy", "augment": "default", "weights": "random"}
    same |= {"finetuning": "supervised"}
    same |= {"finetune_settings": '{"weight_decay": 0.02}'}
    assert (rows[list(same)] == pd.Series(same)).all(axis=None)
    assert list(rows.groupby("seed")["label_subset"].nunique()) == [1, 1]
    plain, pretrained = rows.iloc[0], rows.iloc[2]
    empty = [name for name in rows if name.startswith(("pretrain_", "method"))]
    assert plain[empty].replace("", np.nan).isna().all()
    expected = {"method_family": "pseudo_masks", "transfer": "encoder+decoder", "pretrain_images": 16}  # no test images
    expected |= {"pretrain_epochs": 1, "pretrain_batch_size": 8, "pretrain_seed": 0, "pretrain_decoder": "unet"}
    assert pretrained[list(expected)].to_dict() == expected
    assert json.loads(pretrained["method_args"])["source"] == "color"
    assert pretrained["pretrain_seconds"] > 0
    assert 8 <= pretrained["pretrain_images_seen"] <= 16
    metrics = json.loads((out / f"test-random-{plain['run_id']}" / "test" / "metrics.json").read_text())
    assert plain["miou"] == pytest.approx(metrics["miou"], rel=1e-5)
    truth = pd.DataFrame(metrics["confusion"], metrics["classes"], metrics["classes"]).loc[["pet", "background"]]
    ious = [truth.loc[name, name] / (truth.loc[name].sum() + truth[name].drop(name).sum()) for name in truth.index]
    assert plain["miou_without_border"] == pytest.approx(np.mean(ious), rel=1e-5)


def test_the_printed_pretraining_is_the_one_that_was_done(finished):
    out, rows, _ = finished
    (section,) = compare_rows(rows[rows["method"] != ""])
    again = vars(parse_command(dict(next_steps(section))["Pretrain as the best variant did, on pets"]))
    done = json.loads(next(out.glob("pretrain-*/config.json")).read_text())
    decided = ["encoder", "weights", "method", *PretrainSettings.TYPES]
    assert {name: again[name] for name in decided} == {name: done[name] for name in decided}
    assert again["method_args"] == {name: value for name, value in done["method_args"].items() if value is not None}


def test_one_line_per_run_is_logged_and_the_rest_is_in_files(finished):
    counts = {"runs done": 4, "pretrainings done": 2, "left out of pretraining": 1, "images/s": 0, "training and": 0}
    assert {text: sum(text in line for line in finished[2]) for text in counts} == counts
    logs = [path.read_text() for path in (finished[0] / "logs").iterdir()]
    assert [len(logs), sum("images/s" in text for text in logs)] == [6, 6]


def test_finished_runs_are_kept_and_one_without_a_row_is_scored_again(pets, copy, done, finished):
    pd.testing.assert_frame_equal(segae.benchmark(pets, out=copy, **TINY).runs, finished[1])
    assert not done
    lines = (copy / "bench.csv").read_text().splitlines(keepends=True)
    (copy / "bench.csv").write_text("".join(lines[:2] + lines[3:]))
    segae.benchmark(pets, out=copy, **TINY)
    assert done == [f"evaluate {copy / f'test-random-{finished[1].run_id[1]}' / 'test'}"]
    require_same(copy, finished[0])


def test_shards_make_the_grid_together(pets, copy, done, finished):
    how = {"out": copy, "experiment": "again", "report": False, **TINY}
    for part in (0, 1):
        rows = segae.benchmark(pets, shard=f"{part + 1}/2", **how).runs
        assert list(rows["run_id"]) == list(finished[1]["run_id"][part::2])
    assert [call.partition(" ")[0] for call in done] == ["evaluate"] * 4  # another study of the same runs
    assert len(segae.benchmark(pets, **how).runs) == len(done) == 4
    for shard in ("0/2", "3/2", "half"):
        with pytest.raises(SegaeError, match=f"shard must .*{shard}"):
            segae.benchmark(pets, shard=shard, **how)


def test_an_encoder_file_with_its_decoder_is_a_variant(pets, finished, tmp_path):
    files = [f for f in finished[0].glob("pre*/encoder.json") if '"seed": 0' in f.read_text()]
    how = TINY | {"weights": f"{files[0].with_suffix('.safetensors')}+decoder", "seeds": 1, "report": False}
    (row,) = segae.benchmark(pets, out=tmp_path, **how).runs.to_dict("records")
    for name in ("miou", "method", "method_args", "transfer", "pretrain_images_seen", "weights"):
        assert row[name] == finished[1][name][2]
    assert [row["weights_file"], *finished[1]["weights_file"]] == [how["weights"].removesuffix("+decoder"), *[""] * 4]


def test_runs_that_fail_are_reported_at_the_end_and_the_others_are_kept(pets, copy, monkeypatch):
    monkeypatch.setattr(runner, "pretrain", lambda **_: {}["planted"])
    how = TINY | {"weights": ["imagenet", "random", "random+inpaint"], "rows": copy / "more.csv"}
    with pytest.raises(SegaeError, match=r"(?s)4 of 6 runs failed .*KeyError: 'planted'.*imagenet, 6 .*fault of segae"):
        segae.benchmark(pets, out=copy, **how)
    assert list(read_rows(copy / "more.csv")["weights"]) == ["random", "random"]
    assert all("Traceback" in log.read_text() for log in (copy / "logs").glob("pretrain-inpaint-*"))


def test_a_table_of_something_else_is_refused_and_left_as_it_was(pets, tmp_path, done):
    foreign = tmp_path / "prices.csv"
    foreign.write_text("fruit,price\napple,1\n")
    with pytest.raises(DataError, match=r"prices.csv lacks the columns"):
        segae.benchmark(pets, out=tmp_path, rows=foreign, **TINY, tune="lr=0.1")
    assert (foreign.read_text(), done) == ("fruit,price\napple,1\n", [])


SCRIPT = """
import os, sys, segae
from segae.methods import Corrupted

@segae.register_method("fatal")
class Fatal(segae.Method):
    end: str = "no"
    def corrupt(self, images, generator, difficulty=None):
        return os._exit(9) if self.end == "yes" else Corrupted(images * 0.5)
    def loss(self, prediction, target, mask):
        return (prediction - target).abs().mean()

segae.benchmark(sys.argv[1], out=sys.argv[2], **SETTINGS)
"""


def start(pets, out, **settings):
    """Run a script without a guard of its main part, as a user may write it."""
    script = out.parent / "script.py"
    script.write_text(SCRIPT.replace("SETTINGS", repr(TINY | settings)))
    how = {"cwd": REPOSITORY, "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, "text": True}
    return subprocess.Popen([sys.executable, script, pets, out], stdout=-1, stderr=-1, **how)


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_run_and_the_error_says_so(pets, tmp_path):
    weights = ["random+fatal", "random+fatal:yes", "random"]
    _, error = start(pets, tmp_path / "out", weights=weights, jobs=2, seeds=1).communicate(timeout=600)
    assert "1 of 3 runs failed" in error
    assert "its process was killed" in error
    assert error.count("Warning") <= 1  # of the script's own import
    assert list(read_rows(tmp_path / "out" / "bench.csv")["method"]) == ["fatal", ""]


@pytest.mark.slow
def test_a_killed_benchmark_leaves_no_process_and_ends_with_the_same_rows(pets, tmp_path, finished):
    process, deadline = start(pets, tmp_path / "out", jobs=2), time.monotonic() + 300
    while not (tmp_path / "out" / "bench.csv").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    while any(process_runs(int(worker)) for worker in workers):
        assert time.monotonic() < deadline, "its workers are still there"
        time.sleep(0.1)
    assert len(read_rows(tmp_path / "out" / "bench.csv")) < 4
    segae.benchmark(pets, out=tmp_path / "out", jobs=2, **TINY)
    require_same(tmp_path / "out", finished[0])


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_rows(pets, tmp_path, finished):
    pytest.importorskip("ray")
    with pytest.raises(SegaeError, match=r"address must .*127\.0\.0\.1:1"):
        segae.benchmark(pets, out=tmp_path, engine="ray", address="127.0.0.1:1", **TINY)
    segae.benchmark(pets, out=tmp_path, jobs=2, engine="ray", **TINY)
    require_same(tmp_path, finished[0])
