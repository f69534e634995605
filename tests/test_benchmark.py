"""Scripts behind published numbers run; what they measure is not tested by the clock."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_of_a_decoder_without_skips_only_the_deepest_level_counts(tmp_path):
    import segae
    from segae.cli import main

    segae.draw_pets(tmp_path / "pets", train=16, test=4, size=64, unlabelled=4, progress=False)
    tiny = ["--encoder", "test_resnet", "--image-size", "64", "--batch-size", "4", "--epochs", "4", "--device", "cpu"]
    where = ["--data", str(tmp_path / "pets"), "--out", str(tmp_path / "run"), "--val-fraction", "0.3"]
    main(["pretrain", "--objective", "denoise", "--lr", "0.005", *where, *tiny])
    script = ROOT / "benchmarks" / "level_use.py"
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path / "run"], capture_output=True, text=True, check=True
    ).stdout
    ratios = dict(re.findall(r"(\d+): ([\d.]+)", shown))
    assert float(ratios.pop("32")) > 1.02
    assert set(ratios.values()) == {"1.000"}


def test_the_recipes_tell_the_whole_story(tmp_path):
    """Drawn pets through the three recipes, as a reader would run them; smaller by editing their settings."""
    import segae

    segae.draw_pets(tmp_path / "pets", train=12, test=4, size=64, unlabelled=4, progress=False)
    recipes = {}
    for path in sorted((ROOT / "recipes").glob("[123]_*.py")):
        text = re.sub(r"tf_efficientnet_lite0", "test_resnet", path.read_text())
        text = re.sub(r'"test_resnet", 96, 5, 32, 0', '"test_resnet", 64, 1, 8, 0', text)
        text = re.sub(r'"test_resnet", 96, 16, 0', '"test_resnet", 64, 4, 0', text)
        (tmp_path / path.name).write_text(text)
        recipes[path.name[0]] = tmp_path / path.name
    commands = {"1": ["pets"], "2": ["pets", "encoder.safetensors"], "3": ["pets", "model.safetensors"]}
    shown = ""
    for number, arguments in commands.items():
        done = subprocess.run(
            [sys.executable, "-W", "ignore", recipes[number], *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        shown = done.stdout
    assert "4 test images" in shown
    assert 0 <= float(re.search(r"miou\s+([\d.]+)", shown).group(1)) <= 1


def test_the_benchmark_recipe_ends_with_rows_pages_and_figures(tmp_path):
    import segae
    from segae.tasks.rows import read_rows

    segae.draw_pets(tmp_path / "pets", train=8, test=4, size=64, unlabelled=2, progress=False)
    text = (ROOT / "recipes" / "4_benchmark.py").read_text()
    tiny = ["--encoders", "test_resnet", "--image-size", "64", "--batch-size", "4", "--schedules", "0+1"]
    tiny += ["--threads", "1", "--no-estimate"]
    smaller = {
        'arms = ["random", "imagenet", "ae:layers+decoder", "imagenet@frozen"]': 'arms = ["random", "random@frozen"]',
        'seeds = ["0", "1"]': 'seeds = ["0"]',
        '"--seeds", *seeds]': f'"--seeds", *seeds, *{tiny}]',
    }
    for old, new in smaller.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "recipe.py").write_text(text)
    command = [sys.executable, "-W", "ignore", "recipe.py", "pets"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "benchmark-recipe"
    assert sorted(row["labels"] for row in read_rows(out / "bench.csv")) == ["2", "2", "8", "8"]
    assert 'class="tiles"' in (out / "again.html").read_text(), "the page that is made again has pictures"
    assert {path.suffix for path in (out / "figures").iterdir()} == {".svg", ".pdf"}


def test_recipes_refuse_to_be_imported():
    code = "import runpy; runpy.run_path('recipes/1_pretrain.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "recipes are run or copied" in done.stderr


def test_the_interval_rules_are_compared_as_the_documentation_says():
    shown = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "interval_rules.py", "--draws", "20000"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    three = next(line for line in shown.splitlines() if line.startswith("3 seeds, level 5 %"))
    highest = {
        name: float(rate) for name, rate in re.findall(r"(Satterthwaite|Cochran|tails) [\d.]+ to ([\d.]+)", three)
    }
    # per cent; the standard error of a rate is 0.15
    assert highest["Satterthwaite"] > 7
    assert 4.5 < highest["Cochran"] < 5.8
    assert 4.5 < highest["tails"] < 6.0
