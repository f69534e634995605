"""The ablation runs as it is typed, writes its rows, and does not compute them twice."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

from segae.cli import main

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "layers_ablation.py"


def test_variants_are_pretrained_and_fine_tuned_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "pets", tmp_path / "rows.csv"
    main(["data", "drawn", "--root", str(root), "--train", "20", "--test", "2", "--unlabelled", "4", "--size", "64"])
    small = ["--encoder", "test_resnet", "--image-size", "32", "--pretrain-image-size", "32", "--epoch-images", "16"]
    small += ["--epochs", "1", "--pretrain-epochs", "1", "--seeds", "0"]
    words = ["--data", str(root), "--unlabelled", str(root / "unlabelled"), *small, "--rows", str(out), "--write"]
    script = runpy.run_path(str(SCRIPT))
    script["main"]([*words, "--variants", "no pretraining", "layers"])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["transfer"]) for row in rows] == [
        ("no pretraining", "encoder"),
        ("layers", "encoder"),
        ("layers", "encoder+decoder"),
    ]
    assert all(0 < float(row["miou"]) < 1 and row["init"] == "random" and row["commit"] for row in rows)
    assert len({row["miou"] for row in rows}) == 3
    capsys.readouterr()
    script["main"]([*words, "--variants", "layers"])
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        script["main"]([*words, "--variants", "colour"])


def test_each_variant_is_an_objective_of_its_own() -> None:
    variants = runpy.run_path(str(SCRIPT))["VARIANTS"]
    made = [(make().corruption, make().reconstruction) for make in variants.values() if make is not None]
    finds = [getattr(corruption.find, "_likely", corruption.find) for corruption, _ in made]
    names = [getattr(find, "__name__", type(find).__name__) for find in finds]
    assert len({(str(one), str(two), name) for (one, two), name in zip(made, names, strict=True)}) == len(made)
