"""The ablation runs as it is typed, writes its rows, and does not compute them twice."""

from __future__ import annotations

import runpy
from pathlib import Path
from unittest.mock import patch

import pytest
from torch import Tensor

from segae.cli import main
from segae.tasks.rows import read_rows

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "layers_ablation.py"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A small ablation of drawn pets, rows to rows.csv."""
    root = tmp_path / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "20", "--test", "2", "--unlabelled", "4", "--size", "64"])
    small = ["--encoder", "test_resnet", "--image-size", "32", "--pretrain-image-size", "32", "--epoch-images", "16"]
    small += ["--epochs", "1", "--pretrain-epochs", "1", "--seeds", "0"]
    images = ["--data", str(root), "--unlabelled", str(root / "unlabelled")]
    return [*images, *small, "--rows", str(tmp_path / "rows.csv"), "--write"]


def test_variants_are_pretrained_and_fine_tuned_once(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["main"]([*words, "--variants", "no pretraining", "layers"])
    rows = read_rows(tmp_path / "rows.csv")
    assert [(row["variant"], row["transfer"]) for row in rows] == [
        ("no pretraining", "encoder"),
        ("layers", "encoder"),
        ("layers", "encoder+decoder"),
    ]
    assert all(0 < float(row["miou"]) < 1 and row["init"] == "random" and row["commit"] for row in rows)
    assert len({row["miou"] for row in rows}) == 3
    assert [row["fitted_head"] for row in rows] == ["0", "0", "1"]  # the protocols'
    assert [row["boundary"] for row in rows] == ["", "0.020833", "0.020833"]
    capsys.readouterr()
    script["main"]([*words, "--variants", "layers"])
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        script["main"]([*words, "--variants", "colour"])


def test_the_second_round_asks_for_what_the_first_one_found(words: list[str], tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    asked: list[Tensor] = []
    whole = script["Answer"].__call__
    with patch.object(
        script["Answer"], "__call__", lambda self, images: asked.append(whole(self, images)) or asked[-1]
    ):
        script["main"]([*words, "--variants", "second round", "--transfers", "encoder+decoder", "--boundary", "0"])
    rows = read_rows(tmp_path / "rows.csv")
    assert [(row["variant"], row["boundary"]) for row in rows] == [("second round", "0.0")]
    assert asked
    assert all(said.min() >= 0 and said.max() <= 1 and said.std() > 0 for said in asked)


def test_no_pass_is_lost_in_longer_epochs() -> None:
    script = runpy.run_path(str(SCRIPT))
    turns = {passes: script["turns_of"](passes) for passes in range(1, 400)}
    assert all(passes % found == 0 for passes, found in turns.items())
    assert all(passes // found >= min(passes, script["EPOCHS"]) for passes, found in turns.items())
    assert (turns[10], turns[45], turns[50], turns[200]) == (1, 1, 2, 10)


def test_another_pretraining_is_no_row_that_is_there(words: list[str], tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    for seed in ("0", "1", "1"):
        script["main"]([*words, "--variants", "layers", "--transfers", "encoder", "--pretrain-seed", seed])
    rows = read_rows(tmp_path / "rows.csv")
    assert [row["pretrain_seed"] for row in rows] == ["0", "1"]
    assert rows[0]["miou"] != rows[1]["miou"]


def test_each_variant_is_an_objective_of_its_own() -> None:
    script = runpy.run_path(str(SCRIPT))
    variants = {name: make for name, make in script["VARIANTS"].items() if name != script["SECOND"]}
    made = [(make().corruption, make().reconstruction) for make in variants.values() if make is not None]
    finds = [getattr(corruption.find, "_likely", corruption.find) for corruption, _ in made]
    names = [getattr(find, "__name__", type(find).__name__) for find in finds]
    assert len({(str(one), str(two), name) for (one, two), name in zip(made, names, strict=True)}) == len(made)
