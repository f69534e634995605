"""Seconds, peak memory and energy of a block; no energy where nothing reports it."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segae.training.cost import gpu_energy, measure_cost, peak_memory_mb

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class FakeNVML:
    """A counter in millijoules that grows by 7.2 kJ (2 Wh) from one reading to the next, on one GPU."""

    NVMLError, nvmlInit, used = RuntimeError, staticmethod(lambda: None), 5e6

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1234":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:
        self.used += 7.2e6
        return self.used


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A pretended GPU that NVML reports under its UUID."""
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_000_000)
    return properties


def test_time_and_peak_memory_of_a_block_on_the_cpu():
    with pytest.raises(ZeroDivisionError), measure_cost(CPU) as small:  # filled after an error too
        1 // int(time.sleep(0.02) or 0)
    with measure_cost(CPU) as large:
        np.ones(60_000_000, np.uint8)
    assert small.seconds >= 0.02
    assert small.energy_wh is large.energy_wh is None
    assert large.peak_memory_mb > 60
    assert peak_memory_mb(CPU) >= large.peak_memory_mb - 1


def test_energy_is_the_difference_of_two_readings_of_the_counter(monkeypatch, gpu):
    with measure_cost(CUDA) as cost:
        pass
    assert (cost.energy_wh, cost.peak_memory_mb) == (pytest.approx(2.0), 3)
    gpu.uuid = "unknown to NVML"
    with measure_cost(CUDA) as cost:
        pass
    assert cost.energy_wh is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it fails
    assert gpu_energy(CUDA) is None


@pytest.mark.gpu
def test_a_gpu_reports_its_memory_and_its_energy():
    pytest.importorskip("pynvml")
    with measure_cost(CUDA) as cost:
        image = torch.randn(4096, 4096, device=CUDA)
        for _ in range(200):
            image @ image
    assert cost.peak_memory_mb > 2 * 4096**2 * 4 / 1e6
    assert cost.energy_wh is None or 5 / 3600 < cost.energy_wh < 2000 / 3600
