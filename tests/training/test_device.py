from __future__ import annotations

import pytest
import torch

from segae.errors import SegaeError
from segae.training.device import available_devices, choose_device


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(2, False, "cuda:0"), (0, True, "mps"), (1, True, "cuda:0"), (0, False, "cpu")],
)
def test_auto_takes_the_fastest_kind(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str) -> None:
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert choose_device() == torch.device(expected)


def test_a_device_that_is_there_is_given_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2, mps=False)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "gpu", "", "cuda:x"])
def test_a_device_that_is_not_there_is_an_error_that_says_what_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, cuda=0, mps=False)
    with pytest.raises(SegaeError, match=r"this machine has cpu\. Type --device auto"):
        choose_device(name)


def test_a_gpu_of_a_higher_number_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=1, mps=False)
    with pytest.raises(SegaeError, match=r"'cuda:1' is not there: this machine has cuda:0, cpu"):
        choose_device("cuda:1")


def test_the_cpu_is_always_there() -> None:
    assert available_devices()[-1] == "cpu"


@pytest.mark.gpu
def test_auto_is_a_gpu_that_computes_where_there_is_one() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert torch.ones(2, device=choose_device()).sum().item() == 2
