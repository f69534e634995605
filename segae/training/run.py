"""A run: its seed, its folder and its frozen configuration."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segae.errors import SegaeError
from segae.files import write_json

RESUME_FILE = "resume.pt"
DONE_FILE = "metrics.json"
STARTED_FILE = "started.json"
_WEIGHTS = ("encoder", "decoder", "model")
_RUN_FILES = (
    *("config.json", STARTED_FILE, RESUME_FILE, DONE_FILE, "log.csv", "quarantine.csv"),
    *("curves.png", "sheet.png", "reconstructions.png"),
    *(f"{name}.{suffix}" for name in _WEIGHTS for suffix in ("safetensors", "json")),
)
# may differ between the parts of one run; a memory that is full in its middle is no reason to begin again
_FREE = ("device", "threads", "workers", "micro_batch", "activation_checkpointing")
TYPED_IN = "typed_in"
"""Key in config.json of the folder in which the command was typed: relative paths begin there."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; the only place where global random state is set.

    Raises:
        SegaeError: the seed is negative.
    """
    if seed < 0:
        raise SegaeError(f"the seed is {seed}; wanted 0 or more, for example --seed 0.")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries below us still draw from it
    torch.manual_seed(seed)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed in [0, 2**32) for one epoch of one run: a resumed run draws what an uninterrupted one would have.

    Processes of another rank than 0 get others.
    """
    return int(np.random.SeedSequence([seed, epoch, rank] if rank else [seed, epoch]).generate_state(1)[0])


def open_run_folder(folder: Path, config: Any, *, resume: bool, overwrite: bool) -> bool:
    """Make the run folder, or take up the one that is there, and write the resolved configuration into it.

    Args:
        folder: where everything of the run goes.
        config: the task's frozen dataclass.
        resume: go on after the last finished epoch if the folder holds one.
        overwrite: throw away what an earlier run left there.

    Returns:
        True if training should go on from the folder's resume file.

    Raises:
        SegaeError: the folder holds another run and neither flag is given, or both are, or its configuration differs.
    """
    if resume and overwrite:
        raise SegaeError(
            f"--resume and --overwrite were both given, and one of them is wanted: --resume alone goes on with the run "
            f"in {folder}, --overwrite alone throws it away and starts again. Nothing was touched."
        )
    resolved = resolved_config(config)
    config_file = folder / "config.json"
    old = read_config(config_file)
    if old is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SegaeError(
                f"{folder} exists and is not a run folder of segae; nothing in it is touched. Choose another --out."
            )
    elif old["task"] != resolved["task"]:
        raise SegaeError(
            f"{folder} holds the results of {old['task']}, not of {resolved['task']}; nothing in it is touched. "
            f"Choose another --out."
        )
    elif overwrite:
        for name in _RUN_FILES:  # by name: whatever else lies there is not ours to delete
            (folder / name).unlink(missing_ok=True)
    elif not resume:
        raise SegaeError(
            f"{folder} already holds a run; add --resume to go on with it, --overwrite to start it again, "
            f"or choose another --out."
        )
    elif different := _changed(config, old, resolved):
        seen = "; ".join(f"{key} was {old.get(key)!r}, now {resolved[key]!r}" for key in different)
        raise SegaeError(
            f"{folder} cannot be resumed with another configuration ({seen}); repeat the first command with "
            f"--resume, or choose another --out."
        )
    write_json(config_file, {**resolved, TYPED_IN: str(Path.cwd())})
    return (folder / RESUME_FILE).exists()


def _changed(config: Any, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of the settings that are not what they were; of a path counts where it leads, not how it was typed."""
    then, now = Path(old.get(TYPED_IN, ".")), Path.cwd()
    # a run that began before there was a setting had its default
    defaults = {field.name: json.loads(json.dumps(field.default, default=str)) for field in dataclasses.fields(config)}

    def same(name: str) -> bool:
        was = old.get(name, defaults.get(name))
        if _holds_paths(getattr(config, name, None)):
            return _places(was, then) == _places(new[name], now)
        return was == new[name]

    return [name for name in new if name not in _FREE and not same(name)]


def _holds_paths(value: Any) -> bool:
    """Whether a setting is a path, several of them, or a text that names a file, as ``--init FILE`` does."""
    if isinstance(value, tuple):
        return any(isinstance(item, Path) for item in value)
    return isinstance(value, Path) or (isinstance(value, str) and Path(value).is_file())


def _places(typed: Any, here: Path) -> Any:
    """A path as typed in the folder ``here``, or a list of them, made absolute; anything else as it is."""
    if isinstance(typed, list):
        return [_places(item, here) for item in typed]
    if not isinstance(typed, str) or re.match(r"[a-z0-9]+:/", typed):  # a stream's address is no place on this disk
        return typed
    return str((here / typed).resolve())


def open_result_folder(
    folder: Path, config: Any, decisive: Sequence[str], files: Iterable[Path], *, overwrite: bool
) -> None:
    """Take a folder for results that each call makes anew, and write the configuration into it, which says whose it is.

    Args:
        folder: where the results go.
        config: the task's frozen dataclass.
        decisive: names of the settings that make other results; the folder of results that were made with the same
            ones is taken again.
        files: what will be written.
        overwrite: also take a folder with the task's results of other settings.

    Raises:
        SegaeError: something would be overwritten that is not this task's, or that was made with other settings.
    """
    resolved = resolved_config(config)
    config_file = folder / "config.json"
    old, name = read_config(config_file), resolved["task"].lower()
    if (folder / "log.csv").exists():
        raise SegaeError(
            f"{folder} is the folder of a training run, and files of it would be overwritten: a folder for these "
            f"results alone is wanted. Type --out {folder / name}."
        )
    there = [file for file in (config_file, *files) if file.exists()]
    if there and (old is None or old["task"] != resolved["task"]):
        raise SegaeError(
            f"{len(there)} file(s) would be overwritten, the first of them {there[0]}, and {folder} holds no earlier "
            f"results of segae {name}. Wanted another --out, for example --out runs/{name}."
        )
    different = [] if old is None else [key for key in _changed(config, old, resolved) if key in decisive]
    if there and different and not overwrite:
        seen = "; ".join(f"{key} was {(old or {}).get(key)!r}, now {resolved[key]!r}" for key in different)
        raise SegaeError(
            f"{folder} holds other results of segae {name} ({seen}), which would be overwritten or mixed with these. "
            "Choose another --out, or add --overwrite."
        )
    write_json(config_file, {**resolved, TYPED_IN: str(Path.cwd())})


def read_config(path: Path) -> dict[str, Any] | None:
    """The configuration of an earlier run, or None if this is not a file that a run of segae wrote."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "task" in content else None


def resolved_config(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values with the task's name, without the fields that say how to start."""
    fields = {"task": type(config).__name__, **dataclasses.asdict(config)}
    for start in ("resume", "overwrite"):
        fields.pop(start, None)
    return json.loads(json.dumps(fields, default=str))
