"""The throughput benchmark runs as a user would run it, and its rows can be read, doubted and replaced."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
CPU = torch.device("cpu")
BY = {"benchmark": "throughput", "settings": "16 images an epoch"}
CELL = {"task": "segment", "encoder": "test_resnet", "image_size": 64, "batch_size": 8, "data_path": "cache"}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_quick_mode_measures_both_tasks_on_every_data_path_and_writes_rows(tmp_path):
    out = tmp_path / "rows.csv"
    words = ["--quick", "--device", "cpu", "--data-paths", "cache", "device", "live", "--peers", "plain-loop", "timm"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", BENCHMARKS / "throughput.py", *words, "--write", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = read(out)
    found = {tuple(row[name] for name in ("task", "beside", "system", "metric")): float(row["value"]) for row in rows}
    assert len(found) == len(rows)
    for task in ("pretrain", "segment"):
        for path in ("cache", "device", "live"):
            values = {metric: found[task, path, "segae", metric] for metric in ("ceiling", "images_per_second")}
            assert all(value > 0 for value in values.values())
            # a run of two steps on a busy machine: the order of magnitude only
            assert 0.05 < found[task, path, "segae", "rate_over_ceiling"] < 5
            assert 0 <= found[task, path, "segae", "data_wait"] < 1
            assert found[task, path, "segae", "forward_ms"] > 0
            assert found[task, path, "timm-classifier", "ceiling"] > 0
            ratio = found[task, path, "segae", "ratio_to_plain_loop"]
            rates = [found[task, path, system, "images_per_second"] for system in ("segae", "plain-loop")]
            assert ratio == pytest.approx(rates[0] / rates[1], rel=0.01)  # one round: the ratio of the medians
    for row in rows:
        assert row["encoder"] == "test_resnet"
        assert row["commit"]
        assert "torch" in row["versions"]
        assert "torchvision" in row["versions"]
        assert row["device"].startswith("cpu")
        assert row["settings"].startswith("16 images an epoch, drawn at 64 px; 1 rounds")
        assert "a ceiling's step after each batch" in row["settings"]  # no workers, on a CPU


@pytest.mark.slow
def test_each_cell_has_a_process_of_its_own(tmp_path):
    out = tmp_path / "rows.csv"
    words = ["--task", "segment", "--encoders", "test_resnet", "--sizes", "32", "64", "--images", "8", "--rounds", "1"]
    words += ["--batch-size", "4", "--drawn-size", "64", "--workers", "0", "--peers", "--device", "cpu", "--write"]
    subprocess.run(
        [sys.executable, "-W", "ignore", BENCHMARKS / "throughput.py", *words, "--out", str(out)], check=True
    )
    assert {row["image_size"] for row in read(out) if row["metric"] == "ceiling"} == {"32", "64"}


@pytest.fixture
def benchmarks(monkeypatch) -> None:
    """The scripts' folder, from which they import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_ceiling_between_an_epochs_batches_costs_the_epoch_nothing(benchmarks, monkeypatch):
    from rates import CeilingBetween

    from segae.training.pace import TimedLoader

    now, made = 0.0, []

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Step:
        images = 4

        def __init__(self) -> None:
            made.append(self)
            pass_time(1000)  # made once for all of them

        def __call__(self) -> None:
            self.cost = 7 if hasattr(self, "cost") else 100  # a first step is slow
            pass_time(self.cost)

    def batches():
        for _ in range(4):
            pass_time(1)
            yield (torch.zeros(4),)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    timed = TimedLoader(batches(), CPU, skip=1)
    between = CeilingBetween(timed, Step)
    for _ in between:
        pass_time(10)
    assert (timed.images, timed.waited_s, timed.worked_s) == (12, 3, 30)
    assert (len(made), between.images, between.seconds) == (1, 12, 21)
    assert between.paused_s == 1000 + 107 + 2 * 14
    assert timed.total_s == 4 * 11 + between.paused_s


def test_rows_of_the_same_cell_are_replaced(benchmarks, tmp_path):
    from rows import save

    out = tmp_path / "rows.csv"
    save(CPU, CELL, [("segae", "ceiling", 1.0), ("segae", "data_wait", [0.5, 0.1, 0.2])], out, **BY)
    save(CPU, {**CELL, "image_size": 128}, [("segae", "ceiling", 3.0)], out, **BY)
    save(CPU, CELL, [("segae", "ceiling", 2.0)], out, **BY)
    save(CPU, CELL, [("segae", "ceiling", 7.0)], out, benchmark="finetune_epoch", settings="")
    save(CPU, {**CELL, "beside": "live"}, [("segae", "ceiling", 9.0)], out, **BY)
    values = [(row["image_size"], row["metric"], float(row["value"])) for row in read(out)]
    ceilings = [("64", "ceiling", 2.0), ("64", "ceiling", 7.0), ("64", "ceiling", 9.0)]  # others' stay
    assert sorted(values) == [("128", "ceiling", 3.0), *ceilings, ("64", "data_wait", 0.2)]
    (wait,) = (row for row in read(out) if row["metric"] == "data_wait")
    assert (wait["lowest"], wait["highest"]) == ("0.1", "0.5")


def test_the_laid_out_pets_are_what_torchvision_and_segae_read(benchmarks, tmp_path):
    from layout import lay_out
    from peers import Augment
    from torchvision.datasets import OxfordIIITPet

    import segae

    source = segae.draw_pets(tmp_path / "drawn", train=3, test=1, size=64, progress=False)
    folder = lay_out(7, tmp_path, source=source)
    data = segae.OxfordPets(folder)
    assert (len(data.splits["train"]), len(data.splits["test"])) == (7, 1)
    theirs = OxfordIIITPet(str(tmp_path), "trainval", "segmentation", transforms=Augment(32))
    assert len(theirs) == 7
    image_chw, mask_hw = theirs[0]
    assert (image_chw.shape, mask_hw.shape) == ((3, 32, 32), (32, 32))
    assert image_chw.dtype == torch.float32
    assert mask_hw.dtype == torch.int64
    assert set(mask_hw.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("name", ["fastai", "lightly", "plain-loop", "timm"])
def test_every_peer_runs_an_epoch(name, benchmarks, tmp_path):
    from layout import lay_out
    from peers import PEERS, Absent, Work

    lay_out(8, tmp_path, size=64)
    encoder = "resnet18" if name == "fastai" else "test_resnet"
    task = "pretrain" if name == "lightly" else "segment"
    work = Work(tmp_path, encoder, 64, 4, CPU, workers=0, steps=1)
    try:
        peer = PEERS[task][name](work)
    except Absent as reason:
        pytest.skip(str(reason))
    assert peer.rate() > 0


def test_a_peer_that_does_not_fit_says_so(benchmarks, tmp_path):
    from peers import PEERS, Absent, Work

    with pytest.raises(Absent, match="resnets, not test_resnet"):
        PEERS["segment"]["fastai"](Work(tmp_path, "test_resnet", 64, 4, CPU, workers=0, steps=1))
