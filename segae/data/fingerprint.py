"""Facts about files (their content hash, the values in a mask), computed once per file and remembered.

A fact is remembered under the file's path, size and modification time, in one small JSON file per folder of
files, so that a large data set is not read again at each start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from tqdm import tqdm

from segae.data.packed import PackedPaths

logger = logging.getLogger("segae")

_SETTLED_NS = 2_000_000_000
_BATCH = 256
_MANY = 4096  # files of which facts are computed before they are written down

Fact = TypeVar("Fact")  # anything that JSON holds
Task = TypeVar("Task")
Result = TypeVar("Result")


def default_cache_dir() -> Path:
    """The folder of everything that can be computed again: $SEGAE_CACHE, else ~/.cache/segae."""
    return Path(os.environ.get("SEGAE_CACHE") or Path.home() / ".cache" / "segae")


def map_in_threads(
    function: Callable[[Task], Result], tasks: Sequence[Task], description: str = "", progress: bool = False
) -> Iterator[Result]:
    """Apply a function in threads (decoding and hashing release the GIL); results come in the tasks' order.

    Tasks are handed out in batches, so that results never pile up in memory.

    Args:
        function: what to do with one task; its exceptions are passed on.
        tasks: the inputs.
        description: the words beside the progress bar.
        progress: show a bar.
    """
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(tasks), desc=description, leave=False, disable=None if progress else True) as bar,
    ):
        for start in range(0, len(tasks), _BATCH):
            for result in pool.map(function, tasks[start : start + _BATCH]):
                bar.update()
                yield result


def content_hashes(paths: Sequence[Path], cache_dir: Path) -> list[str]:
    """Hash the content of each file.

    Returns:
        32 hexadecimal digits per file; for a file that cannot be read the reason instead, which is not
        remembered.
    """
    return remember_facts("blake2b", paths, _content_hash, cache_dir, is_final=lambda fact: " " not in fact)


def remember_facts(
    kind: str,
    paths: Sequence[Path],
    compute: Callable[[Path], Fact],
    cache_dir: Path,
    is_final: Callable[[Fact], bool] = lambda _: True,
) -> list[Fact]:
    """Look up a fact about each file, and compute it for files that are new or have changed.

    Args:
        kind: name of the fact; another meaning needs another name.
        paths: the files.
        compute: path to fact; the fact must be representable in JSON; its exceptions are passed on.
        cache_dir: where the facts are kept (in its folder `index`).
        is_final: whether a fact may be remembered.

    Returns:
        One fact per path, in order.
    """
    packed, here = PackedPaths.of(paths), Path.cwd()
    inside: dict[Path, array[int]] = {}
    for place, path in enumerate(packed):
        inside.setdefault(here / path.parent, array("q")).append(place)  # not resolve(), which asks the disk
    facts: list[Any] = [None] * len(packed)
    absent: dict[int, list[int] | None] = {}

    def compute_absent() -> None:
        # a file of a moment ago may change once more within one tick of the clock: not remembered yet
        settled = time.time_ns() - _SETTLED_NS
        files = packed.take(absent)
        new: dict[Path, dict[str, list[Any]]] = {}
        for (place, stamp), path, fact in zip(absent.items(), files, map_in_threads(compute, files), strict=True):
            facts[place] = fact
            if stamp is not None and stamp[1] < settled and is_final(fact):
                new.setdefault(here / path.parent, {})[path.name] = [*stamp, fact]
        for folder, entries in new.items():
            _merge(_index_file(cache_dir, kind, folder), entries)
        absent.clear()

    for folder, places in inside.items():  # one by one, so that not all indexes are in memory
        known = _read(_index_file(cache_dir, kind, folder))
        for place in places:
            path = packed[place]
            stamp, entry = _stamp(path), known.get(path.name)
            if entry is not None and entry[:2] == stamp:
                facts[place] = entry[2]
            else:
                absent[place] = stamp
        if len(absent) >= _MANY:
            compute_absent()
    compute_absent()
    return facts


def _content_hash(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _index_file(cache_dir: Path, kind: str, folder: Path) -> Path:
    return cache_dir / "index" / f"{kind}-{hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()}.json"


def _read(index: Path) -> dict[str, list[Any]]:
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: the facts are computed again
        return {}
    return entries if isinstance(entries, dict) else {}


def _merge(index: Path, entries: dict[str, list[Any]]) -> None:
    """Add entries under a lock. The index only saves time, so a disk that refuses it stops nothing."""
    temporary = index.with_suffix(f".{os.getpid()}.partial")
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(index.with_suffix(".lock")):
            known = _read(index)
            known.update(entries)
            with temporary.open("w", encoding="utf-8") as file:  # line by line: as one text it takes as much as they do
                lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in known.items())
                file.writelines(("," if number else "{") + f"\n{line}" for number, line in enumerate(lines))
                file.write("\n}")
            temporary.replace(index)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        logger.debug("index %s not written: %s", index, error)
