"""Files of images: their bytes within a limit, the errors of those that cannot be read, and a list of these."""

import csv
import io
import logging
import stat
from collections.abc import Iterable
from pathlib import Path

from segae._io import write_atomically
from segae.errors import DataError

logger = logging.getLogger("segae")

_MAX_BYTES = 1 << 30


class UnreadableImage(DataError):
    """A file that could not be decoded; ``path`` and ``reason`` are attributes."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both as args, so that the exception survives pickling
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read as an image: {self.reason}. Replace or remove the file."


class UnavailableFile(UnreadableImage):
    """A file that could not be opened: missing, forbidden, no regular file, or a disk that failed this time."""


class SkippedFiles:
    """The files that were left out of a run, each with the reason."""

    def __init__(self) -> None:
        self._reasons: dict[Path, str] = {}
        self._reported = 0

    def add(self, path: Path, reason: str) -> None:
        """Remember a file; a file that is already there keeps its first reason."""
        self._reasons.setdefault(path, reason)

    def extend(self, files: Iterable[tuple[Path | str, str]]) -> None:
        """Remember several files, each with its reason."""
        for path, reason in files:
            self.add(Path(path), reason)

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Path and reason of each file, in the order in which they were added."""
        return list(self._reasons.items())

    def __len__(self) -> int:
        return len(self._reasons)

    def report(self) -> None:
        """Log the number and the first few files at WARNING; what was reported before is not reported again."""
        new, self._reported = self.files[self._reported :], len(self)
        if new:
            first = "; ".join(f"{path} ({reason})" for path, reason in new[:3])
            more = f"; and {len(new) - 3} more" if len(new) > 3 else ""
            logger.warning("%d unreadable file(s) skipped: %s%s", len(new), first, more)

    def write(self, folder: Path) -> None:
        """Write ``skipped.csv`` (path, reason) into the folder; no file, also of an earlier call, if there is none."""
        text, path = io.StringIO(), folder / "skipped.csv"
        csv.writer(text).writerows([("path", "reason"), *self.files])
        if self.files:
            write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))
        else:
            path.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most 1 GiB whole, or raise UnavailableFile; a FIFO would block, a device never ends."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnavailableFile(path, "no regular file")
        if status.st_size > _MAX_BYTES:
            raise UnavailableFile(path, f"the file has {status.st_size / 2**30:.1f} GiB, more than 1")
        return path.read_bytes()
    except OSError as error:
        raise UnavailableFile(path, error.strerror or str(error)) from error


def first_bytes(path: Path) -> bytes:
    """The first 4 kB of a regular file."""
    if not path.is_file():
        raise UnavailableFile(path, "no regular file")
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise UnavailableFile(path, error.strerror or str(error)) from error
