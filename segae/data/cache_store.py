"""Cache entries on the disk: built once by one process, whole or not at all, then only read.

An entry is a folder named by a hash of what went into it: the contents of the files, in order, and the
parameters. A changed file therefore gets another entry, and moved files keep theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from segae.data.fingerprint import content_hashes, map_in_threads
from segae.errors import SegaeError

logger = logging.getLogger("segae")

_FORMAT = 1  # to be raised whenever the same files would give other arrays

Decoded = tuple[np.ndarray, ...]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Verdict:
    """Why an item is not in the arrays: its position among the items given, and the reason.

    One that is not ``final`` lets the entry be built anew next time.
    """

    position: int
    reason: str
    final: bool = True


def fetch_arrays(
    files: Sequence[Sequence[Path]],
    parameters: tuple[int | tuple[int, ...], ...],
    shapes: Shapes,
    decode: Callable[[int], Decoded | Verdict],
    cache_dir: Path,
    progress: bool,
) -> tuple[dict[str, np.ndarray], tuple[Verdict, ...]]:
    """Read the arrays of a set of items from the cache, building the entry first if it is not there.

    Args:
        files: for each kind of file (image, mask) one path per item.
        parameters: whatever else the arrays depend on, besides the shapes.
        shapes: name and shape of one item's arrays, in the order in which `decode` gives them.
        decode: position of an item to its uint8 arrays, or the verdict that it cannot be read.
        cache_dir: where entries are kept.
        progress: show a bar while building.

    Returns:
        Read-only uint8 memory maps (N, *shape) of the items that could be read, and the verdicts on the
        others.

    Raises:
        SegaeError: the disk is full or refuses writing; what `decode` raises passes through.
    """
    count = len(files[0])
    if not count:
        return {name: np.empty((0, *shape), np.uint8) for name, shape in shapes.items()}, ()
    entry = cache_dir / _entry_name(files, parameters, shapes, cache_dir)
    found = _read_final(entry, shapes)
    if found is None:
        try:
            with _only_builder(cache_dir, entry.name):
                found = _read_final(entry, shapes) or _build(entry, count, shapes, decode, progress)
        except OSError as error:
            raise _refused(cache_dir, count, shapes, error) from error
    return found


def _entry_name(
    files: Sequence[Sequence[Path]], parameters: tuple[int | tuple[int, ...], ...], shapes: Shapes, cache_dir: Path
) -> str:
    contents = [content_hashes(paths, cache_dir) for paths in files]
    recipe = json.dumps([_FORMAT, parameters, dict(shapes), contents])
    return hashlib.blake2b(recipe.encode(), digest_size=16).hexdigest()


def _read_final(entry: Path, shapes: Shapes) -> tuple[dict[str, np.ndarray], tuple[Verdict, ...]] | None:
    """Open an entry; None if it is not there, not whole, or lacks what may be there another time."""
    found = _read(entry, shapes)
    return None if found is None or not all(verdict.final for verdict in found[1]) else found


def _read(entry: Path, shapes: Shapes) -> tuple[dict[str, np.ndarray], tuple[Verdict, ...]] | None:
    """Open an entry; None if it is not there or not whole."""
    try:
        description = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
        kept = description["kept"]
        verdicts = tuple(Verdict(*verdict) for verdict in description["verdicts"])
        if not kept:  # an empty file cannot be mapped
            return {name: np.empty((0, *shape), np.uint8) for name, shape in shapes.items()}, verdicts
        arrays: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            if (entry / name).stat().st_size != kept * int(np.prod(shape)):
                return None
            arrays[name] = np.memmap(entry / name, np.uint8, "r", shape=(kept, *shape))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return arrays, verdicts


def _build(
    entry: Path, count: int, shapes: Shapes, decode: Callable[[int], Decoded | Verdict], progress: bool
) -> tuple[dict[str, np.ndarray], tuple[Verdict, ...]]:
    """Decode all items into a folder beside the entry and move it into place when it is whole."""
    partial = entry.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed; the lock is ours
    partial.mkdir()
    try:
        decoded = map_in_threads(decode, range(count), "Decoding images", progress)
        kept, verdicts = _write_arrays(partial, decoded, shapes)
        with (partial / "entry.json").open("w", encoding="utf-8") as file:
            json.dump({"kept": kept, "verdicts": [astuple(verdict) for verdict in verdicts]}, file)
            _flush(file)
        shutil.rmtree(entry, ignore_errors=True)  # an entry that is there was found damaged
        os.replace(partial, entry)  # noqa: PTH105
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = _read(entry, shapes)
    if found is None:
        raise OSError(f"{entry} cannot be read back")
    return found


def _write_arrays(folder: Path, decoded: Iterable[Decoded | Verdict], shapes: Shapes) -> tuple[int, list[Verdict]]:
    """Append the arrays to one file each.

    Plain writes, not a memory map: on a full disk a write raises an error, and a store to a map kills the
    process.
    """
    kept = 0
    verdicts = []
    with ExitStack() as stack:
        outputs = [stack.enter_context((folder / name).open("wb")) for name in shapes]
        for result in decoded:
            if isinstance(result, Verdict):
                verdicts.append(result)
                continue
            kept += 1
            for file, array in zip(outputs, result, strict=True):
                file.write(np.ascontiguousarray(array).data)
        for file in outputs:
            _flush(file)
    return kept, verdicts


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _only_builder(cache_dir: Path, name: str) -> Iterator[None]:
    """Hold the entry's lock; another process that wants the same entry waits and then finds it built."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_dir / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is decoding the same images: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refused(cache_dir: Path, count: int, shapes: Shapes, error: OSError) -> SegaeError:
    need = count * sum(int(np.prod(shape)) for shape in shapes.values()) / 2**20
    return SegaeError(
        f"The decoded images cannot be stored in {cache_dir}: {error}. Wanted {need:.0f} MB of free space in "
        f"a folder that may be written to; make room, or choose another folder with "
        f"`export SEGAE_CACHE=<folder>`, then type the command again."
    )
