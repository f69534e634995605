"""What training must reach on a GPU: `pytest -m gpu tests/test_speed_on_gpu.py` measures it and writes the rows."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import segae
from segae.training.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is here")
SECONDS = 480.0  # for all of them

MEMORY, LIVE = ["--data-paths", "device", "--rounds", "2"], ["--data-paths", "live", "--rounds", "1", "--peers"]
COMMANDS = {  # the most telling ones first: what there is no time for is said to be missing
    "segment 224": ["throughput.py", "--task", "segment", "--sizes", "224", *MEMORY, "--peers", "plain-loop", "fastai"],
    "segment 128": ["throughput.py", "--task", "segment", "--sizes", "128", *MEMORY, "--peers", "plain-loop", "timm"],
    "pretrain": ["throughput.py", "--task", "pretrain", *MEMORY, "--peers", "timm"],
    "live": ["throughput.py", *LIVE],
    "sparse": ["sparse_step.py", "--batch-size", "64", "--pairs", "6", "--steps", "10"],
    "plan": ["plan_check.py", "--repeats", "1", "--tasks", "segment", "--epochs", "1"],
    "switches": ["switches.py", "--pairs", "4"],
    "memory": ["memory.py", "--paths", "cache"],
}
FULL = {"throughput.py": ["--images", "2048"]}
SMALL = {  # a run of seconds that only shows that the command works
    "throughput.py": ["--quick"],
    "sparse_step.py": ["--quick"],
    "switches.py": ["--quick"],
    "plan_check.py": ["--encoder", "test_resnet", "--image-size", "32", "--batch-size", "4", "--seconds", "1"],
    "memory.py": ["--counts", "1000", "2000", "--seconds", "0.5"],
}


def run(name: str, device: str, out: Path, pets: Path, more: dict[str, list[str]], left: float | None = None) -> None:
    script, *words = COMMANDS[name]
    words += ["--data", str(pets)] if script == "plan_check.py" else []
    words += ["--device", device] if script != "memory.py" else []
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / script), *words, *more.get(script, [])]
    subprocess.run([*command, "--write", "--out", str(out)], check=True, timeout=left)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def targets(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("targets")
    del sys.modules["targets"]


@pytest.mark.gpu
@GPU
def test_training_reaches_its_ceiling(targets, tmp_path):
    """All commands in eight minutes; rows of other commits or devices in the same file are not judged."""
    pets = segae.draw_pets(tmp_path / "pets", train=512, test=1, size=256, progress=False)
    out, ends = ROOT / "results" / "throughput_cuda.csv", time.monotonic() + SECONDS
    trouble = []
    for name in COMMANDS:
        try:
            run(name, "cuda", out, pets, FULL, max(ends - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired:
            trouble.append(f"{name}: no time was left")
        except subprocess.CalledProcessError as error:
            trouble.append(f"{name}: ended with {error.returncode}")
    now = provenance(torch.device("cuda"), code=("segae", "benchmarks"))
    rows = [row for row in read(out) if all(row[key] in (now[key], "cpu") for key in ("commit", "device"))]
    wanted = targets.TARGETS["cuda"]
    assert not [*trouble, *targets.shortfalls(rows, wanted), *targets.unmet(rows, wanted)]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_works_on_a_cpu(name, tmp_path):
    pets = segae.draw_pets(tmp_path / "pets", train=8, test=1, size=64, progress=False)
    run(name, "cpu", tmp_path / "rows.csv", pets, SMALL)
    assert read(tmp_path / "rows.csv")


def test_each_command_is_understood(monkeypatch, tmp_path):
    """The words of the GPU's commands, without running them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for script, *words in COMMANDS.values():
        data = ["--data", str(tmp_path)] if script == "plan_check.py" else []
        given = importlib.import_module(script.removesuffix(".py")).parse([*words, *data, *FULL.get(script, [])])
        assert not given.write


def test_the_rows_of_a_cpu_reach_their_targets_or_the_documentation_says_which_do_not(targets):
    rows, wanted = read(ROOT / "results" / "throughput_cpu.csv"), targets.TARGETS["cpu"]
    assert not targets.unmet(rows, wanted)
    page = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    _, _, listed = page.partition("Targets that are missed on two CPU cores:")
    missed = targets.shortfalls(rows, wanted)
    for sentence in missed:
        assert sentence in listed, f"docs/speed.md does not say: {sentence}"
    assert listed.count("wanted at ") == len(missed), "docs/speed.md says more than is missed"


def test_a_shortfall_is_said(targets):
    """Rows as throughput.py makes them: a target that asks for another metric's name would never be missed."""
    throughput = importlib.import_module("throughput")
    peers, rates = importlib.import_module("peers"), importlib.import_module("rates")
    names = (("plain-loop", 1.0), ("fastai-unet_learner", 0.5))
    others = [(peers.Peer(name, "images_per_second", "live", float), [rate]) for name, rate in names]
    measured = rates.Rates([1.0], [0.85], [0.85], False, others, data_wait=0.07, peak_memory_mb=5.0)
    cell = throughput.Cell("segment", "resnet18", 224, "device")
    base = {"benchmark": "throughput", "task": "segment", "encoder": "resnet18", "image_size": "224"}
    rows = []
    for path, values in throughput.as_values(cell, measured, {}).items():
        for system, metric, value in values:
            number = str(value[0] if isinstance(value, list) else value)
            rows.append({**base, "data_path": path, "system": system, "metric": metric, "value": number})
    found = targets.shortfalls(rows, targets.TARGETS["cuda"])
    assert len(found) == 4, found
    for words in ("rate_over_ceiling", "data_wait", "ratio_to_plain_loop", "ratio_to_fastai"):
        assert any(words in sentence for sentence in found)
    assert "sparse_step: sparse_over_dense" in targets.unmet(rows, targets.TARGETS["cuda"])
