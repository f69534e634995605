"""Decode and resize every image once; afterwards read memory maps, verified by a checksum.

An entry is a folder named by a hash of what went into it: the contents of the files, in order, and the parameters. A
changed file gets another entry, and moved files keep theirs. Entries are built by one process, whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from segae._io import cache_dir
from segae.data.file_lists import Pair, PairList, PathList, Values
from segae.data.image_io import (
    IGNORE_INDEX,
    SkippedFiles,
    UnavailableFile,
    UnreadableImage,
    read_bytes,
    read_pair,
    read_resized,
)
from segae.errors import DataError, SegaeError
from segae.image_format import ImageFormat, Size

logger = logging.getLogger("segae")

Task = TypeVar("Task")
Result = TypeVar("Result")
Shapes = Mapping[str, tuple[int, ...]]

_FORMAT = 2  # to be raised whenever the same files would give other arrays
_BATCH = 256
_MANY = 4096  # facts that are computed before they are written down
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class CachedImages:
    """Unlabeled images: ``images`` uint8 (N, S, S, 3) RGB, or of another format, read-only; ``paths`` their N files."""

    images: np.ndarray
    paths: PathList


@dataclass(frozen=True)
class CachedPairs:
    """Labeled ``images`` as above, class indices ``masks``, uint8 (N, S, S) or int64 (N,); their ``pairs``."""

    images: np.ndarray
    masks: np.ndarray
    pairs: PairList


def cache_images(paths: Sequence[Path], size: Size | ImageFormat, skipped: SkippedFiles) -> CachedImages:
    """Resize image files as a model takes them, decoding only what no earlier call has decoded.

    ``skipped`` receives the files that cannot be read; the others are returned. SegaeError if none can be read, or if
    the disk is full or refuses writing.
    """
    packed, form = PathList.of(paths), ImageFormat.of(size)
    arrays, kept = _fetch([packed], _parameters(form), _shapes(form), _decoder(form), skipped, False, form.dtype)
    return CachedImages(arrays["images"], packed.take(kept))


def cache_pairs(
    pairs: Sequence[Pair],
    size: Size | ImageFormat,
    mask_values: Values,
    skipped: SkippedFiles,
    *,
    ignore_values: Sequence[int] = (),
    allow_empty: bool = False,
) -> CachedPairs:
    """Resize images and masks as a model takes them, masks as class indices.

    ``mask_values`` and ``ignore_values`` are as in `to_class_indices`; or the former are names of class folders, and
    ``masks`` int64 (N,), a class for each image. ``skipped`` receives the image of each pair of which a file cannot be
    read; the others are returned. SegaeError if a mask holds a value that is no class, or has another size than its
    image; there are no classes or more than 255; none can be read (unless ``allow_empty``); or the disk is full or
    refuses writing.
    """
    packed, classes, form = PairList.of(pairs), list(mask_values), ImageFormat.of(size)
    if isinstance(classes[0] if classes else None, str):
        found = _fetch(
            [packed.images], _parameters(form), _shapes(form), _decoder(form), skipped, allow_empty, form.dtype
        )
        kept = packed.take(found[1])
        labels = [classes.index(folder.name) for folder in kept.masks]  # type: ignore[arg-type]
        return CachedPairs(found[0]["images"], np.array(labels, np.int64), kept)
    if not 1 <= len(mask_values) <= IGNORE_INDEX:
        raise DataError(f"mask_values must name 1 to {IGNORE_INDEX} classes, got {len(mask_values)}")
    files, shapes = [packed.images, packed.masks], _shapes(form) | {"masks": form.shape}
    decode = functools.partial(read_pair, size=form, mask_values=mask_values, ignore_values=ignore_values)
    coding = (*mask_values, *(f"ignore {value}" for value in ignore_values), *_parameters(form))
    arrays, places = _fetch(files, coding, shapes, decode, skipped, allow_empty, form.dtype)
    return CachedPairs(arrays["images"], arrays["masks"], packed.take(places))


def _decoder(form: ImageFormat) -> Decode:
    return lambda path: (read_resized(path, form, reduced=False),)


def _shapes(form: ImageFormat) -> dict[str, tuple[int, ...]]:
    return {"images": (*form.shape, form.stored_channels)}


def _parameters(form: ImageFormat) -> tuple[Any, ...]:
    """What arrays depend on beside their shape; nothing for 8-bit images that are squashed."""
    plain = form.resize == "squash" and not form.value_range
    return () if plain else (form.resize, form.value_range)


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """Hash the content of each file: 32 hexadecimal digits, or a text with spaces that says why there is no hash."""

    def hash_content(path: Path) -> str:
        return hashlib.blake2b(read_bytes(path), digest_size=16).hexdigest()

    return list(remember_facts("blake2b", paths, hash_content, lambda error: f"no hash: {error.reason}"))


def remember_facts(
    kind: str, paths: Sequence[Path], compute: Callable[[Path], Any], unreadable: Callable[[UnreadableImage], Any] = str
) -> Iterator[Any]:
    """Look up a fact about each file, and compute it for files that are new or have changed; one after the other.

    A fact is remembered under the file's path, size, times of change in nanoseconds and inode, so that a file replaced
    by one of the same size and modification time is noticed. ``compute`` makes a path a fact of a ``kind``, which JSON
    can hold; it is called in threads. ``unreadable`` gives that of a file that cannot be read, which is not remembered.
    """

    def attempt(path: Path) -> tuple[Any, bool]:
        try:
            return compute(path), True
        except UnreadableImage as error:
            return unreadable(error), False

    index, packed, done = cache_dir() / "facts.sqlite", PathList.of(paths), 0
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        for fact in _remember(index, kind, packed, attempt):
            done += 1
            yield fact
    except (OSError, sqlite3.Error) as error:  # the index only saves time, so nothing stops without it
        logger.debug("%s cannot be used: %s", index, error)
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):  # damaged
            index.unlink(missing_ok=True)
        yield from _remember(":memory:", kind, packed[done:], attempt)


def _remember(
    index: Path | str, kind: str, paths: PathList, attempt: Callable[[Path], tuple[Any, bool]]
) -> Iterator[Any]:
    here, now = Path.cwd(), time.time_ns()
    with closing(sqlite3.connect(index, timeout=60)) as table, _progress("Reading files", len(paths)) as bar:
        table.execute("CREATE TABLE IF NOT EXISTS facts (kind, path, stamp, fact, PRIMARY KEY (kind, path))")
        for start in range(0, len(paths), _MANY):
            part = paths[start : start + _MANY]
            keys = [(kind, os.fsencode(here / path), _stamp(path, now)) for path in part]
            find = "SELECT fact FROM facts WHERE kind = ? AND path = ? AND stamp = ?"
            found = [table.execute(find, key).fetchone() for key in keys]
            facts = [None if row is None else json.loads(row[0]) for row in found]
            bar.update(len(part) - found.count(None))
            absent = [place for place, row in enumerate(found) if row is None]
            rows = []
            for place, (fact, final) in zip(absent, map_in_threads(attempt, part.take(absent), bar), strict=True):
                facts[place] = fact
                if final and keys[place][2] is not None:
                    rows.append((*keys[place], json.dumps(fact)))
            with table:
                table.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)", rows)
            yield from facts


def map_in_threads(function: Callable[[Task], Result], tasks: Sequence[Task], bar: tqdm) -> Iterator[Result]:
    """Apply a function in threads (decoding and hashing release the GIL); results come in the order of the tasks."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(tasks), _BATCH):  # in batches, so that results never pile up
            for result in pool.map(function, tasks[start : start + _BATCH]):
                bar.update()
                yield result


def read_ahead(function: Callable[[Task], Result], tasks: Sequence[Task], count: int) -> Iterator[list[Result]]:
    """Apply a function in threads, as `map_in_threads` does, and yield ``count`` results while the next are made."""
    with ThreadPoolExecutor(min(count, 8)) as pool:
        ahead = pool.map(function, tasks[:count])
        for start in range(count, len(tasks) + count, count):
            results = list(ahead)
            ahead = pool.map(function, tasks[start : start + count])
            yield results


def _progress(title: str, total: int) -> tqdm:
    return tqdm(total=total, desc=title, leave=False, disable=None, delay=1)  # on a terminal, or in a notebook


def _stamp(path: Path, now: int) -> str | None:
    """What changes with a file's content; None where a fact must not be remembered."""
    try:
        status = path.stat()
    except OSError:
        return None
    # a file of a moment ago may change once more within one tick of the clock
    if max(status.st_mtime_ns, status.st_ctime_ns) > now - _SETTLED_NS:
        return None
    return f"{status.st_size:x} {status.st_mtime_ns:x} {status.st_ctime_ns:x} {status.st_ino:x}"


class _Failure(NamedTuple):
    """An item that could not be read, and whether it could not the next time either."""

    place: int
    reason: str
    final: bool


Decode = Callable[..., tuple[np.ndarray, ...]]
Entry = tuple[dict[str, np.ndarray], list[_Failure]]


def _fetch(
    files: list[PathList],
    parameters: Sequence[Any],
    shapes: Shapes,
    decode: Decode,
    skipped: SkippedFiles,
    allow_empty: bool,
    kind: Any,
) -> tuple[dict[str, np.ndarray], Sequence[int]]:
    """Read the arrays of a set of items from the cache, building the entry first if it is not there.

    ``files`` holds one path per item for each kind of file (image, mask), ``shapes`` the name and shape of one item's
    arrays, in the order in which ``decode`` gives them for its files; ``parameters`` are whatever else the arrays
    depend on. Returns read-only arrays (N, *shape), ``images`` of the type ``kind`` and others uint8, of the items that
    could be read, and their indices.
    """
    count = len(files[0])
    if not count:
        return {name: np.empty((0, *shape), _kind(name, kind)) for name, shape in shapes.items()}, ()
    contents = [content_hashes(paths) for paths in files]
    recipe = json.dumps([_FORMAT, parameters, dict(shapes), contents])
    entry = cache_dir() / hashlib.blake2b(recipe.encode(), digest_size=16).hexdigest()

    def attempt(place: int) -> tuple[np.ndarray, ...] | _Failure:
        try:
            return decode(*(paths[place] for paths in files))
        except UnreadableImage as error:
            which = "" if error.path == files[0][place] else f"its mask {error.path.name}: "
            # a file that was there when it was hashed and is not now may be there the next time
            hashed = all(" " not in hashes[place] for hashes in contents)
            return _Failure(place, which + error.reason, not (hashed and isinstance(error, UnavailableFile)))

    try:
        arrays, failures = _open(entry, shapes, kind) or _build(entry, count, shapes, kind, attempt)
    except OSError as error:
        need = count * sum(np.prod(shape) * _kind(name, kind).itemsize for name, shape in shapes.items()) / 1e6
        raise SegaeError(
            f"{count} decoded images ({need:.0f} MB) cannot be stored in {cache_dir()}: {error}. Make room, or set the "
            "environment variable SEGAE_CACHE to another folder."
        ) from error
    reasons = {failure.place: failure.reason for failure in failures}
    skipped.extend((files[0][place], reason) for place, reason in reasons.items())
    if len(reasons) == count and not allow_empty:
        first = "; ".join(f"{files[0][place]} ({reason})" for place, reason in list(reasons.items())[:3])
        raise DataError(f"None of the {count} images can be read: {first}. Replace the files or name another folder.")
    return arrays, [place for place in range(count) if place not in reasons]


def _kind(name: str, images: Any) -> np.dtype:
    return np.dtype(images if name == "images" else np.uint8)


def _open(entry: Path, shapes: Shapes, kind: Any, *, built: bool = False) -> Entry | None:
    """Open an entry; None if it is not there, its bytes have changed, or it lacks what may be there another time."""
    try:
        info = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
        failures = [_Failure(*failure) for failure in info["failures"]]
        if not built and not all(failure.final for failure in failures):
            return None
        arrays = {}
        for name, shape in shapes.items():
            path, whole = entry / name, (info["count"], *shape)
            # an empty file cannot be mapped
            one = _kind(name, kind)
            arrays[name] = np.memmap(path, one, "r", shape=whole) if whole[0] else np.empty(whole, one)
            if zlib.crc32(arrays[name].data) != info["checksums"][name]:  # 4 GB/s; blake2b has 1
                logger.warning("%s is damaged: the images are decoded again", path)
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return arrays, failures


def _build(
    entry: Path, count: int, shapes: Shapes, kind: Any, attempt: Callable[[int], tuple[np.ndarray, ...] | _Failure]
) -> Entry:
    """Decode all items into a folder beside the entry and move it into place when it is whole; others wait for it."""
    partial = entry.with_suffix(".partial")
    kept, failures, checksums = 0, [], dict.fromkeys(shapes, 0)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_suffix(".lock")):
        if found := _open(entry, shapes, kind):
            return found
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir()
        try:
            with ExitStack() as stack:
                # plain writes, not a memory map: on a full disk a store to a map kills the process
                outputs = {name: stack.enter_context((partial / name).open("wb")) for name in shapes}
                bar = stack.enter_context(_progress("Decoding images", count))
                for result in map_in_threads(attempt, range(count), bar):
                    if isinstance(result, _Failure):
                        failures.append(result)
                        continue
                    kept += 1
                    for (name, output), array in zip(outputs.items(), result, strict=True):
                        data = np.ascontiguousarray(array).data
                        output.write(data)
                        checksums[name] = zlib.crc32(data, checksums[name])
            info = {"count": kept, "checksums": checksums, "failures": failures}
            (partial / "entry.json").write_text(json.dumps(info), encoding="utf-8")
            shutil.rmtree(entry, ignore_errors=True)  # an entry that is there cannot be used
            partial.rename(entry)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if found := _open(entry, shapes, kind, built=True):
            return found
    raise OSError(f"{entry} cannot be read back")
