"""Seconds until `segae --help` has answered and `import segae` is done, each in a new process.

python benchmarks/startup.py [--turns 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import segae": ["-c", "import segae"],
    "segae --help": ["-m", "segae.cli", "--help"],
    "segae pretrain MISSING": ["-m", "segae.cli", "pretrain", "no-such-folder"],
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    for name, words in COMMANDS.items():
        seconds = []
        for _ in range(turns + 1):
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            seconds.append(time.perf_counter() - started)
        print(f"{name:24} {statistics.median(seconds[1:]):.2f} s (least {min(seconds):.2f})")
