"""A run: its seed, its locked folder with its settings, and where its numbers come from."""

import hashlib
import json
import logging
import os
import platform
import random
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from segae._io import check_range, process_runs, read_json, remove_stale_temporaries, write_json
from segae.errors import SegaeError
from segae.training.checkpoints import TOP_FILE
from segae.training.distributed import rank, run_on_main, world_size

logger = logging.getLogger("segae")

CONFIG_FILE, RESUME_FILE, METRICS_FILE = "config.json", "resume.pt", "metrics.json"
LOGGERS_FILE = "loggers.json"
_MODELS = ("encoder", "decoder", "autoencoder", "model", "best", "best_encoder")
RUN_FILES = (
    *(METRICS_FILE, RESUME_FILE, "log.csv", "skipped.csv", "curves.png", "sheet.png", "reconstructions.png"),
    *("trust.npz", LOGGERS_FILE),
    *(f"{name}.{kind}" for name in _MODELS for kind in ("safetensors", "json")),
)
"""What a training may write besides config.json and the files top_EPOCH, and what ``overwrite`` deletes."""

_LOCK_FILE, _PID_FILE = ".lock", ".lock.pid"
_NOT_SAVED = ("out", "resume", "overwrite")
# may differ between the parts of one run: memory that is full in its middle is no reason to start again
_FREE = ("device", "threads", "workers", "accumulate", "gradient_checkpointing", "max_steps", "max_time", "log")
_PACKAGES = ("segae", "torch", "timm", "segmentation-models-pytorch", "fastai", "albumentations", "numpy")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch with an integer in [0, 2**32); the only place where global random state is set."""
    check_range("seed", seed, low=0, high=2**32 - 1, integer=True)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries below us still draw from it
    torch.manual_seed(seed)


def epoch_seed(seed: int, epoch: int, process: int = 0) -> int:
    """Return a seed in [0, 2**32) for an epoch and rank: a resumed run draws what an uninterrupted one would have."""
    return int(np.random.SeedSequence([seed, epoch, process] if process else [seed, epoch]).generate_state(1)[0])


@dataclass
class RunFolder(AbstractContextManager):
    """A folder of one training run, locked by this process until ``close`` or the end of a ``with`` block."""

    path: Path
    resume: bool  # whether training goes on from the folder's resume file
    _lock: FileLock | None = field(default=None, repr=False)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            (self.path / _PID_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def start(self, device: torch.device, *, images: str, weights: str = "random", **facts: Any) -> dict[str, str]:
        """Note ``facts`` and the run's provenance, which is returned, before training, while the code is unchanged.

        A resumed run keeps its first date; where commit, versions or device differ, all are named, joined by ``..``.
        It must have the same ``images`` (a hash of their names) and ``weights`` (of a file counts the content) again.
        """

        def note() -> dict[str, str]:
            config, now = read_json(self.path / CONFIG_FILE) or {}, provenance(device)
            run = config.get("run", {})
            if self.resume and "date" in run:
                for name, value in inputs.items():
                    if run.get(name, value) != value:
                        raise SegaeError(f"{name} must be those that {self.path} began with, {run[name]}, got {value}")
                now["date"] = run["date"]
                for name in ("commit", "versions", "device"):
                    parts, finished = run[name].split(".."), (self.path / METRICS_FILE).exists()
                    now[name] = "..".join(parts if finished or now[name] in parts else [*parts, now[name]])
            write_json(self.path / CONFIG_FILE, {**config, "run": {**run, **now, **inputs, **facts}})
            return now

        inputs, path = {"images": images, "weights": weights}, Path(weights)
        if path.is_file():
            inputs["weights"] = hashlib.blake2b(path.read_bytes(), digest_size=5).hexdigest()
        return run_on_main(note)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json in rank 0; the file says that the run is finished."""
        if rank() == 0:
            write_json(self.path / METRICS_FILE, dict(metrics))


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read the metrics.json of a run or result folder; None where the run is not finished."""
    return read_json(Path(folder) / METRICS_FILE)


def open_run_folder(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    task: str,
    resume: bool = False,
    overwrite: bool = False,
    files: Iterable[str] = RUN_FILES,
) -> RunFolder:
    """Make a run folder, or take up the one that is there; lock it and write the settings into its config.json.

    All ranks call this; rank 0 holds the lock. Wherever an earlier process was killed, the folder can be used again.
    ``task`` is the kind of run, such as "pretrain". ``resume`` goes on after the last finished epoch, if there is one.
    ``overwrite`` deletes the ``files`` of an earlier run and nothing else. Paths inside the folder are stored relative.
    """
    if resume and overwrite:
        raise SegaeError(f"resume and overwrite must not both be given; nothing in {folder} was changed")
    folder, files, lock = Path(folder), tuple(files), None

    def prepare() -> bool:
        nonlocal lock
        inside = list(folder.iterdir()) if os.path.isdir(folder) else []  # noqa: PTH112 - false for impossible names, too
        tops = [path.name for path in inside if TOP_FILE.fullmatch(path.name)]
        known = {CONFIG_FILE, *files, *tops}
        if _earlier(folder) is None:
            for path in inside:
                if not path.name.startswith(".") and path.name not in known:
                    raise SegaeError(f"out must be a new folder or that of a run, got {folder} with {path.name} in it")
        lock = _lock(folder)
        remove_stale_temporaries(folder)
        old, new, threads = _earlier(folder), _describe(settings, task, folder), torch.get_num_threads()
        run: dict[str, Any] = {"threads": threads}
        if old is not None and old["task"] != task:
            raise SegaeError(f"out must be another folder: {folder} holds the results of {old['task']}, not of {task}")
        if any((folder / name).exists() for name in known) and not (resume or overwrite):
            raise SegaeError(
                f"out must be a new folder, got {folder}, which holds a run: give resume=True or overwrite=True"
            )
        for name in (*files, *tops) if overwrite else ():
            (folder / name).unlink(missing_ok=True)
        if resume and old is not None:
            if changes := _changes(old, new):
                raise SegaeError(f"{folder} must be resumed with the settings that it began with: {changes}")
            run |= old.get("run", {})
            if run["threads"] != threads:
                logger.warning(
                    f"threads was {run['threads']} when {folder} began and is {threads} now: on a CPU the result will "
                    "differ by rounding from that of an uninterrupted run"
                )
        elif (folder / RESUME_FILE).exists():
            logger.warning("%s is damaged: the run is resumed with the settings given now", folder / CONFIG_FILE)
        write_json(folder / CONFIG_FILE, {**new, "run": {**run, **new["run"]}})
        return (folder / RESUME_FILE).exists()

    try:
        return RunFolder(folder, run_on_main(prepare), lock)
    except BaseException:
        RunFolder(folder, False, lock).close()
        raise


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise SegaeError(f"out must be a folder that can be written, got {folder}: {error.strerror}") from error


def _lock(folder: Path) -> FileLock:
    with _made(folder):
        lock, deadline = FileLock(folder / _LOCK_FILE), time.monotonic() + 15
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                pid = None
                with suppress(OSError, ValueError):
                    pid = int((folder / _PID_FILE).read_text())
                # the workers of a process that was just killed hold its lock for some seconds more
                if pid is None or process_runs(pid) or time.monotonic() > deadline:
                    raise SegaeError(f"out must not be in use, got {folder}, where process {pid} is at work") from None
                time.sleep(0.2)
        (folder / _PID_FILE).write_text(str(os.getpid()))
    return lock


def open_result_folder(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    task: str,
    files: Iterable[str],
    overwrite: bool = False,
    inputs: str = "",
) -> Path:
    """Take a folder for results that each call makes again, and write the settings into its config.json.

    Refuses to overwrite ``files`` that are not of this task or, without ``overwrite``, that other settings made. The
    list of paths ``settings[inputs]`` is no such setting where it adds new ``files`` only, or names paths once more.
    """
    folder, files = Path(folder), list(files)
    with _made(folder):
        present = [name for name in (CONFIG_FILE, "log.csv", *files) if (folder / name).exists()]
    new, old = _describe(settings, task, folder), _earlier(folder)
    if "log.csv" in present or (present and (old is None or old["task"] != task)):
        raise SegaeError(f"out must be a folder for the results of {task}, got {folder}, which holds {present[0]}")
    if present and old and not overwrite:
        before, now = (config["run"].get("paths", {}).get(inputs, config.get(inputs, [])) for config in (old, new))
        if inputs and (present == [CONFIG_FILE] or set(now) <= set(before)):
            settings = {**settings, inputs: [*before, *(path for path in now if path not in before)]}
            new, old = _describe(settings, task, folder), {name: old[name] for name in old if name != inputs}
        if changes := _changes(old, new):
            raise SegaeError(
                f"out must be a new folder, got {folder} with results of other settings ({changes}); "
                "overwrite=True replaces them"
            )
    write_json(folder / CONFIG_FILE, new)
    return folder


def _earlier(folder: Path) -> dict[str, Any] | None:
    """Read config.json; None where it is missing, damaged or not written by a run."""
    content = read_json(folder / CONFIG_FILE)
    return content if isinstance(content, dict) and isinstance(content.get("task"), str) else None


def _describe(settings: Mapping[str, Any], task: str, folder: Path) -> dict[str, Any]:
    """The settings as JSON values, as they were typed; and where those that name existing paths lead."""

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(one) for one in value]
        if not isinstance(value, str) or not value or "\0" in value or len(value) > 4096 or not os.path.lexists(value):
            return value
        path, root = Path(value).resolve(), folder.resolve()
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    plain = json.loads(json.dumps({name: one for name, one in settings.items() if name not in _NOT_SAVED}, default=str))
    paths = {name: resolve(value) for name, value in plain.items() if resolve(value) != value}
    return {"task": task, **plain, "run": {"paths": paths}}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Describe the settings that are not what they were; a run of an older version lacks new ones."""

    def fixed(config: dict[str, Any], name: str) -> Any:
        value = config.get("run", {}).get("paths", {}).get(name, config[name])
        return {key: one for key, one in value.items() if key not in _FREE} if isinstance(value, dict) else value

    pairs = [(name, fixed(old, name), fixed(new, name)) for name in new if name in old and name not in (*_FREE, "run")]
    return "; ".join(f"{name} was {was!r}, now {value!r}" for name, was, value in pairs if was != value)


def provenance(device: torch.device) -> dict[str, str]:
    """Describe where a run's numbers come from: commit, library versions, device, and the date (UTC).

    The commit is that of the checkout that runs, with ``+changes`` if the package was edited, and empty outside one.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    root, commit = Path(__file__).resolve().parents[2], ""
    with suppress(OSError, subprocess.CalledProcessError):
        if (root / ".git").exists():
            edited = git("status", "--porcelain", "--", "segae")
            commit = git("rev-parse", "--short=12", "HEAD") + ("+changes" if edited else "")
    name = f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    versions = []
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # there is a substitute for albumentations
            versions.append(f"{package} {metadata.version(package)}")
    return {
        "commit": commit,
        "versions": "; ".join([f"python {platform.python_version()}", *versions]),
        "device": name if world_size() == 1 else f"{world_size()} x {name}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
