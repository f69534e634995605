"""Every code block of README.md and docs/*.md runs as it is printed, and what the pages name exists.

Trainings are made tiny after their arguments were read and checked, so a wrong name, flag or value still fails.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm

import segae
import segae.bench.runner
import segae.methods.base
from segae import _settings, cli, config
from segae._settings import make_config
from tests.command_lines import parse_command
from tests.fabricate import draw, make_images, make_pets, save
from tests.pictures import draw_nothing

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "data/weights/README.md", "results/pending.md")
ALL_PAGES = [*PAGES, *(ROOT / name for name in OTHERS)]
NOT_RUN = {  # how a line of a shell block begins: why it is not run
    "make ": "installs packages and takes minutes",
    "python benchmarks/": "takes minutes",
    "segae data pets": "needs a network: 0.8 GB",
    "segae serve ": "runs until it is interrupted",
}
LAUNCHERS = ("torchrun ", "accelerate launch ")  # need several GPUs; the command behind them runs in one process
FOREIGN_FLAGS = {  # of other programs than segae
    *("--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"),
    *("--data-binary", "--multi_gpu", "--num_processes", "--write", "--slow", "--logdir"),
}
SMALL = {"image_size": 64, "batch_size": 4}
SMALLER = {"image_size": 32, "encoder": "test_resnet"}
IN_PYTHON = {  # what a block says: what is run, where there are no settings of segae to make tiny
    '"resnet18"': '"test_resnet"',
    "RandomSplitter(0.2": "RandomSplitter(0.6",  # fewer training images
    "Resize(64)": "Resize(32)",
    "num_it=20": "num_it=6",
}


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
    """The same settings for two steps of four small images on one CPU thread, and a small encoder where any will do."""
    changes: dict[str, Any] = {}
    if isinstance(given, config.BenchConfig):
        changes = {part: dataclasses.replace(getattr(given, part), **SMALL) for part in ("pretrain", "finetune")}
        changes |= {"engine": "local", "devices": (), "jobs": 1}
    elif isinstance(given, config.PretrainSettings | config.FinetuneSettings):
        any_will_do = given.weights == "random" and (given.encoder is None or timm.is_model(given.encoder))
        changes = SMALL | (SMALLER if any_will_do else {})
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
    for place, name in enumerate(("rose", "tulip")):
        make_images(root / "flowers" / name, 10, seed=place)
    segae.save_encoder(segae.create_encoder("tf_efficientnet_lite0"), root / "encoder.safetensors")
    return root


@pytest.fixture
def workplace(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A current folder with these files, in which trainings are tiny."""
    shutil.copytree(material, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    def make_tiny_config(kind: Any, *values: Any, **settings: Any) -> Any:
        return make_tiny(make_config(kind, *values, **settings))

    monkeypatch.setattr(_settings, "make_config", make_tiny_config)
    make_runs = segae.bench.runner.make_runs
    monkeypatch.setattr(segae.bench.runner, "make_runs", lambda *values: make_runs(*values)[:1])
    monkeypatch.setattr(segae.bench.runner, "drawn_pets", lambda: tmp_path / "here" / "pets")
    if "README" not in request.node.name:  # drawing takes half of a tiny run
        monkeypatch.setattr(segae.bench.runner, "report", lambda rows, *, out, **_: out)
        draw_nothing(monkeypatch)
        for verb in ("_data", "search"):
            module = importlib.import_module(f"segae.commands.{verb}")
            monkeypatch.setattr(module, "contact_sheet", lambda *_, **__: None)
    monkeypatch.setattr(segae.methods.base, "_METHODS", dict(segae.methods.base._METHODS))
    return tmp_path / "here"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    for block in blocks(page, "python"):
        for printed, tiny in IN_PYTHON.items():
            block = block.replace(printed, tiny)
        exec(compile(block, name_of(page), "exec"), {})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name_of)
def test_shell_blocks_run(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in shell_lines(page):
        if not line.startswith(tuple(NOT_RUN)):
            run(line, capsys)
    if page.name == "README.md":
        known = (ROOT / "docs" / "training.md").read_text() + (ROOT / "docs" / "methods.md").read_text()
        for file in [*(workplace / "runs/pretrain").rglob("*"), *(workplace / "runs/finetune").rglob("*")]:
            assert file.name.startswith(".") or f"`{file.name}" in known, f"{file} is not described"
        for log in (workplace / "runs").glob("*/log.csv"):
            assert [name for name in pd.read_csv(log) if f"`{name}`" not in known] == []


def run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(line, comments=True)
    assert program == "segae", line
    code: Any = 0
    try:
        cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert not code, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_commands_in_the_text_can_be_parsed(page: Path) -> None:
    """Placeholders such as DATA are not looked for, and nothing runs."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = [*re.findall(r"`(segae [a-z]+ [^`]*--[^`]*)`", text), *shell_lines(page)]
    for line in found:
        if line.startswith("segae ") and "..." not in line:
            parse_command(line)


def test_flags_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
    known = {*re.findall(r"--[a-z][\w.-]*[a-z]", capsys.readouterr().out), "--config", "--help"} | FOREIGN_FLAGS
    for page in ALL_PAGES:
        text = page.read_text()
        if page.name == "CHANGELOG.md":  # the left column has the flags of 0.1
            text = "\n".join(line.rpartition(" | ")[2] for line in text.splitlines())
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", re.sub(r"^python bench.*", "", text, flags=re.MULTILINE)))
        flags = {flag for flag in flags if not flag.startswith("--method-args.")}
        assert flags <= known, f"{name_of(page)}: {sorted(flags - known)}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_names_of_the_package_in_the_text_exist(page: Path) -> None:
    for name in re.findall(r"\bsegae\.(?!cli)[a-zA-Z_][\w.]*\w", page.read_text()):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{name_of(page)} links to {target}#{anchor}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def table_rows(page: str, heading: str) -> Iterator[list[str]]:
    """The cells of the first table below a heading."""
    below = (ROOT / page).read_text().partition(f"\n{heading}\n")[2]
    for line in re.search(r"\|---.*\n((?:\|.*\n)+)", below)[1].splitlines():  # type: ignore[index]
        yield [cell.strip().strip("`") for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rates_on_the_speed_page_are_those_of_the_rows(device: str) -> None:
    rows = pd.read_csv(ROOT / "results" / f"throughput_{device}.csv").query("benchmark == 'throughput'")
    rows = rows[(rows["system"] == "segae") & rows["data_path"].isin(["disk", "gpu"])]
    shown = list(table_rows("docs/speed.md", f"## Throughput on a {'CPU' if device == 'cpu' else 'GPU'}"))
    for *place, speed, peak, loop in [
        one if device == "cpu" else ["finetune", one[0], "224", *one[1:4]] for one in shown
    ]:
        task, encoder, size = place
        here = rows[(rows["task"] == task) & (rows["encoder"] == encoder) & (rows["image_size"] == int(size))]
        values = here.set_index("metric")[["value", "lowest", "highest"]]
        assert speed == f"{values.loc['images_per_second', 'value']:,.{1 if device == 'cpu' else 0}f}"
        for cell, metric in ((peak, "rate_over_peak"), (loop, "ratio_to_plain_loop")):
            assert cell == "{:.2f} ({:.2f} to {:.2f})".format(*values.loc[metric])
