"""The command line of docs/distributed.md under the launchers themselves, against the same command without one."""

from __future__ import annotations

import csv
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from segae.cli import main

SEGMENT = ["segment", "--encoder", "test_resnet", "--image-size", "64", "--device", "cpu", "--batch-size", "4"]


def torchrun() -> list[str]:
    return ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def accelerate() -> list[str]:
    """Without ``--cpu``: with it accelerate 1.15 starts one process, whatever number it is given."""
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed: pip install accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    spelled_out = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        port,
        *spelled_out,
    ]


def log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("launcher", [torchrun, pytest.param(accelerate, marks=pytest.mark.slow)])
def test_a_launched_segmentation_is_that_of_one_process(launcher, tmp_path):
    pets, alone, many = (tmp_path / name for name in ("pets", "alone", "many"))
    launch = launcher()
    main(["data", "drawn", "--root", str(pets), "--train", "12", "--test", "2", "--unlabelled", "0", "--size", "64"])
    # AdamW's first steps are as long for a gradient of mere rounding as for any other: a low rate keeps that small
    words = [*SEGMENT, "--data", str(pets), "--epochs", "1", "--val-fraction", "0.3", "--lr", "0.001"]
    main([*words, "--out", str(alone)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *launch, "-m", "segae.cli", *words, "--out", str(many)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1, "process 0 alone prints"
    assert '"2 x cpu' in (many / "started.json").read_text()
    assert {path.name for path in many.iterdir()} == {path.name for path in alone.iterdir()}
    for row, expected in zip(log(many), log(alone), strict=True):
        assert (row["phase"], row["images"]) == (expected["phase"], expected["images"])
        for name, most in (("train_loss", 1e-3), ("valid_loss", 0.01), ("miou", 0.01)):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=most), name
    one, other = (safetensors.torch.load_file(run / "model.safetensors") for run in (alone, many))
    assert one.keys() == other.keys()
    flat, other_flat = (torch.cat([state[name].flatten().float() for name in one]) for state in (one, other))
    assert (other_flat - flat).norm() < 0.01 * flat.norm()
