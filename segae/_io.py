"""Files that are whole or not there: atomic writes, JSON, package data; data URIs; checks of values; messages."""

import importlib.util
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from segae.errors import DataError, SegaeError, nearest

logger = logging.getLogger("segae")
_TEMPORARY = re.compile(r"\.(?P<pid>\d+)-\w+\.segae-part")
_DURATION = re.compile(r"(?=.)(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

Content = bytes | memoryview | Callable[[BinaryIO], object]
"""Of a file: its bytes, or a function that writes them."""


def write_atomically(path: Path, content: Content) -> None:
    """Write a file beside ``path``, then put it in place of ``path`` in one step.

    Raises:
        SegaeError: the content could not be written (full disk, no permission). ``path`` is as it was before.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write several files so that each is either the old one or the new one, never a part of it.

    All bytes reach the disk under temporary names in the target folders, which are made, before a target is replaced.

    Raises:
        SegaeError: a file could not be written; all of them are as they were before.
    """
    contents = {path.resolve() if path.is_symlink() else path: one for path, one in contents.items()}  # links stay
    temporary: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{os.getpid()}-", suffix=".segae-part", dir=path.parent)
            temporary[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary[path].chmod(0o666 & ~mask)  # of an ordinary new file: a temporary one is private
        for path, part in temporary.items():
            part.replace(path)
    except OSError as error:
        raise SegaeError(_write_failure(path, error)) from error
    finally:
        for part in temporary.values():
            part.unlink(missing_ok=True)


def _write_failure(path: Path, error: OSError) -> str:
    """Name the cause: a full disk, a full inode table, a read-only folder or something else."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free, inodes = shutil.disk_usage(folder).free, os.statvfs(folder)
    if inodes.f_files and not inodes.f_favail:
        cause = "the disk has no inodes left for new files: delete files that are not needed"
    elif free < 1 << 20 or "No space" in str(error):
        cause = f"the disk is full ({free / 1e6:.0f} MB free): make room"
    elif not os.access(folder, os.W_OK):
        cause = f"the folder {folder} is read-only: choose another one or change its permissions"
    else:
        cause = str(error.strerror or error).splitlines()[0]
    return f"{path} could not be written: {cause}. What was there before is unchanged."


def remove_stale_temporaries(folder: Path) -> None:
    """Delete the temporary files of processes that no longer run (killed while writing)."""
    for part in folder.glob(".*.segae-part") if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(part.name)
        if found and not process_runs(int(found["pid"])):
            part.unlink(missing_ok=True)


def process_runs(pid: int) -> bool:
    """Whether a process with this id exists on this machine."""
    try:
        with suppress(PermissionError, OverflowError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def write_json(path: Path, content: object) -> None:
    """Write indented JSON atomically; paths become text."""
    write_atomically(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """Read JSON; None where the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def package_data(name: str) -> Path:
    """Find a folder that comes with segae: ``drawn-pets`` or ``weights``, in the wheel or in the repository."""
    package = Path(__file__).parent
    installed = package / "_package_data" / name
    return installed if installed.is_dir() else package.parent / "data" / name


def data_uri(kind: str, content: bytes) -> str:
    """The content of a file as a data URI of this media type."""
    return f"data:{kind};base64,{b64encode(content).decode()}"


def cache_dir() -> Path:
    """Return the folder of everything that can be computed again: $SEGAE_CACHE, else ~/.cache/segae."""
    return Path(os.environ.get("SEGAE_CACHE") or Path.home() / ".cache" / "segae")


def require_name(argument: str, value: str) -> str:
    """Return ``value``, which must be safe in a file name: 1 to 100 letters, digits, ``._-``, no dot or dash first."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        shown = value if len(str(value)) <= 60 else f"{str(value)[:60]}... ({len(str(value))} characters)"
        raise SegaeError(f"{argument} must be 1 to 100 letters, digits or . _ -, got {shown!r}")
    return value


def refuse_archives(path: Path, *, shards: bool = False) -> None:
    """Raise DataError for a file such as .zip or .tar.gz, or a folder that holds nothing else: they must be unpacked.

    With ``shards`` a .tar file passes, which may be one.
    """
    if shards and path.is_file() and path.suffix == ".tar":
        return
    endings = (*(ending for _, known, _ in shutil.get_unpack_formats() for ending in known), ".7z", ".rar")
    files = (one for one in path.iterdir() if not one.name.startswith(".")) if path.is_dir() else iter([path])
    first = next(files, path)
    if all(one.is_file() and one.name.lower().endswith(endings) for one in (first, *files)):
        what = f"{path} is an archive" if first == path else f"{path} holds the archive {first.name} and no folder"
        tar = (
            f" Shards for a training are named by a pattern, '{first.parent / '*.tar'}'."
            if first.suffix == ".tar"
            else ""
        )
        raise DataError(f"{what}. Unpack it into a folder of its own, and name that folder.{tar}")


def require_package(package: str, extra: str) -> None:
    """Refuse to go on without an optional package."""
    if importlib.util.find_spec(package) is None:
        raise SegaeError(f"the package {package} must be installed: pip install 'segae[{extra}]'")


def require_choice(argument: str, value: str, choices: Collection[str]) -> None:
    """Raise SegaeError with a close match unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise SegaeError(f"{argument} must be one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}")


def parse_duration(argument: str, text: str) -> float:
    """Read a time such as 30m, 2h, 90s or 1h30m; return it in seconds.

    The SegaeError of anything else, or of no time at all, names the argument and the value seen.
    """
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise SegaeError(f"{argument} must be a time such as 30m, 2h, 90s or 1h30m, got {str(text)[:60]!r}")
    return float(total)


def check_range(
    argument: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
    integer: bool = False,
) -> None:
    """Refuse a number outside its range, and anything that is not a finite number.

    ``low`` and ``high`` are the smallest and largest allowed values or None; an open limit is refused itself. The
    SegaeError names the argument, the condition and the value seen.
    """
    number = isinstance(value, int) or (isinstance(value, float) and not integer)
    if number and not isinstance(value, bool) and math.isfinite(value):
        above = low is None or value > low or (value == low and not low_open)
        below = high is None or value < high or (value == high and not high_open)
        if above and below:
            return
    condition = "an integer" if integer else "a finite number"
    if low is not None and high is not None:
        condition += f" in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    elif low is not None:
        condition += f" {'>' if low_open else '>='} {low:g}"
    elif high is not None:
        condition += f" {'<' if high_open else '<='} {high:g}"
    raise SegaeError(f"{argument} must be {condition}, got {value!r}")


class _PrintMessages(logging.Handler):
    """Print information to stdout, of several processes that of the first, and warnings to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"warning: {record.getMessage()}", file=sys.stderr)
        elif os.environ.get("RANK", "0") == "0":
            print(record.getMessage(), flush=True)


@contextmanager
def show_messages() -> Iterator[None]:
    """Within, print what segae logs, unless the program configured logging or the level of the logger "segae"."""
    with nullcontext() if logger.hasHandlers() or logger.level != logging.NOTSET else print_messages(logging.INFO):
        yield


@contextmanager
def print_messages(level: int) -> Iterator[None]:
    """Within, print what segae logs at this level and above."""
    handler = _PrintMessages()
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
