"""`segae plan` prints and writes a forecast, and the forecast is what a real run then logs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from segae.cli import main
from segae.errors import SegaeError
from segae.tasks.plan import Plan, planned_training, run, table_of
from segae.tasks.plan_process import start_and_end_of_python
from segae.tasks.pretrain import Pretrain
from segae.tasks.segment import Segment
from segae.training.forecast import Calibration, Forecast, PhasePace

SMALL = ["--encoder", "test_resnet", "--image-size", "64", "--batch-size", "4", "--device", "cpu", "--seconds", "0.2"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "20", "--test", "2", "--unlabelled", "6", "--size", "64"])
    return root


def test_a_segmentation_is_planned_as_typed(pets, tmp_path, capsys):
    file = tmp_path / "plan.json"
    main(["plan", "--data", str(pets), *SMALL, "--epochs", "5", "--json", str(file)])
    shown = capsys.readouterr().out
    assert "1 (frozen) + 5 (full)" in shown
    assert "peak memory" in shown
    content = json.loads(file.read_text())
    work, forecast, calibration = content["workload"], content["forecast"], content["calibration"]
    assert work["train_images"] + work["valid_images"] == work["files"] == 20
    paces = {phase["name"]: phase["seconds_per_image"] for phase in calibration["phases"]}
    assert min(paces.values()) > 0
    images = work["train_images"]
    # in the order in which the forecast adds: another one differs in the last bit
    assert forecast["training_s"] >= images * paces["frozen"] + 5 * images * paces["full"]
    assert forecast["validation_s"] > 0
    assert forecast["total_s"] > forecast["training_s"]
    assert forecast["peak_memory_mb"] > 100
    assert content["planned"]["encoder"] == "test_resnet"
    assert {"commit", "versions", "device", "date"} <= content.keys()


@pytest.mark.parametrize("objective", ["denoise", "feature_layers"])  # the latter without the start that it asks for
def test_a_pretraining_is_planned_without_data_and_leaves_nothing(objective, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    main(["plan", "--kind", "pretrain", "--images", "100000", "--objective", objective, "--repeats", "2", *SMALL])
    shown = capsys.readouterr().out
    assert "190,000 training and 5,000 validation images" in shown  # two passes over 95,000
    assert "drawn pictures stood in" in shown
    assert not {path for path in set(tmp_path.rglob("*")) - before if "segae-cache" not in str(path)}


def test_a_label_budget_is_planned_without_data(tmp_path):
    file = tmp_path / "plan.json"
    main(["plan", "--images", "1000", "--labels", "300", *SMALL, "--json", str(file)])
    work = json.loads(file.read_text())["workload"]
    assert work["train_images"] + work["valid_images"] == 300


def test_what_is_left_out_is_the_tasks_own():
    assert planned_training(Plan(data=(Path("a"),))) == Segment(data=Path("a"))
    assert planned_training(Plan(kind="pretrain", data=(Path("a"),))) == Pretrain(data=(Path("a"),))
    planned = planned_training(Plan(kind="pretrain", data=(Path("a"),), objective="denoise", epochs=7))
    assert planned == Pretrain(data=(Path("a"),), objective="denoise", epochs=7)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Plan(), "--images 1000"),
        (Plan(images=1), "2 or more"),
        (Plan(images=10, seconds=0), "above 0"),
        (Plan(data=(Path("a"), Path("b"))), "takes one"),
        (Plan(images=10, objective="mask"), "--objective"),
        (Plan(kind="pretrain", images=10, labels=5), "--labels"),
        (Plan(images=10, device="tpu"), "--device"),
        (Plan(kind="pretrain", data=(Path("part-*.tar"),)), "names shards.*--images N"),
    ],
)
def test_what_cannot_be_planned_is_refused(config, words):
    with pytest.raises(SegaeError, match=words):
        run(config)


def test_unknown_energy_is_said_and_not_guessed():
    calibration = Calibration((PhasePace("full", 1, 0.1),), 0, 0, 0, 0, 0, 1, 0, 0, None, "no energy counter")
    forecast = Forecast(10, 0, 0, 0, 0, 0, 1, 1, None)
    energy = table_of(forecast, calibration)[-1]
    assert energy[:2] == ("energy", "unknown")
    assert "no energy counter" in energy[2]


@pytest.mark.parametrize("kind", ["segment", "pretrain"])
def test_live_decoding_is_planned(kind, pets, tmp_path):
    file = tmp_path / "plan.json"
    main(["plan", "--kind", kind, "--data", str(pets), *SMALL, "--data-path", "live", "--json", str(file)])
    content = json.loads(file.read_text())
    calibration, work = content["calibration"], content["workload"]
    assert content["planned"]["data_path"] == "live"
    assert calibration["bytes_per_image"] == 0  # nothing is held
    assert work["files"] == (20 if kind == "segment" else 0)  # a segmentation decodes a few for its sheet all the same
    assert all(phase["seconds_per_image"] > 0 for phase in calibration["phases"])


def test_live_decoding_is_planned_without_data(tmp_path):
    file = tmp_path / "plan.json"
    main(["plan", "--images", "1000", *SMALL, "--data-path", "live", "--workers", "0", "--json", str(file)])
    work = json.loads(file.read_text())["workload"]
    assert (work["train_images"], work["files"]) == (900, 256 + 100)


def test_the_samples_live_images_are_decoded_while_it_trains(pets, tmp_path, monkeypatch):
    from segae.data import live

    read: set[str] = set()
    resized = live.read_resized
    monkeypatch.setattr(live, "read_resized", lambda path, size: read.add(path.name) or resized(path, size))
    given = ["--data", str(pets), *SMALL, "--data-path", "live", "--workers", "0", "--seconds", "2"]
    main(["plan", "--kind", "pretrain", *given])
    assert len(read) > 20  # all of them, not a sample


def test_the_end_of_a_process_is_timed():
    before, after = start_and_end_of_python.__wrapped__()
    assert before > 0
    assert after > 0


@pytest.fixture
def plan_check(monkeypatch):
    """The script benchmarks/plan_check.py as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "plan_check", raising=False)
    import plan_check

    return plan_check


def test_a_run_is_compared_with_the_mean_of_the_plans_beside_it(plan_check):
    plans = iter([{"seconds": 8.0, "training_energy_wh": 1.0}, {"seconds": 12.0}, {"seconds": 20.0}])
    runs = iter([{"seconds": 11.0, "training_energy_wh": 2.0}, {"seconds": 4.0}])
    found = plan_check.in_turns(lambda: next(plans), lambda: next(runs), 2)
    assert found == [({"seconds": 10.0}, {"seconds": 11.0}), ({"seconds": 16.0}, {"seconds": 4.0})]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segment", "pretrain"])
def test_a_forecast_comes_true(kind, tmp_path, plan_check):
    """Time and memory within 15 % of the mean of two plans, one before and one after the run: the pace drifts."""
    data = tmp_path / "pets"
    main(["data", "drawn", "--root", str(data), "--train", "400", "--test", "2", "--unlabelled", "0", "--size", "96"])
    words = ["--encoder", "resnet18", "--image-size", "96", "--epochs", "2", "--device", "cpu", "--repeats", "1"]
    given = plan_check.parse(["--data", str(data), *words])
    ((forecast, measured),) = plan_check.check(kind, given, tmp_path)
    assert measured.keys() >= {"seconds", "training_seconds", "peak_memory_mb"}
    for name, value in measured.items():
        assert value == pytest.approx(forecast[name], rel=0.15), name
