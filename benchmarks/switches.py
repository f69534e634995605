"""Time each switch of the compute path on and off.

    python benchmarks/switches.py [--switches channels_last micro_batch] [--device cuda] [--write]
    python benchmarks/switches.py --quick --device cpu

Both ways are steps of segae's own Learner on one batch that stays on the device; they take turns in one process, there
and back. How freed memory is treated is decided once in a process's life, so that switch has fresh processes by turns.
What counts is the median of the pairs' ratios of times; below 1 the switch gains. ``torch.compile`` takes minutes on a
CPU and is timed there with ``--compile`` only. ``--write`` adds rows to results/ after each switch.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from rows import save
from scene import Scene
from turns import Pairs, time_pairs
from ways import SWITCHES, Absent, Metrics, require_glibc

import segae
import segae.training.device
from segae.training.cost import measured

KEPT = "freed_memory_kept"


def measure(name: str, given: argparse.Namespace, scene: Scene) -> None:
    """One switch: time, print, and write if asked for."""
    try:
        if name == KEPT:
            require_glibc()
            task, (times, more) = "segment", in_processes(given)
        else:
            ways = SWITCHES[name](scene)
            times = time_pairs(ways.on, ways.off, given.pairs, scene.device, steps=given.steps)
            task, more = ways.task, ways.more()
    except Absent as reason:
        print(f"{name:<26}left out: {reason}", flush=True)
        return
    print(f"{name:<26}{times}", flush=True)
    for metric, value in more:
        print(f"{'':<26}{metric} {statistics.median(value) if isinstance(value, list) else value:.3f}", flush=True)
    if given.write:
        cell = {"task": task, "encoder": scene.encoder, "image_size": scene.size, "batch_size": scene.batch_size}
        ms = {way: [1000 * one for one in taken] for way, taken in (("on", times.on_s), ("off", times.off_s))}
        metrics = [("time_on_over_off", times.ratios), ("step_ms_on", ms["on"]), ("step_ms_off", ms["off"]), *more]
        values = [(name, *metric) for metric in metrics]
        settings = f"{len(times.on_s)} pairs of {given.steps} step(s)"
        where = {"path": given.out, "benchmark": "switches", "settings": settings}
        save(scene.device, {**cell, "data_path": "one batch"}, values, **where)


def in_processes(given: argparse.Namespace) -> tuple[Pairs, Metrics]:
    """Kept and given back, each in a process of its own, there and back; no GPU takes part."""
    found: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    for turn in range(given.process_pairs):
        for way in ("off", "on") if turn % 2 else ("on", "off"):
            # of equal flags the last one counts
            words = [sys.executable, "-W", "ignore", __file__, *given.words, "--device", "cpu", "--child", way]
            run = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
            found[way].append(json.loads(run.stdout.splitlines()[-1]))
    names = ("peak_memory_mb", "page_faults", "cpu_ms")
    more: Metrics = [(f"{name}_{way}", [one[name] for one in found[way]]) for name in names for way in found]
    return Pairs(*([one["step_s"] for one in found[way]] for way in ("on", "off"))), more


def child(way: str, given: argparse.Namespace, scene: Scene) -> dict[str, float]:
    """The part of one process: seconds of a step (the median), page faults and CPU time of one, the peak memory."""
    if way == "off":
        segae.training.device.keep_freed_memory = lambda: False
    with measured(scene.device) as cost:
        step = scene.step()
        for _ in range(2):
            step()
        before = resource.getrusage(resource.RUSAGE_SELF)
        times = time_pairs(step, step, max(given.pairs // 2, 1), scene.device, warm_up=0)
        after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = times.on_s + times.off_s
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "step_s": statistics.median(seconds),
        "page_faults": (after.ru_minflt - before.ru_minflt) / len(seconds),
        "cpu_ms": 1000 * cpu_s / len(seconds),
        "peak_memory_mb": cost.peak_memory_mb,
    }


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (KEPT, *SWITCHES)
    parser.add_argument("--switches", nargs="+", choices=names, help="all of them, if nothing is said")
    parser.add_argument("--compile", action="store_true", help="torch.compile on a CPU too: minutes")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, help="16 on a CPU, 64 on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs of turns")
    parser.add_argument("--steps", type=int, help="in a turn; 1 on a CPU, 20 on a GPU")
    parser.add_argument("--process-pairs", type=int, default=4, help="of fresh processes")
    parser.add_argument("--quick", action="store_true", help="a run of seconds that only shows that everything works")
    parser.add_argument("--write", action="store_true", help="add rows to results/, or to --out")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--child", choices=("on", "off"), help=argparse.SUPPRESS)  # one process's part
    given = parser.parse_args(words)
    given.words = words
    if given.quick:
        vars(given).update(encoder="test_resnet", image_size=64, batch_size=4, pairs=1, steps=1, process_pairs=1)
    gpu = segae.choose_device(given.device).type != "cpu"
    given.batch_size = given.batch_size or (64 if gpu else 16)
    given.steps = given.steps or (20 if gpu else 1)
    if given.switches is None:
        on_cpu = (name for name in names if name != "compile" or given.compile)
        given.switches = [name for name in names if name != KEPT] if gpu else list(on_cpu)
    return given


def main() -> None:
    given = parse(sys.argv[1:])
    device = segae.choose_device(given.device)
    scene = Scene(given.encoder, given.image_size, given.batch_size, device, given.pairs)
    if given.child is not None:
        print(json.dumps(child(given.child, given, scene)))
        return
    for name in given.switches:
        measure(name, given, scene)
        gc.collect()  # a learner and its callbacks refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
