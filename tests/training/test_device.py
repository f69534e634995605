"""The device that was asked for or an error; threads and process settings that end where they began."""

from __future__ import annotations

import platform
import subprocess
import sys

import cv2
import pytest
import torch

from segae.errors import SegaeError
from segae.training.device import available_devices, choose_device, limit_threads, prepare_device


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_takes_the_fastest_kind_and_every_other_can_be_named(monkeypatch, cuda, mps, expected):
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert choose_device() == torch.device(expected)
    assert available_devices()[-1] == "cpu"
    for name in (*available_devices(), *["cuda"] * bool(cuda)):
        assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda:1", "mps", "gpu", "", "cuda:x"])
def test_a_missing_device_is_an_error_that_names_those_there_are(monkeypatch, name):
    pretend(monkeypatch, cuda=1)
    with pytest.raises(SegaeError, match=f"device .*cuda:0, cpu.*'{name}'"):
        choose_device(name)


def test_cudnn_searches_for_its_fastest_algorithm_when_prepared(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    prepare_device(torch.device("cuda"))
    assert torch.backends.cudnn.benchmark


_FAULTS = """
import resource, sys
import numpy as np, torch
from segae.training.device import prepare_device
if sys.argv[1] == "prepared":
    prepare_device(torch.device("cpu"))
for step in range(8):  # as in training: many large blocks at once, then none of them
    blocks = [np.ones(9_000_000, dtype=np.float32) for _ in range(4)]
    del blocks
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has the setting")
def test_a_step_finds_the_memory_of_the_last_one_when_prepared():
    command, options = [sys.executable, "-c", _FAULTS], {"capture_output": True, "text": True, "check": True}
    plain, prepared = (int(subprocess.run([*command, how], **options).stdout) for how in ("plain", "prepared"))
    assert prepared < 0.1 * plain


def threads() -> tuple[int, int]:
    return torch.get_num_threads(), cv2.getNumThreads()


def test_threads_are_limited_within_and_restored_after_an_error_too():
    before = threads()
    with limit_threads(3):
        with pytest.raises(ZeroDivisionError), limit_threads(1):
            1 // (threads() != (1, 1))
        assert threads() == (3, 3)
    assert threads() == before
    with limit_threads():
        assert threads() == (before[0], before[0])


@pytest.mark.parametrize("count", [0, -1, 10**6, 1.5])
def test_a_number_of_threads_out_of_range_is_an_error(count):
    with pytest.raises(SegaeError, match="threads"), limit_threads(count):
        pass
