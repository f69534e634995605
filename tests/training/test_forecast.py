"""The arithmetic of a forecast, and where watts come from."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segae.errors import SegaeError
from segae.training.forecast import Calibration, PhasePace, Workload, as_table, in_words, make_forecast
from segae.training.power import metered, read_cpu_energy, read_gpu_power

CALIBRATION = Calibration(
    phases=(PhasePace("frozen", 1, 0.01, 2.0), PhasePace("full", 3, 0.03, 1.0)),
    validation_s_per_image=0.005,
    between_s=0.5,
    start_s=4.0,
    decode_s_per_image=0.002,
    finish_s=3.0,
    peak_memory_mb=800.0,
    bytes_per_image=50_000,
    sample_images=100,
    watts=90.0,
    power_source="a meter",
)
WORK = Workload(train_images=1000, valid_images=200, files=1200, extra_passes=400)
COSTS = ("training_s", "validation_s", "between_s", "start_s", "decode_s", "finish_s", "peak_memory_mb", "energy_wh")


def test_a_forecast_is_the_sum_of_its_parts():
    forecast = make_forecast(CALIBRATION, WORK)
    assert forecast.training_s == pytest.approx(1000 * 0.01 + 2 + 3 * 1000 * 0.03 + 1)
    assert forecast.validation_s == pytest.approx(4 * 200 * 0.005)
    assert forecast.between_s == pytest.approx(4 * 0.5)
    assert forecast.decode_s == pytest.approx(1200 * 0.002)
    assert forecast.finish_s == pytest.approx(3 + 400 * 0.005)
    assert forecast.total_s == pytest.approx(103 + 4 + 2 + 4 + 2.4 + 5)
    assert forecast.images_per_second == pytest.approx(4000 / 103)
    assert forecast.peak_memory_mb == pytest.approx(800 + 1100 * 50_000 / 1e6)
    assert forecast.energy_wh == pytest.approx(90 * forecast.total_s / 3600)


def test_pictures_are_counted_by_the_clock_and_once_for_an_epoch_at_most():
    drawing = replace(CALIBRATION, pictures_s=2.0, pictures_every_s=30.0)
    assert make_forecast(drawing, WORK).between_s == pytest.approx(4 * 0.5 + 3 * 2)  # 109 s of epochs
    assert make_forecast(replace(drawing, pictures_every_s=1.0), WORK).between_s == pytest.approx(4 * (0.5 + 2))


def test_the_energy_of_training_is_what_its_seconds_draw():
    forecast = make_forecast(CALIBRATION, WORK)
    assert forecast.training_energy_wh == pytest.approx(90 * 103 / 3600)


def test_no_watts_no_energy():
    assert make_forecast(replace(CALIBRATION, watts=None), WORK).energy_wh is None
    assert make_forecast(replace(CALIBRATION, watts=None), WORK).training_energy_wh is None


def test_a_sample_larger_than_the_data_costs_no_less_memory():
    work = replace(WORK, files=10)
    assert make_forecast(CALIBRATION, work).peak_memory_mb == CALIBRATION.peak_memory_mb


COUNT = st.integers(0, 10**7)


@given(COUNT, COUNT, COUNT, COUNT, st.sampled_from(("train_images", "valid_images", "files", "extra_passes")), COUNT)
def test_more_work_never_costs_less(train, valid, files, passes, field, more):
    work = Workload(train + 1, valid, files, passes)
    larger = replace(work, **{field: getattr(work, field) + more})
    one, other = (asdict(make_forecast(CALIBRATION, each)) for each in (work, larger))
    assert all(other[name] >= one[name] for name in COSTS)


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 1000), st.floats(1, 100))
def test_more_epochs_or_a_slower_step_never_cost_less(frozen, full, more, slower):
    def cost(epochs: tuple[int, int], factor: float) -> float:
        names = ("frozen", "full")
        phases = tuple(PhasePace(name, count, 0.01 * factor) for name, count in zip(names, epochs, strict=True))
        return make_forecast(replace(CALIBRATION, phases=phases), WORK).total_s

    assert cost((frozen, full), 1) <= cost((frozen, full + more), 1) <= cost((frozen, full + more), slower)


@pytest.mark.parametrize("work", [replace(WORK, train_images=0), None])
def test_no_training_is_refused(work):
    calibration = CALIBRATION if work else replace(CALIBRATION, phases=())
    with pytest.raises(SegaeError, match="--epochs 3 --images 1000"):
        make_forecast(calibration, work or WORK)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (119.4, "119 s"), (119.6, "2 min"), (3725, "1 h 02 min"), (7199, "2 h 00 min")],
)
def test_durations_are_words(seconds, words):
    assert in_words(seconds) == words


def test_the_table_lines_up():
    lines = as_table([("time", "9 s", "all"), ("memory", "12,000 MB", "")]).splitlines()
    assert lines[0].index("s  all") + 1 == len(lines[1])


def counters(root: Path, used: dict[str, tuple[str, int]]) -> Path:
    for folder, (name, energy) in used.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "energy_uj").write_text(f"{energy}\n")
        (root / folder / "max_energy_range_uj").write_text("9999999\n")
    return root


def test_packages_are_counted_once_and_a_counter_may_start_again(tmp_path, monkeypatch):
    names = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "psys", "intel-rapl:2": "package-1"}
    counters(tmp_path, {folder: (name, 9_000_000) for folder, name in names.items()})
    assert set(read_cpu_energy(tmp_path)) == {"intel-rapl:0", "intel-rapl:2"}
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("segae.training.power.time.perf_counter", lambda: next(clock))
    with metered(torch.device("cpu"), tmp_path) as power:
        assert power.watts is None
        counters(tmp_path, {"intel-rapl:0": ("package-0", 9_500_000), "intel-rapl:2": ("package-1", 500_000)})
    assert power.watts == pytest.approx((0.5 + 1.5) / 2)  # the second one passed its end
    assert "RAPL" in power.source


def test_a_device_without_a_meter_has_no_watts(tmp_path):
    for device in ("cpu", "mps"):
        with metered(torch.device(device), tmp_path) as power:
            pass
        assert power.watts is None
        assert power.source


def test_gpu_power_is_read_from_the_driver_or_not_at_all(monkeypatch):
    asked = []

    def answer(text: str):
        def run(command, **_):
            asked.append(command)
            return subprocess.CompletedProcess(command, 0, stdout=text)

        return run

    monkeypatch.setattr("segae.training.power.subprocess.run", answer("312.55\n"))
    assert read_gpu_power("GPU-1234") == 312.55
    assert "--id=GPU-1234" in asked[0]
    monkeypatch.setattr("segae.training.power.subprocess.run", answer("[N/A]\n"))
    assert read_gpu_power("GPU-1234") is None
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert read_gpu_power("0") is None


def test_the_power_of_a_gpu_is_the_mean_of_its_readings(monkeypatch):
    readings = iter([50.0, 300.0, 310.0, None])
    monkeypatch.setattr("segae.training.power.read_gpu_power", lambda name: next(readings, None))
    monkeypatch.setattr("segae.training.power._gpu_name", lambda device: "0")
    monkeypatch.setattr("segae.training.power._INTERVAL_S", 0.001)
    with metered(torch.device("cuda")) as power:
        torch.zeros(1)
        while len(power.samples) < 3:
            pass
    assert power.watts == 305  # the first one is from before the work
