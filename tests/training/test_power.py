"""Energy is metered where a device reports it, and is never guessed."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from segae.training import cost, power
from segae.training.cost import EnergyLog, energy_of
from segae.training.distributed import Place
from segae.training.power import energy_meter

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Clock:
    """Stands in for the module time: seconds pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(power, "time", made)
    return made


def threads() -> int:
    return threading.active_count()


def counters(values, monkeypatch, end: float = 100.0) -> None:
    """Answers of the CPU's energy counters, one after the other; None is one that cannot be read."""
    answers = iter(values)

    def read(powercap):
        value = next(answers)
        return {} if value is None else {"intel-rapl:0": (value, end)}

    monkeypatch.setattr(power, "read_cpu_energy", read)


def test_the_energy_of_a_cpu_is_what_its_counters_counted(monkeypatch):
    counters([90.0, 90.0, 95.0, 5.0, 25.0], monkeypatch)  # it starts again after 100
    with energy_meter(CPU) as joules:
        assert [joules(), joules(), joules()] == [5, 15, 35]


def test_counters_that_start_again_are_looked_at_in_time(monkeypatch):
    """In an epoch of hours a counter starts again many times."""
    monkeypatch.setattr(power, "_COUNTER_INTERVAL_S", 0.001)
    used = iter(range(0, 10**9, 60))
    monkeypatch.setattr(power, "read_cpu_energy", lambda powercap: {"intel-rapl:0": (next(used) % 100, 100)})
    with energy_meter(CPU) as joules:
        first, deadline = joules(), time.monotonic() + 10
        while joules() < first + 600 and time.monotonic() < deadline:
            time.sleep(0.002)
        looks = next(used) / 60
        assert joules() == pytest.approx(60 * looks, rel=0.2)
    assert joules() > 600


def test_counters_that_vanish_leave_nothing_known(monkeypatch):
    counters([90.0, 90.0, None, 95.0], monkeypatch)
    with energy_meter(CPU) as joules:
        assert [joules(), joules()] == [None, None]


@pytest.mark.parametrize("device", [CPU, GPU, torch.device("mps")])
def test_where_nothing_is_reported_nothing_is_started(tmp_path, monkeypatch, device):
    monkeypatch.setattr(power, "_gpu_name", lambda device: "0")
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    before = threads()
    with energy_meter(device, tmp_path) as joules:
        assert threads() == before
        assert joules() is None


def gpu(watts, clock: Clock, monkeypatch) -> power._GpuEnergy:
    answers = iter(watts)
    monkeypatch.setattr(power, "read_gpu_power", lambda name: next(answers))
    return power._GpuEnergy("0")


def test_the_energy_of_a_gpu_is_its_power_over_time(clock, monkeypatch):
    meter = gpu([50.0, 300.0, None, 200.0], clock, monkeypatch)
    found = []
    for step in (0.5, 0.5, 1.0, 2.0):
        clock.now += step
        found.append(meter.joules())
        if step < 2:
            meter.look()
    assert found == [25, 25 + 150, 25 + 450, 25 + 450 + 400]  # the third reading failed: 300 W held on


def test_a_gpu_that_nobody_read_for_long_has_no_energy(clock, monkeypatch):
    meter = gpu([300.0, 300.0], clock, monkeypatch)
    clock.now += 3600
    assert meter.joules() is None
    meter.look()
    clock.now += 1
    assert meter.joules() is None


def test_the_meter_of_a_gpu_never_asks_it_from_the_training_loop(monkeypatch):
    asked = set()

    def answer(name):
        asked.add(threading.current_thread())
        return 100.0

    monkeypatch.setattr(power, "_gpu_name", lambda device: "0")
    monkeypatch.setattr(power, "read_gpu_power", answer)
    monkeypatch.setattr(power, "_INTERVAL_S", 0.001)
    with energy_meter(GPU) as joules:
        asked.clear()  # one reading, before the training, says whether there is a meter
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            assert joules() >= 0
        assert asked
        assert threading.current_thread() not in asked
    assert not any(thread.is_alive() for thread in asked)


class Learner:
    def __init__(self) -> None:
        self.epoch_clock = type("Clock", (), {"extra": {}})()


def logged(readings, device=CPU) -> dict[str, float]:
    log = EnergyLog(iter(readings).__next__, device)
    log.learn = Learner()
    for event in ("before_fit", "before_train", "before_batch", "after_batch", "after_train", "after_epoch"):
        log(event)
    return log.learn.epoch_clock.extra


def test_an_epoch_without_a_reading_has_no_column():
    assert logged([7200.0, 10800.0]) == {"energy_wh": 1.0}
    assert logged([None, 10800.0]) == logged([7200.0, None]) == {}


def test_a_part_that_is_not_known_leaves_the_sum_empty():
    assert energy_of([{"energy_wh": 0.5}, {"energy_wh": 1.25}]) == 1.75
    assert energy_of([{"energy_wh": 0.5}, {}]) == energy_of([{}]) == ""


@pytest.mark.parametrize(("device", "total"), [(GPU, 2.5), (CPU, 1.0)])
def test_processes_add_up_their_gpus_and_count_a_shared_cpu_once(monkeypatch, device, total):
    parts: list[float | None] = []
    for local, joules in enumerate((3600.0, 5400.0)):
        monkeypatch.setattr(cost, "this_place", lambda local=local: Place(local, 2, local))
        monkeypatch.setattr(cost, "gathered", lambda part: [*parts, part])
        found = logged([0.0, joules], device)
        parts.append(joules if device.type == "cuda" or local == 0 else 0.0)
    assert found == {"energy_wh": total}
    parts[0] = None
    assert logged([0.0, 5400.0], device) == {}
