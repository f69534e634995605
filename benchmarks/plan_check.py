"""Does the forecast of ``segae plan`` come true?

    python benchmarks/plan_check.py --data data/pets [--tasks segment pretrain] [--repeats 3] [--write]

Plan, run, plan, run, plan: each run is compared with the mean of the plan before it and the one after it, because a
machine's pace drifts, and a steady drift falls on both alike. Every plan and every run is a process of its own, as
typed; each decodes its images anew, which the forecast counts.

Time is that of the process, from its start to its end. Memory is what ``segae.training.cost.measured`` sees around
the whole command. Energy is the log's column ``energy_wh``; a device that reports none has no such line.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SHARED = ("encoder", "image_size", "batch_size", "freeze_epochs", "epochs", "labels", "data_path", "device")
UNITS = {"seconds": "s", "training_seconds": "s", "peak_memory_mb": "MB", "training_energy_wh": "Wh"}
_FORECAST = {"seconds": "total_s", "training_seconds": "training_s"}  # where the plan's file has another name

Costs = dict[str, float]
"""By name, as in ``UNITS``; what the device does not report is left out."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a data set with masks")
    parser.add_argument("--tasks", nargs="+", choices=("segment", "pretrain"), default=["segment", "pretrain"])
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--freeze-epochs", type=int, help="none takes the task's own")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--labels", type=int, help="segment: labelled images; none takes all")
    parser.add_argument("--data-path", choices=("auto", "cache", "device", "live"), default="auto")
    parser.add_argument("--repeats", type=int, default=3, help="runs, each between two plans")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each plan's calibration")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="save rows")
    parser.add_argument("--out", type=Path, help="CSV file of the rows; none takes the device's in results/")
    return parser.parse_args(words)


def check(task: str, given: argparse.Namespace, folder: Path) -> list[tuple[Costs, Costs]]:
    """Plan, run, plan and so on.

    Args:
        task: segment or pretrain.
        given: the settings.
        folder: for what they write.

    Returns:
        For each run what was forecast, the mean of the plans beside it, and what was measured.
    """
    words = ["--data", str(given.data)]
    for name in SHARED:
        value = getattr(given, name)
        if value is not None and (name, task) != ("labels", "pretrain"):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return in_turns(lambda: plan(task, words, given.seconds, folder), lambda: run(task, words, folder), given.repeats)


def in_turns(plan: Callable[[], Costs], run: Callable[[], Costs], repeats: int) -> list[tuple[Costs, Costs]]:
    """Plan, run, plan, run, plan; each run beside the mean of its two plans, with what both know."""
    found = []
    before = plan()
    for _ in range(repeats):
        measured, after = run(), plan()
        known = before.keys() & measured.keys() & after.keys()
        found.append(
            ({name: (before[name] + after[name]) / 2 for name in known}, {name: measured[name] for name in known})
        )
        before = after
    return found


def plan(task: str, words: list[str], seconds: float, folder: Path) -> Costs:
    """What a plan in a process of its own forecasts."""
    file = folder / "plan.json"
    typed = ["plan", "--kind", task, *words, "--seconds", str(seconds), "--json", str(file)]
    _process(["-m", "segae.cli", *typed], folder)
    forecast = json.loads(file.read_text())["forecast"]
    values = {name: forecast[_FORECAST.get(name, name)] for name in UNITS}
    return {name: value for name, value in values.items() if value is not None}


def run(task: str, words: list[str], folder: Path) -> Costs:
    """What a training in a process of its own takes."""
    out = folder / "run"
    started = time.perf_counter()
    printed = _process([__file__, "--train", task, *words, "--out", str(out), "--overwrite"], folder)
    costs = {"seconds": time.perf_counter() - started, "peak_memory_mb": float(printed.splitlines()[-1])}
    with (out / "log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    costs["training_seconds"] = sum(float(row["seconds"]) for row in log)
    if all(row.get("energy_wh") for row in log):
        costs["training_energy_wh"] = sum(float(row["energy_wh"]) for row in log)
    return costs


def _process(words: list[str], folder: Path) -> str:
    """What a process prints that finds no decoded images."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        environment = {**os.environ, "SEGAE_CACHE": cache}
        command = [sys.executable, "-W", "ignore", *words]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout


def train(words: list[str]) -> None:
    """The run's process: train as typed, then print its peak memory."""
    from segae.cli import main
    from segae.training.cost import measured
    from segae.training.device import choose_device

    with measured(choose_device(words[words.index("--device") + 1])) as cost:
        main(words)
    print(cost.peak_memory_mb)


def show(task: str, forecast: Costs, measured: Costs) -> None:
    for name, unit in UNITS.items():
        if name in measured:
            ratio = measured[name] / forecast[name]
            print(
                f"{task:<9}{name:<20}forecast {forecast[name]:9.1f} {unit:<3} measured {measured[name]:9.1f} {unit:<3} "
                f"measured/forecast {ratio:6.3f}",
                flush=True,
            )


def write(task: str, given: argparse.Namespace, found: Sequence[tuple[Costs, Costs]]) -> None:
    from rows import save

    from segae.training.device import choose_device

    values: list[tuple[str, str, list[float]]] = []
    for name in (name for name in UNITS if name in found[0][1]):
        pairs = [(forecast[name], measured[name]) for forecast, measured in found]
        values.append(("plan", name, [forecast for forecast, _ in pairs]))
        values.append(("segae", name, [measured for _, measured in pairs]))
        values.append(("segae", f"{name}_over_plan", [measured / forecast for forecast, measured in pairs]))
    cell = {"task": task, **{name: getattr(given, name) for name in ("encoder", "image_size", "batch_size")}}
    settings = (
        f"{given.data.name}; epochs {given.epochs}; freeze epochs {given.freeze_epochs}; labels {given.labels}; "
        f"repeats {given.repeats}; calibration {given.seconds:g} s"
    )
    cell["data_path"] = given.data_path
    save(choose_device(given.device), cell, values, given.out, benchmark="plan_check", settings=settings)


def main(words: Sequence[str] | None = None) -> None:
    given = parse(words)
    for task in given.tasks:
        with tempfile.TemporaryDirectory() as folder:
            found = check(task, given, Path(folder))
        for forecast, measured in found:
            show(task, forecast, measured)
        if given.write:
            write(task, given, found)


if __name__ == "__main__":
    train(sys.argv[2:]) if sys.argv[1:2] == ["--train"] else main()
