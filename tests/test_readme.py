"""Published numbers exist as rows, and the README says what the rows say."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

import pytest

from segae.bench import tables
from segae.bench.readme import pages_with_results, render
from segae.bench.tables import protocol_table, results_table
from segae.tasks.rows import COLUMNS, read_compressed
from segae.training.schedule import Protocol

ROOT = Path(__file__).resolve().parent.parent


def test_every_table_is_that_of_the_rows():
    for page, text in pages_with_results(ROOT).items():
        assert page.read_text() == text, f"{page.name} is stale: run `make readme`"


def test_a_page_without_a_place_for_its_table_is_refused():
    with pytest.raises(ValueError, match="no place for the table 'results'"):
        render("a page", "results", "a table")


def test_a_changed_row_makes_the_table_stale():
    with (ROOT / "results" / "pet_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    changed = [{**rows[0], "miou": str(float(rows[0]["miou"]) + 0.1)}, *rows[1:]]
    assert results_table(changed) != results_table(rows)


PATTERNS = ("p[er]*.csv", "bench*.csv", "mask*.csv")
PUBLISHED = [path for pattern in PATTERNS for path in sorted((ROOT / "results").glob(pattern))]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_every_row_has_its_provenance(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        # the first rows are older than these
        younger = {"settings", "pretrain_settings", "epoch_images", "loss", "augment", "label_subset", "precision"}
        younger |= {"micro_batch", "init_source", "energy_wh", "pretrain_energy_wh", "fitted_head"}
        assert set(COLUMNS) - younger <= set(row)
        for name in ("commit", "versions", "date", "device", "seed", "split", "labels", "bn_mode", "seconds"):
            assert row[name] != ""
        assert "+changes" not in row["commit"]
        assert 0 < float(row["miou"]) < 1
    names = (
        "experiment",
        "dataset",
        "encoder",
        "decoder",
        "freeze_epochs",
        "split",
        "init",
        "transfer",
        "seed",
        "labels",
        "epochs",
        "lr",
        "lr_ratio",
        "bn_mode",
        "warmup",
    )
    names += ("recalibrate", "pretrain_epochs", "pretrain_decoder", "pretrain_target")
    names += ("pretrain_settings", "epoch_images")  # which early rows lack
    runs = [tuple(row.get(name, "") for name in names) for row in rows]
    assert len(runs) == len(set(runs)), "a run stands twice in the table"


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "per_image").iterdir()), ids=lambda path: path.name)
def test_single_images_are_those_of_the_rows(path):
    """A paired test over images would count images twice, or scores of a run that is not published."""
    with (ROOT / "results" / path.name.replace(".csv.gz", ".csv")).open() as file:
        rows = {row["settings"]: row for row in csv.DictReader(file)}
    assert len(rows) > 1
    scores: dict[str, dict[str, float]] = {}
    for line in read_compressed(path):
        assert line["image"] not in scores.setdefault(line["settings"], {})
        scores[line["settings"]][line["image"]] = float(line["miou"])
    assert set(scores) == set(rows)
    for dataset in {row["dataset"] for row in rows.values()}:
        images = {frozenset(scores[name]) for name, row in rows.items() if row["dataset"] == dataset}
        assert len(images) == 1, "runs were scored on different images"
    for settings, images in scores.items():
        assert statistics.fmean(images.values()) == pytest.approx(float(rows[settings]["per_image_miou"]), abs=2e-6)


def test_a_sparse_step_costs_at_most_a_quarter_more_than_a_dense_one():
    with (ROOT / "results" / "throughput_cpu.csv").open() as file:
        ratios = {
            row["encoder"]: float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "sparse_over_dense"
        }
    assert {"tf_efficientnet_lite0", "resnet18"} <= set(ratios)
    assert max(ratios.values()) <= 1.25


def test_different_runs_are_not_averaged_as_seeds():
    with (ROOT / "results" / "pet_sample.csv").open() as file:
        row = next(csv.DictReader(file))
    other = {**row, "pretrain_epochs": "400", "miou": "0.9"}
    assert len(results_table([row, other]).splitlines()) == 4
    with pytest.raises(ValueError, match="share a seed"):
        results_table([row, row])


@pytest.mark.parametrize("init", ["random", "imagenet"])
@pytest.mark.parametrize("loop", ["reference_loop", "reference_loop_like_fastai"])
@pytest.mark.parametrize("study", ["pet_sample", "pretraining"])  # the first rows, and those with the settings of today
def test_our_rows_agree_with_the_independent_loop(study, loop, init):
    """Within the spread of seeds: two standard errors of the difference, and never less than 0.01."""

    def scores(name: str, experiment: str) -> list[float]:
        with (ROOT / "results" / name).open() as file:
            rows = [row for row in csv.DictReader(file) if row["init"] == init and row["epochs"] == "3"]
        return [float(row["miou"]) for row in rows if row["experiment"] == experiment and row["labels"] == "300"]

    ours, theirs = scores(f"{study}.csv", study), scores("reference_loop.csv", loop)
    assert len(ours) >= 3
    assert len(theirs) >= 3
    error = (statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs)) ** 0.5
    assert abs(statistics.fmean(ours) - statistics.fmean(theirs)) <= max(0.01, 2 * error)


def test_the_readme_names_the_two_commands_and_the_five_of_the_pipeline():
    text = (ROOT / "README.md").read_text()
    for command in ("make quickstart", "make test", "segae data", "segae pretrain", "segae segment", "segae evaluate"):
        assert command in text
    assert "segae predict" in text


def test_links_in_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_protocol_table_shows_each_search_where_it_stood(monkeypatch):
    monkeypatch.setattr(tables, "PROTOCOLS", {"random": Protocol(lr_ratio=1.0)})
    base = {"init": "random", "transfer": "encoder", "lr_ratio": "1.0", "lr": "0.004", "bn_mode": "strict"}
    base |= {"recalibrate": "0", "warmup": "0.3", "epochs": "3"}
    rows = [
        {**base, "miou": "0.4"},
        {**base, "miou": "0.5"},
        {**base, "lr_ratio": "0.1", "miou": "0.3"},
        {**base, "bn_mode": "eval", "miou": "0.2"},
        {**base, "lr_ratio": "0.1", "bn_mode": "eval", "miou": "0.9"},  # of no stage of the search
        {**base, "epochs": "12", "miou": "0.6"},
    ]
    line = protocol_table(rows).splitlines()[2]
    start = (
        "| random | **1.0: 0.450**, 0.1: 0.300 | **1.0: 0.600** | **0.004: 0.450** | **strict: 0.450**, eval: 0.200 |"
    )
    assert line.startswith(start), line
    assert "0.900" not in line
