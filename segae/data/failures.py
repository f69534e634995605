"""What worker processes could not read, noted where the main process can see it."""

from __future__ import annotations

import json

import torch
from torch.utils.data import get_worker_info

from segae.data.quarantine import UNNAMED

_ROWS = 128  # one per worker process; each writes in its own row only, so no lock is needed
_ROW_BYTES = 8192


class SharedFailures:
    """A list of (what, reason) in shared memory that any worker may add to and the main process may read.

    Its size is fixed: 1 MB, some hundred failures. Those beyond are counted and not named.
    """

    def __init__(self) -> None:
        self._text = torch.zeros(_ROWS, _ROW_BYTES, dtype=torch.uint8).share_memory_()
        self._used = torch.zeros(_ROWS, dtype=torch.int64).share_memory_()
        self._unnamed = torch.zeros(_ROWS, dtype=torch.int64).share_memory_()

    def add(self, what: str, reason: str) -> None:
        """Note one failure; the same failure noted twice stands in the list once."""
        worker = get_worker_info()
        row = 0 if worker is None else (1 + worker.id) % _ROWS
        line = json.dumps([what, reason[:500]]).encode() + b"\n"
        used = int(self._used[row])
        if line in self._row(row):
            return
        if used + len(line) > _ROW_BYTES:
            self._unnamed[row] += 1
            return
        self._text[row, used : used + len(line)] = torch.frombuffer(bytearray(line), dtype=torch.uint8)
        self._used[row] += len(line)  # last, so that a reader never sees half a line

    @property
    def unnamed(self) -> int:
        """How many times a failure was met after its process's part of the list was full."""
        return int(self._unnamed.sum())

    @property
    def all(self) -> tuple[tuple[str, str], ...]:
        """``items``, and (``UNNAMED``, how many times) where there were more than the list could hold."""
        return (*self.items, *([(UNNAMED, str(self.unnamed))] if self.unnamed else []))

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """The failures, each once, those of one process in their order."""
        lines = b"".join(self._row(row) for row in range(_ROWS)).splitlines()
        return tuple(dict(json.loads(line) for line in lines).items())

    def _row(self, row: int) -> bytes:
        return self._text[row, : int(self._used[row])].numpy().tobytes()
