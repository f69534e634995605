"""What could not be read: put aside, counted, told, and written beside the result."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable
from pathlib import Path

from segae.files import write_atomically

logger = logging.getLogger("segae")

UNNAMED = "(not named)"
"""In place of a path, where a list of failures ends with the number of those that it could not hold."""


class Quarantine:
    """The files that were left out of a run, each with the reason, so that training goes on without them."""

    def __init__(self) -> None:
        self._reasons: dict[Path, str] = {}
        self._reported = 0
        self._unnamed = 0  # further failures, met when a list of theirs was full

    def add(self, path: Path, reason: str) -> None:
        """Remember a file; a file that is already there keeps its first reason."""
        self._reasons.setdefault(path, reason)

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def items(self) -> tuple[tuple[Path, str], ...]:
        """Pairs (path, reason) in the order in which they were added."""
        return tuple(self._reasons.items())

    def report(self) -> None:
        """Log the count and the first few files; files that were reported before are not reported again."""
        new = self.items[self._reported :]
        self._reported = len(self)
        if new:
            first = "; ".join(f"{path} ({reason})" for path, reason in new[:3])
            more = f"; and {len(new) - 3} more" if len(new) > 3 else ""
            logger.warning("%d unreadable file(s) left out: %s%s", len(new), first, more)

    def take(self, failures: Iterable[tuple[Path | str, str]], folder: Path) -> None:
        """Add what was found later, (path, reason) each or (``UNNAMED``, how many times), and report and write it."""
        for path, reason in failures:
            if str(path) == UNNAMED:
                self._unnamed += int(reason)
            else:
                self.add(Path(path), reason)
        self.report()
        if self._unnamed:
            logger.warning(self._rest())
        self.write(folder)

    def write(self, folder: Path, anew: bool = False) -> Path | None:
        """Write `quarantine.csv` (path, reason) into the folder; return its path, or None if empty.

        Args:
            folder: of the results.
            anew: remove the file of an earlier call where nothing is to be written.
        """
        target = folder / "quarantine.csv"
        if not self._reasons:
            if anew:
                target.unlink(missing_ok=True)
            return None
        text = io.StringIO()
        rest = [(UNNAMED, self._rest())] if self._unnamed else []
        csv.writer(text).writerows([("path", "reason"), *self.items, *rest])
        write_atomically(target, lambda file: file.write(text.getvalue().encode("utf-8", "backslashreplace")))
        return target

    def _rest(self) -> str:
        return f"{self._unnamed} more time(s) something could not be read, after the list of failures was full"
