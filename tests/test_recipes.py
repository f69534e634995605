"""Each recipe runs as a script, with the arguments that its docstring names."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import matplotlib as mpl
import numpy as np
import pytest

import segae
from segae import cli
from segae.config import PretrainConfig
from tests.fabricate import make_pets
from tests.pictures import draw_nothing

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TINY = ("--image-size", "64", "--epochs", "1")


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pets(tmp_path_factory.mktemp("recipes") / "pets", 14, 4, unlabeled=12)


@pytest.fixture(scope="module")
def out(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first recipe makes."""
    out = pets.parent / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(pets.parent / "cache"))
        run(patch, "1_pretrain.py", pets, "--encoder", "test_resnet", *TINY, "--out", out)
    return out


def run(monkeypatch: pytest.MonkeyPatch, recipe: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [recipe, *map(str, arguments)])
    runpy.run_path(str(RECIPES / recipe), run_name="__main__")


def test_pretrain_writes_an_encoder_and_its_decoder(out: Path) -> None:
    info = segae.load_encoder(out / "encoder.safetensors").info
    assert (info.architecture, info.image_size, str(info.weights)) == ("test_resnet", 64, "random+pseudo_masks")


def test_finetune_and_evaluate(pets: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model = out / "model.safetensors"
    run(monkeypatch, "2_finetune.py", pets, "--weights", out / "encoder.safetensors", *TINY, "--out", model)
    run(monkeypatch, "3_evaluate.py", pets, "--model", model)
    scores = segae.evaluate(model, pets, out=out / "scores")
    assert f"miou  {scores.miou:.3f}" in capsys.readouterr().out


def test_the_fastai_notebook_is_its_script_and_runs(pets: Path, tmp_path: Path, capsys) -> None:
    script, notebook = (jupytext.read(RECIPES / f"5_fastai.{kind}")["cells"] for kind in ("py", "ipynb"))
    kept = [[(cell["cell_type"], cell["source"]) for cell in cells] for cells in (script, notebook)]
    assert kept[0] == kept[1], "run: jupytext --to ipynb recipes/5_fastai.py"
    tiny = {"folder": pets, "encoder": "test_resnet", "size": 32, "epochs": 1, "batch": 4, "out": tmp_path}
    names: dict[str, object] = {}
    mpl.use("agg")
    for cell in notebook:
        if cell["cell_type"] == "code":
            exec(compile(cell["source"], cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert tiny.keys() <= names.keys()
            names.update(tiny)
    encoder = segae.load_encoder(tmp_path / "fastai-encoder.safetensors").info
    assert (encoder.architecture, encoder.image_size, str(encoder.weights)) == (
        "test_resnet",
        32,
        "random+pseudo_masks:color",
    )
    info = segae.load_segmenter(tmp_path / "fastai.safetensors").info
    assert info.classes == segae.data.PETS_CLASSES
    assert info.encoder.source.startswith("a Learner")


def test_features(pets: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--encoder", out / "encoder.safetensors", "--image-size", "64", "--out", out)
    run(monkeypatch, "6_features.py", pets / "unlabeled", *given)
    assert "nearest to" in capsys.readouterr().out
    assert (out / "maps.png").stat().st_size > 0
    assert all(Path(name).is_file() for name in (out / "to_label.txt").read_text().splitlines())


def test_anomaly(pets: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--encoder", out / "encoder.safetensors", "--image-size", "64", "--out", out)
    run(monkeypatch, "8_anomaly.py", pets / "unlabeled", pets / "images", *given)
    assert "heat map (64, 64)" in capsys.readouterr().out
    assert segae.load(out / "detector.safetensors").info.held_out == 2


def test_discover(pets: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--encoder", out / "encoder.safetensors", "--image-size", "64", "--out", out)
    run(monkeypatch, "9_search_cluster_map.py", pets / "unlabeled", *given)
    assert "images in each cluster" in capsys.readouterr().out
    assert np.loadtxt(out / "map.csv", delimiter=",", skiprows=1).shape == (12, 3)


def test_export(out: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    run(monkeypatch, "7_export.py", "--model", out / "encoder.safetensors", "--out", out / "export")
    found = dict(line.split("  differs by ") for line in capsys.readouterr().out.splitlines() if " differs by " in line)
    assert [name.strip() for name in found] == ["timm", "smp", "onnx"]
    assert all(float(value.split()[0]) < 1e-4 for value in found.values())


def test_classify(pets: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for split, names in (("train", range(8)), ("test", range(8, 12))):
        for place, image in ((place, sorted((pets / "unlabeled").iterdir())[place]) for place in names):
            folder = pets.parent / "classes" / split / ("cat", "dog")[place % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder)
    given = ("--weights", out / "encoder.safetensors", *TINY, "--out", out / "classify")
    run(monkeypatch, "13_classify.py", pets.parent / "classes", *given)
    assert {"accuracy", "accuracy_cat", "accuracy_dog"} <= set(capsys.readouterr().out.split())


def test_multitask(pets: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    draw_nothing(monkeypatch)
    given = ("--weights", out / "encoder.safetensors", "--labels", "4", *TINY, "--out", out / "tasks")
    run(monkeypatch, "14_multitask.py", pets, *given)
    assert [line[:11] for line in capsys.readouterr().out.splitlines() if "joint: " in line or "alone: " in line] == [
        "alone: mIoU",
        "joint: mIoU",
    ]


def test_detect(pets: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = pets / "annotations" / "xmls"
    folder.mkdir()
    box = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (8, 8, 40, 48), strict=True)
    )
    for image in sorted((pets / "images").iterdir())[:6]:
        (folder / f"{image.stem}.xml").write_text(f"<annotation><object><bndbox>{box}</bndbox></object></annotation>")
    run(monkeypatch, "15_detect.py", pets, "--weights", out / "encoder.safetensors", *TINY)
    assert "map_50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "folders", "files"),
    [
        ("10_compress.py", ["unlabeled"], []),
        ("11_generate.py", ["unlabeled"], ["samples.png", "interpolation.png"]),
        ("12_two_domains.py", ["unlabeled", "images"], ["reconstructions.png"]),
        ("16_family.py", ["unlabeled"], ["family.png", "variational/autoencoder.safetensors"]),
    ],
)
def test_codes(recipe: str, folders: list[str], files: list[str], pets: Path, tmp_path: Path, monkeypatch) -> None:
    given = [pets / folder for folder in folders]
    if recipe.startswith("16"):  # six trainings, of which each would draw twice
        draw_nothing(monkeypatch)
    run(monkeypatch, recipe, *given, "--image-size", "32", "--epochs", "1", "--out", tmp_path / "run")
    assert all((tmp_path / "run" / file).stat().st_size > 0 for file in files)


@pytest.mark.slow
def test_benchmark_in_a_process_of_its_own(pets: Path, out: Path, tmp_path: Path) -> None:
    start = out / "encoder.safetensors"
    arguments = ["--weights", start, start, "--labels", "4", "--seeds", "2", "--image-size", "64", "--out", tmp_path]
    command = [sys.executable, RECIPES / "4_benchmark.py", pets, *arguments]
    environment = os.environ | {"PYTHONPATH": str(RECIPES.parent)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "+0.000 (+0.000 to +0.000)" in done.stdout.splitlines()[-1]  # the same weights twice


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.name)
def test_configuration_files_are_settings_of_pretrain(file: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[PretrainConfig] = []

    def keep(kind: type, **settings: object) -> None:
        given.append(kind(**{name: value for name, value in settings.items() if name != "trainer"}))
        raise SystemExit(0)

    monkeypatch.setattr(cli, "make_config", keep)
    with pytest.raises(SystemExit):
        cli.main(["pretrain", str(pets), "--config", str(file), "--seed", "3"])
    assert given[0].epochs > 1
    assert np.isclose(given[0].lr, 1e-3, atol=1.1e-3)
