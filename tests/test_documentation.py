"""Every code block of README.md and docs/*.md runs as it is printed, and what the pages name exists.

Trainings are made tiny after their arguments were read and checked, so a wrong name, flag or value still fails.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import segae
import segae.bench.runner
import segae.commands._data
import segae.data.datasets
import segae.methods.base
from segae import cli, config
from segae._settings import make_config
from segae.methods import method_table
from tests.fabricate import draw, make_images, make_pets, save

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("CONTRIBUTING.md", "data/README.md", "data/weights/README.md", "results/pending.md")
ALL_PAGES = [*PAGES, *(ROOT / name for name in OTHERS)]
NOT_RUN = {  # how a line of a shell block begins: why it is not run
    "make ": "installs packages and takes minutes",
    "python benchmarks/": "takes minutes",
    "segae data ": "needs a network: 0.8 GB",
    "segae bench --preset full": "needs a network: 0.8 GB",
    "segae bench --preset smp": "needs a network: 0.8 GB",
}
LAUNCHERS = ("torchrun ", "accelerate launch ")  # need several GPUs; the command behind them runs in one process
FOREIGN_FLAGS = {"--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"}
FOREIGN_FLAGS |= {"--multi_gpu", "--num_processes", "--encoders", "--write", "--counts", "--turns", "--slow"}
SMALL = {"image_size": 64, "batch_size": 4}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks that are not comments, without the launchers in front."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [f"segae {line.partition('-m segae.cli ')[2]}" if line.startswith(LAUNCHERS) else line for line in lines]


def make_tiny(given: Any) -> Any:
    """The same settings for two steps of four small images on one CPU thread."""
    changes: dict[str, Any] = {}
    if isinstance(given, config.BenchConfig):
        changes = {part: dataclasses.replace(getattr(given, part), **SMALL) for part in ("pretrain", "finetune")}
        changes |= {"engine": "local", "devices": (), "jobs": 1}
    elif isinstance(given, config.PretrainSettings | config.FinetuneSettings):
        changes = dict(SMALL)
    if hasattr(given, "trainer"):
        changes["trainer"] = dataclasses.replace(given.trainer, device="cpu", threads=1, workers=0, max_steps=2)
    return dataclasses.replace(given, **changes)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages take for granted."""
    root = tmp_path_factory.mktemp("material")
    make_pets(root / "pets", 34, 6)
    make_images(root / "photos", 12)
    save(draw(np.random.default_rng(0))[0], root / "cat.jpg")
    segae.save_encoder(segae.create_encoder("tf_efficientnet_lite0"), root / "encoder.safetensors")
    return root


@pytest.fixture
def workplace(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with these files, in which trainings are tiny."""
    shutil.copytree(material, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    def make_tiny_config(kind: Any, *values: Any, **settings: Any) -> Any:
        return make_tiny(make_config(kind, *values, **settings))

    monkeypatch.setattr(segae.commands._data, "make_config", make_tiny_config)
    make_runs = segae.bench.runner.make_runs
    monkeypatch.setattr(segae.bench.runner, "make_runs", lambda *values: make_runs(*values)[:2])
    monkeypatch.setattr(segae.methods.base, "_METHODS", dict(segae.methods.base._METHODS))
    return tmp_path / "here"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    for block in blocks(page, "python"):
        exec(compile(block, name_of(page), "exec"), {})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name_of)
def test_shell_blocks_run(page: Path, workplace: Path, capsys: pytest.CaptureFixture) -> None:
    for line in shell_lines(page):
        if not line.startswith(tuple(NOT_RUN)):
            program, *arguments = shlex.split(line, comments=True)
            assert program == "segae", line
            try:
                cli.main(arguments)
            except SystemExit as stop:
                assert not stop.code, f"{line}\n{capsys.readouterr().err}"
