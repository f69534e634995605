"""Which device a run uses: the best one there is, or the one asked for, never another in silence."""

from __future__ import annotations

import torch

from segae.errors import SegaeError
from segae.training.allocator import keep_freed_memory


def choose_device(name: str = "auto") -> torch.device:
    """Turn a device name into a device that is there.

    Args:
        name: ``auto`` takes CUDA, then MPS, then the CPU; or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        SegaeError: the name is none of these, or the device is not there. Falling back to the CPU would turn
            minutes into hours without a word.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    there = available_devices()
    if name == "auto":
        return torch.device(there[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SegaeError(_not_there(name, there)) from None
    if name not in there and not (name == "cuda" and "cuda:0" in there):
        raise SegaeError(_not_there(name, there))
    return device


def prepare_device(device: torch.device) -> None:
    """Switch on what makes this process compute faster there with the same results.

    On CUDA cuDNN tries its algorithms on each new input size and keeps the fastest; on a CPU freed memory is kept.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    elif device.type == "cpu":
        keep_freed_memory()


def available_devices() -> tuple[str, ...]:
    """Names of the devices of this machine, the fastest kind first; ``cpu`` is always the last."""
    # is_available first: device_count alone can be positive where the driver does not work
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ("mps",) if torch.backends.mps.is_available() else ()
    return (*(f"cuda:{index}" for index in range(count)), *mps, "cpu")


def _not_there(name: str, there: tuple[str, ...]) -> str:
    return (
        f"The device {name!r} is not there: this machine has {', '.join(there)}. "
        f"Type --device auto to take the fastest of them, or --device {there[0]}."
    )
