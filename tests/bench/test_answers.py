"""The answer in one table and one figure: means of the rows, differences as the report has them, baselines left out."""

from __future__ import annotations

import csv
import gzip
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from segae.bench.answers import answer_figure, answer_table, draw_answer
from segae.bench.report_arms import sections_of
from segae.bench.report_numbers import numbers_of
from segae.errors import SegaeError
from segae.tasks.rows import COLUMNS, read_rows, write_rows

SKILL = {"random": 0.4, "imagenet": 0.7, "ae:mask": 0.5, "imagenet+ae:mask": 0.72}
IMAGES, PIXELS = 12, 10_000


def write(folder: Path, runs: Sequence[Mapping[str, object]]) -> Path:
    """Rows and counts of single images of a study called `mine`; what a run does not say is the same for all."""
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 0.05, IMAGES)
    rows, lines = [], []
    for number, run in enumerate(runs):
        row: dict[str, object] = {
            **dict.fromkeys(COLUMNS, ""),
            "experiment": "mine",
            "dataset": "cells",
            "split": "test",
        }
        row |= {"encoder": "resnet18", "decoder": "unet", "transfer": "encoder", "image_size": 64, "labels": 100}
        row |= {"freeze_epochs": 1, "epochs": 3, "epoch_images": "", "settings": f"{number:010d}", "seed": 0} | run
        if row["labels"] != 100:
            row["epoch_images"] = 100
        union = np.full(IMAGES, PIXELS)
        quality = SKILL[str(row["init"])] + 0.1 * np.log10(int(str(row["labels"])) / 100) + rng.normal(0, 0.01)
        inter = (union * np.clip(quality + hard + rng.normal(0, 0.02, IMAGES), 0, 1)).astype(int)
        rows.append(row | {"miou": inter.sum() / union.sum(), "iou_cell": inter.sum() / union.sum()})
        for image in range(IMAGES):
            counts = {"intersection_cell": inter[image], "union_cell": union[image]}
            lines.append({"settings": row["settings"], "split": "test", "image": f"{image:02d}", **counts})
    write_rows(folder / "rows.csv", rows)
    (folder / "per_image").mkdir()
    with gzip.open(folder / "per_image" / "mine.csv.gz", "wt", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return folder / "rows.csv"


def runs(**changes: object) -> list[dict[str, object]]:
    return [{"init": init, "seed": seed, **changes} for init in SKILL for seed in (0, 1, 2)]


def cells(page: str) -> list[dict[str, str]]:
    """The lines of all tables."""
    found: list[dict[str, str]] = []
    for part in page.split("**\n\n|")[1:]:
        table = f"|{part}".partition("\n\n")[0]
        heads, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        found += [dict(zip(heads, line, strict=True)) for line in lines]
    return found


def test_each_line_is_a_budget_with_the_starts_side_by_side(tmp_path):
    rows_csv = write(tmp_path, [*runs(labels=10), *runs()])
    few, all_labels = cells(answer_table(rows_csv))
    assert (few["labels"], all_labels["labels"]) == ("10", "100")
    assert (few["encoder"], few["epochs"]) == ("`resnet18`", "1 + 3")
    mine = [float(row["miou"]) for row in read_rows(rows_csv) if row["init"] == "ae:mask" and row["labels"] == "10"]
    score, gain = few["autoencoder (mask)"].split("<br>")
    assert score == f"{statistics.fmean(mine):.3f} ± {statistics.stdev(mine):.3f}"
    assert gain.startswith("**+0.")
    assert "<br>" not in few["random"] + few["ImageNet"]


def test_epochs_of_more_images_than_there_are_labels_say_so(tmp_path):
    long = [run | {"epoch_images": 3680} for run in runs()]
    plain, drawn = cells(answer_table(write(tmp_path, [*runs(), *long])))
    assert (plain["epochs"], drawn["epochs"]) == ("1 + 3", "1 + 3, 3,680 images each")


def test_data_sets_have_tables_of_their_own_with_the_starts_they_have(tmp_path):
    few = [run for run in runs(dataset="others") if run["init"] != "imagenet+ae:mask"]
    first, second = answer_table(write(tmp_path, [*runs(), *few])).split("\n\n**others**\n\n")
    assert first.startswith("**cells**\n\n| encoder |")
    assert "ImageNet + autoencoder (mask)" in first
    assert "ImageNet + autoencoder (mask)" not in second


def test_differences_are_those_of_the_report_to_what_the_pretraining_began_with(tmp_path):
    rows_csv = write(tmp_path, [*runs(labels=10), *runs()])
    (section,) = sections_of(read_rows(rows_csv))
    numbers = numbers_of(section, tmp_path / "per_image" / "mine.csv.gz")
    for line in cells(answer_table(rows_csv)):
        found = {one.arm.init: one.against for one in numbers.at(int(line["labels"]))}
        heads = {
            ("ae:mask", "random"): "autoencoder (mask)",
            ("imagenet+ae:mask", "imagenet"): "ImageNet + autoencoder (mask)",
        }
        for (init, reference), head in heads.items():
            one = found[init][reference].difference
            said = f"{one.estimate:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
            assert line[head].endswith(f"<br>**{said}**" if one.low > 0 or one.high < 0 else f"<br>{said}")


def test_baselines_and_a_single_start_are_left_to_the_report(tmp_path):
    frozen = [{"init": "random", "seed": seed, "freeze_epochs": 4, "epochs": 0} for seed in (0, 1, 2)]
    alone = [{"init": "imagenet", "seed": seed, "dataset": "others"} for seed in (0, 1)]
    plain, more = write(_folder(tmp_path / "a"), runs()), write(_folder(tmp_path / "b"), [*runs(), *frozen, *alone])
    assert answer_table(plain) == answer_table(more)


def test_a_grid_that_is_not_finished_pairs_the_seeds_that_both_have(tmp_path):
    rows_csv = write(tmp_path, [run for run in runs() if (run["init"], run["seed"]) != ("random", 1)])
    (line,) = cells(answer_table(rows_csv))
    scores = {(row["init"], row["seed"]): float(row["miou"]) for row in read_rows(rows_csv)}
    gain = statistics.fmean(scores["ae:mask", seed] - scores["random", seed] for seed in ("0", "2"))
    assert line["autoencoder (mask)"].partition("<br>")[2].strip("*").startswith(f"{gain:+.3f} (")


def test_a_run_without_counts_is_told_and_not_left_out(tmp_path):
    rows_csv = write(tmp_path, runs())
    write_rows(rows_csv, [{**row, "settings": "ffff"} if row["seed"] == "2" else row for row in read_rows(rows_csv)])
    with pytest.raises(SegaeError, match="no image of the run ffff"):
        answer_table(rows_csv)


def test_the_figure_has_a_column_for_each_data_set_and_shows_the_rows(tmp_path):
    other = {"dataset": "others", "encoder": "resnet34"}
    rows_csv = write(tmp_path, [*runs(labels=10), *runs(), *runs(labels=10, **other), *runs(**other), *runs(epochs=12)])
    figure = answer_figure(rows_csv)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["cells", "others", "", ""]  # 1 + 12 epochs have one budget: no curve
    above, below = figure.axes[0], figure.axes[2]
    lines = {container.get_label(): container.lines[0].get_ydata() for container in above.containers}
    mine = [
        row for row in read_rows(rows_csv) if (row["dataset"], row["init"], row["epochs"]) == ("cells", "random", "3")
    ]
    means = [statistics.fmean(float(row["miou"]) for row in mine if row["labels"] == one) for one in ("10", "100")]
    assert list(lines["random"]) == pytest.approx(means)
    assert [container.get_label() for container in below.containers] == [
        "autoencoder (mask)",
        "ImageNet + autoencoder (mask)",
    ]


def test_the_file_names_everything_and_is_the_same_each_time(tmp_path):
    rows_csv = write(tmp_path, [*runs(labels=10), *runs()])
    for name in ("one.svg", "two.svg"):
        draw_answer(rows_csv, tmp_path / "figures" / name)
    text = (tmp_path / "figures" / "one.svg").read_text()
    assert text == (tmp_path / "figures" / "two.svg").read_text()
    for words in (
        "cells",
        "labelled training images",
        "mean IoU",
        "above what it began with",
        "ImageNet + autoencoder (mask)",
    ):
        assert words in text


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
