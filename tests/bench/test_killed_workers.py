"""A benchmark of several processes that is killed leaves none of them at work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

WORKERS = 2
BENCHMARK = '''
import sys, time
from pathlib import Path

from segae.bench.engine import Processes
from segae.bench.jobs import Job


class Run:
    """A run that never ends and says all the time that it is at work."""

    pretraining = None
    settings = "endless"

    def __init__(self, place):
        self.place = place

    @property
    def config(self):
        while True:
            self.place.write_text(str(time.monotonic()))
            time.sleep(0.05)


if __name__ == "__main__":
    with Processes(2, ["cpu"], 1) as engine:
        for number in range(2):
            engine.submit(Job(Run(Path(sys.argv[1]) / str(number))))
        engine.next()
'''


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.1)


def test_workers_end_with_a_benchmark_that_is_killed(tmp_path):
    """Otherwise the same command, typed again, would share cores and memory with them."""
    script = tmp_path / "benchmark.py"
    script.write_text(BENCHMARK)
    signs = [tmp_path / str(number) for number in range(WORKERS)]

    def at_work() -> bool:
        before = [sign.read_text() if sign.exists() else "" for sign in signs]
        time.sleep(1)
        return all(sign.exists() and sign.read_text() != old for sign, old in zip(signs, before, strict=True))

    def at_rest() -> bool:
        before = [sign.read_text() for sign in signs]
        time.sleep(1)
        return [sign.read_text() for sign in signs] == before

    with subprocess.Popen([sys.executable, script, tmp_path]) as process:
        wait_for(at_work)
        process.kill()
    wait_for(at_rest)
