"""The benchmarks of single steps and epochs run as a user would run them, and their rows come out."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


def run(script: str, out: Path, *words: str) -> dict[tuple[str, str], dict[str, str]]:
    """Its rows by system and metric."""
    command = [sys.executable, "-W", "ignore", BENCHMARKS / script, "--quick", "--device", "cpu", "--write"]
    # threads that wait must not keep a busy machine from working
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([*command, "--out", out, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["system"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    for row in rows:
        assert row["benchmark"] == script.removesuffix(".py")
        assert row["encoder"] == "test_resnet"
        assert row["commit"]
    return found


def value(rows: dict[tuple[str, str], dict[str, str]], system: str, metric: str) -> float:
    return float(rows[system, metric]["value"])


def test_every_switch_of_a_cpu_is_timed(tmp_path):
    rows = run("switches.py", tmp_path / "rows.csv")
    wanted = {"channels_last", "fused_adamw_not_foreach", "fused_adamw_not_loop", "bfloat16_training"}
    wanted |= {"bfloat16_evaluation", "inference_mode", "activation_checkpointing", "micro_batch"}
    if torch.get_num_threads() > 1:
        wanted.add("all_threads")
    if sys.platform == "linux":
        wanted.add("freed_memory_kept")
    assert {system for system, _ in rows} == wanted
    for name in wanted:
        on, off = (value(rows, name, f"step_ms_{way}") for way in ("on", "off"))
        assert value(rows, name, "time_on_over_off") == pytest.approx(on / off, rel=0.01)  # one pair
    for name, most in (("activation_checkpointing", 0.5), ("micro_batch", 0.6)):
        assert value(rows, name, "kept_mb_on") < most * value(rows, name, "kept_mb_off")
    if sys.platform == "linux":
        assert value(rows, "freed_memory_kept", "peak_memory_mb_on") > 0


def test_each_way_computes_the_same_where_it_should(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("scene", "turns", "ways"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import scene
    import ways

    given = scene.Scene("test_resnet", 64, 4, CPU, pairs=1)
    layout = ways.channels_last(given)
    plain, flat = layout.on, layout.off
    kernels = [[one for one in step.model.parameters() if one.dim() == 4] for step in (plain, flat)]
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in kernels[0])
    assert all(one.is_contiguous() for one in kernels[1])
    assert plain.batch[0].is_contiguous(memory_format=torch.channels_last)
    assert flat.batch[0].is_contiguous()
    assert float(plain()) == pytest.approx(float(flat()), rel=1e-4)
    loop = ways.fused_adamw(given, foreach=False)
    losses = [[float(step()) for _ in range(2)] for step in (loop.on, loop.off)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_sparse_step_is_timed_against_the_dense_one(tmp_path):
    rows = run("sparse_step.py", tmp_path / "rows.csv")
    assert set(rows) == {
        ("sparse", "images_per_second"),
        ("dense", "images_per_second"),
        ("sparse", "sparse_over_dense"),
    }
    row = rows["sparse", "sparse_over_dense"]
    assert 0 < float(row["lowest"]) <= float(row["value"]) <= float(row["highest"])


def test_sparse_and_dense_steps_differ_in_the_masking_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("rows", "sparse_step", "turns"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import sparse_step

    words = ["--quick", "--device", "cpu"]
    sparse, dense = sparse_step.make_steps("test_resnet", sparse_step.parse(words), CPU)
    tokens = {name for name in sparse.model.state_dict() if "mask_tokens" in name}
    ours, theirs = sparse.model.state_dict(), dense.model.state_dict()
    assert tokens
    assert set(ours) - set(theirs) == tokens
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    seen_bchw, hidden_b1hw = sparse.show()[0][:2]
    other_bchw, other_b1hw = dense.show()[0][:2]
    assert torch.equal(hidden_b1hw, other_b1hw)
    assert torch.equal(seen_bchw, other_bchw)
    assert float(sparse()) != float(dense())


def test_an_epoch_is_timed_against_the_plain_loop(tmp_path):
    rows = run("finetune_epoch.py", tmp_path / "rows.csv")
    ours, theirs = (value(rows, system, "images_per_second") for system in ("segae", "plain-loop"))
    assert value(rows, "segae", "time_over_plain_loop") == pytest.approx(theirs / ours, rel=0.01)  # one pair


def test_decoding_is_timed_and_both_ways_give_the_same_picture(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("decoding", "rows", "turns"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import decoding

    paths = decoding.draw_large(tmp_path, 2)
    timed, apart = decoding.measure(paths, 64, 1)
    assert 0 < apart < 3  # an eighth of the size is another picture, but hardly
    assert timed.ratio > 0
    given = decoding.parse(["--images", "2", "--pairs", "1", "--out", str(tmp_path / "rows.csv")])
    decoding.write("2000 x 1500 px", 64, timed, apart, given)
    with (tmp_path / "rows.csv").open() as file:
        rows = {(row["system"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows["live", "grey_levels_apart"] == pytest.approx(apart, abs=1e-3)
    assert rows["live", "time_over_whole"] == pytest.approx(rows["live", "ms"] / rows["whole", "ms"], rel=0.01)
