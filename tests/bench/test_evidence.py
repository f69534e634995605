"""The figures on what pretraining needs show the means of the rows, the best on top, and leave other grids out."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from segae.bench.evidence import draw_parts, parts_figure, ways_figure
from segae.bench.parts import parts_table
from segae.tasks.rows import COLUMNS, write_rows


def run(init: str, seed: int, miou: float, **more: object) -> dict[str, str]:
    plain = {"experiment": "mine", "dataset": "cells", "split": "test", "encoder": "resnet18", "decoder": "unet"}
    plain |= {"transfer": "encoder", "freeze_epochs": "1", "epochs": "3", "labels": "100", "image_size": "64"}
    row = {"init": init, "seed": seed, "miou": miou, "settings": f"{init}{seed}{more}"} | more
    return {**dict.fromkeys(COLUMNS, ""), **plain, **{name: str(value) for name, value in row.items()}}


def shown(axes: Axes) -> dict[str, str]:
    """What stands behind each line, from the top."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    return dict(reversed(list(zip(labels, (text.get_text() for text in axes.texts), strict=True))))


def test_all_ways_of_a_data_set_are_shown_with_their_minutes() -> None:
    rows = [run("random", seed, 0.4 + 0.01 * seed) for seed in (0, 1)]
    rows += [run("ae:mask", seed, 0.5, pretrain_seconds=600 + 120 * seed) for seed in (0, 1)]
    rows += [run("imagenet", 0, 0.6), run("imagenet", 0, 0.55, freeze_epochs=4, epochs=0)]
    few = [run("random", 0, 0.1, labels=10), run("imagenet", 0, 0.2, labels=10)]
    longer = [run("random", 0, 0.45, epochs=12)]
    other = [run("random", 0, 0.3, dataset="others"), run("imagenet", 0, 0.35, dataset="others")]
    smaller = [run(init, 0, 0.8, encoder="lite") for init in ("random", "imagenet")]
    cells, others = ways_figure([*rows, *few, *longer, *other, *smaller]).axes
    assert shown(cells) == {
        "ImageNet": "0.600",
        "ImageNet with a frozen encoder": "0.550",
        "autoencoder (mask)": "0.500  (11 min of pretraining)",
        "random for 1 + 12 epochs": "0.450",
        "random": "0.405",
    }
    assert list(shown(others)) == ["ImageNet", "random"]
    assert cells.get_title(loc="left") == "cells, all labels"
    seeds, mean = cells.lines[0].get_xdata(), cells.lines[1].get_xdata()
    assert list(seeds) == pytest.approx([0.4, 0.41])
    assert list(mean) == pytest.approx([statistics.fmean(seeds)])


def test_parts_are_those_of_one_budget_with_the_encoder_alone_where_it_is_told(tmp_path: Path) -> None:
    def part(
        variant: str, transfer: str, miou: float, passes: int = 10, init: str = "random", boundary: float = 0.0,
        fitted: int = 0,
    ) -> dict[str, str]:  # fmt: skip
        row = {"encoder": "lite", "variant": variant, "init": init, "transfer": transfer, "seed": 0, "miou": miou}
        row |= {"pretrain_epochs": passes, "pretrain_image_size": 96, "boundary": boundary, "fitted_head": fitted}
        return {name: str(value) for name, value in row.items()}

    both = "encoder+decoder"
    rows = [part("no pretraining", "encoder", 0.44), part("layers", "encoder", 0.48), part("layers", both, 0.5)]
    rows += [
        part("without the cut", "encoder", 0.46),
        part("without the cut", both, 0.47),
        part("layers", both, 0.6, 20),
    ]
    rows += [part("no pretraining", "encoder", 0.69, init="imagenet"), part("layers", both, 0.7, init="imagenet")]
    random, imagenet = parts_figure(rows).axes
    assert shown(random) == {
        "layers": "0.500",
        "layers, encoder alone": "0.480",
        "without the cut": "0.470",
        "no pretraining": "0.440",
    }
    assert list(shown(imagenet)) == ["layers", "no pretraining"]
    assert random.get_title(loc="left") == "lite from random weights, 10 passes"
    write_rows(tmp_path / "rows.csv", rows)
    for name in ("one.svg", "two.svg"):
        draw_parts(tmp_path / "rows.csv", tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "without the cut" in text
    rows += [part("layers", both, 0.55, boundary=0.02, fitted=1), part("layers", both, 0.52, fitted=1)]
    assert list(shown(parts_figure(rows).axes[0]))[:4] == [
        "layers",
        "layers, without the boundary",
        "layers, without the boundary, with a random head",
        "layers, encoder alone",
    ]


def test_the_table_of_parts_pairs_each_with_the_whole_by_seed() -> None:
    def part(
        variant: str, transfer: str, miou: float, seed: int, init: str = "random", passes: int = 10,
        boundary: float | str = 0.0, fitted: int = 0, pretrained: int = 0,
    ) -> dict[str, str]:  # fmt: skip
        row = {"encoder": "lite", "variant": variant, "init": init, "transfer": transfer, "seed": seed, "miou": miou}
        row |= {"pretrain_epochs": passes, "pretrain_image_size": 96, "pretrain_batch_size": 32, "epochs": 3}
        row |= {"boundary": boundary, "fitted_head": fitted, "pretrain_seed": pretrained}
        return {name: str(value) for name, value in row.items()}

    rows = [part("layers", "encoder+decoder", 0.5 + 0.1 * seed, seed) for seed in range(3)]
    rows += [
        part("without the cut", "encoder+decoder", 0.48 + 0.1 * seed + 0.01 * (seed == 2), seed) for seed in range(3)
    ]
    rows += [part("no pretraining", "encoder", 0.4, 0, boundary="")]
    rows += [part("layers", "encoder+decoder", 0.7, 0, init="imagenet", boundary=0.02, fitted=1)]
    rows += [part("layers", "encoder+decoder", 0.45, 0, passes=5)]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in parts_table(rows).splitlines()[2:]]
    imagenet, shorter, whole, cut, bare = lines
    assert shorter[6:] == ["5 at 96 px", "1 + 3", "1", "0.450", ""]
    of_imagenet = ["lite", "imagenet", "layers", "encoder + decoder", "yes", "yes", "10 at 96 px", "1 + 3", "1"]
    assert imagenet == [*of_imagenet, "0.700", ""]
    assert whole[2:] == ["layers", "encoder + decoder", "no", "no", "10 at 96 px", "1 + 3", "3", "0.600 ± 0.100", ""]
    half = 4.302653 * statistics.stdev([-0.02, -0.02, -0.01]) / 3**0.5
    assert cut[-2:] == ["0.583 ± 0.105", f"-0.017 ({-0.05 / 3 - half:+.3f} to {-0.05 / 3 + half:+.3f})"]
    assert bare[2:] == ["no pretraining", "", "", "no", "", "1 + 3", "1", "0.400", ""]
    # the whole without its boundary is compared with the whole; a variant with the whole that has as much of one
    more = {"passes": 60, "fitted": 1}
    rows = [part("layers", "encoder+decoder", 0.60, seed, boundary=0.02, **more) for seed in range(2)]
    rows += [part("layers", "encoder+decoder", 0.57, seed, **more) for seed in range(2)]
    rows += [part("layers", "encoder+decoder", 0.55, seed, passes=60) for seed in range(2)]
    rows += [part("smaller crops", "encoder+decoder", 0.56, seed, **more) for seed in range(2)]
    gains = [line.split("|")[-2].split("(")[0].strip() for line in parts_table(rows).splitlines()[2:]]
    assert gains == ["", "-0.030", "-0.010", "-0.050"]
    rows = [
        part("layers", "encoder+decoder", 0.5 + 0.1 * one, seed, pretrained=one) for one in range(2) for seed in (0, 1)
    ]
    seeds, score = parts_table(rows).splitlines()[2].split("|")[9:11]
    assert (seeds.strip(), score.strip()) == ("4", "0.550 ± 0.058")  # no pretraining hides another
