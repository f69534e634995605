"""What a process costs before a task has begun and after it has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache

# one line when a command is at its task, one when it has what every task loads
_LIBRARIES = """
import segae.cli
print(flush=True)
import matplotlib.pyplot, segae.models.segmenter, segae.training.learner
print(flush=True)
"""


@cache
def start_and_end_of_python() -> tuple[float, float]:
    """Seconds until a command gets to its task, and seconds in which a process with its libraries ends.

    The first have passed here before the clock could be started, the second come after it was stopped.
    """
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", _LIBRARIES], stdout=subprocess.PIPE) as process:
        lines = process.stdout
        assert lines is not None
        lines.readline()
        in_task = time.perf_counter()
        lines.readline()
        done = time.perf_counter()
        process.wait()
    return in_task - started, time.perf_counter() - done
