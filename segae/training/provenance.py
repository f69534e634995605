"""Where a run's numbers come from: commit, library versions, device, date."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

import segae
from segae.errors import SegaeError
from segae.files import write_json
from segae.training.distributed import this_place
from segae.training.run import DONE_FILE, STARTED_FILE

_PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "fastai", "albumentations", "numpy")
_JOINED = ("commit", "versions", "device")


def versions() -> str:
    """The libraries that decide a number, as one CSV-friendly string."""
    parts = [f"python {platform.python_version()}", f"segae {segae.__version__}"]
    parts += [f"{name} {metadata.version(name)}" for name in _PACKAGES]
    return "; ".join(parts)


def commit(code: Sequence[str] = ("segae",)) -> str:
    """The commit of the checkout that runs, with ``+changes`` if one of these folders was edited; empty outside one."""
    here = Path(__file__).resolve().parent.parent.parent
    if not (here / ".git").exists():
        return ""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        edited = subprocess.run(
            ["git", "status", "--porcelain", "--", *code],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if edited else "")


def device_name(device: torch.device) -> str:
    """The hardware in words, for result rows."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def provenance(device: torch.device, code: Sequence[str] = ("segae",)) -> dict[str, str]:
    """Commit, versions, device (how many, where several processes share the work) and date (UTC) of a run.

    Args:
        device: where it computes.
        code: folders of the checkout whose edits make the commit ``+changes``.
    """
    world = this_place().world
    return {
        "commit": commit(code),
        "versions": versions(),
        "device": device_name(device) if world == 1 else f"{world} x {device_name(device)}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def start_provenance(
    folder: Path, device: torch.device, images: str, *, init: str = "random", data_path: str = "cache", resume: bool
) -> dict[str, str]:
    """The provenance of the code that is about to train, taken before an edit or a commit can change it.

    A run that is resumed keeps its first date; where commit, versions or device are others, it names all of them,
    joined by ``..``. A run that was finished keeps its own.

    Args:
        folder: the run folder.
        device: where the run computes.
        images: a hash of the training images' names.
        init: where the encoder starts; the content of a file counts, not its name.
        data_path: how the images reach the training, noted for a resumed run, which keeps it.
        resume: whether the run goes on.

    Raises:
        SegaeError: a resumed run would go on with other images, or its encoder's file is another one.
    """
    now = provenance(device)
    start = _content(init)
    path = folder / STARTED_FILE
    if resume and path.exists():
        before = json.loads(path.read_text())
        if before["images"] != images:
            raise SegaeError(
                f"{folder} cannot be resumed: its training images have changed since it began ({before['images']}, "
                f"now {images}). Put them back, or start again with --overwrite."
            )
        if before.get("init", start) != start:  # older runs did not note it
            raise SegaeError(
                f"{folder} cannot be resumed: {init} has changed since it began ({before['init']}, now {start}), and "
                "the run would be said to come from weights that it never had. Put it back, or start again with "
                "--overwrite."
            )
        finished = (folder / DONE_FILE).exists()
        joined = {name: before[name] if finished else _joined(before[name], now[name]) for name in _JOINED}
        now |= joined | {"date": before["date"]}
    write_json(path, {**now, "images": images, "init": start, "data_path": data_path})
    return now


def _joined(before: str, now: str) -> str:
    parts = before.split("..")
    return "..".join(parts if now in parts else [*parts, now])


def _content(init: str) -> str:
    """A hash of the file that an encoder starts from; other starts as they are called."""
    path = Path(init)
    return hashlib.blake2b(path.read_bytes(), digest_size=5).hexdigest() if path.is_file() else init
