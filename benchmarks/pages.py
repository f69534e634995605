"""The memory of a process and its children that nobody else can use, as Linux counts it."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

KINDS = {"own": ("Pss_Anon", "Pss_Shmem", "SwapPss"), "files": ("Pss_File",)}


class Watch:
    """The largest memory of this process and its children while the block runs, in 10^6 bytes, by kind."""

    def __enter__(self) -> Watch:
        self.peak: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            seen: Counter[str] = Counter()
            for process in _family(os.getpid()):
                seen.update(_pages(process))
            for kind, value in seen.items():
                self.peak[kind] = max(self.peak[kind], value)
            if self._ended.wait(0.2):
                return


def _family(process: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # a thread has ended meanwhile
            children += map(int, (task / "children").read_text().split())
    return [process, *children]


def _pages(process: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return {}
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return {kind: sum(sizes[name] for name in names) / 1e6 for kind, names in KINDS.items()}
