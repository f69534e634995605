"""The committed tables give the means, intervals and label worths that were published with version 0.1."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pytest

from segae.bench.results import COLUMNS, details_path, pixel_counts, read_details, read_rows
from segae.bench.statistics import PixelCounts, compare, mean_interval, worth_in_labels

RESULTS = Path(__file__).resolve().parent.parent.parent / "results"
EXPECTED = json.loads(Path(__file__).with_name("published_results.json").read_text())
SEGMENTATIONS = [path for path in sorted(RESULTS.glob("*.csv")) if "miou" in path.open().readline()]


@lru_cache
def rows_of(experiment: str) -> pd.DataFrame:
    return read_rows(RESULTS / f"{experiment}.csv").set_index("run_id", drop=False)


@lru_cache
def per_image_of(experiment: str) -> pd.DataFrame:
    table = read_details(RESULTS / f"{experiment}.csv", experiment, "per_image")
    assert table is not None
    return table


def counts_of(experiment: str, runs: list[str]) -> PixelCounts:
    return pixel_counts(per_image_of(experiment), rows_of(experiment).loc[runs])


def close(value: float | None):
    return None if value is None else pytest.approx(value, rel=1e-5, abs=2e-7)


def test_means_and_intervals_are_the_published_ones():
    for one in EXPECTED["means"]:
        scores = rows_of(one["experiment"]).loc[one["runs"], "miou"]
        counted = one["experiment"] != "pet_sample"  # those rows have no pixel counts
        found = mean_interval(counts_of(one["experiment"], one["runs"]) if counted else scores)
        assert (scores.mean(), scores.std()) == (close(one["mean"]), close(one["sd"]))
        assert (found.estimate, found.low, found.high) == (
            close(one["estimate"]),
            close(one["low"]),
            close(one["high"]),
        )
        assert found.estimate == pytest.approx(scores.mean(), abs=1e-6)


def test_gains_tests_and_effect_sizes_are_the_published_ones():
    for one in EXPECTED["gains"]:
        found = compare(*(counts_of(one["experiment"], one[part]) for part in ("runs", "reference")))
        numbers = (found.difference.estimate, found.difference.low, found.difference.high, found.p, found.effect_size)
        assert numbers == tuple(close(one[name]) for name in ("estimate", "low", "high", "p", "effect_size"))
        assert [found.bootstrap.low, found.bootstrap.high] == [close(end) for end in one["bootstrap"]]


def test_worth_in_labels_is_the_published_one():
    for one in EXPECTED["worth"][::5]:  # all of them take four seconds
        curve, reference = (
            {int(labels): counts_of(one["experiment"], runs) for labels, runs in one[part].items()}
            for part in ("curve", "reference")
        )
        for found, (budget, labels, low, high, note) in zip(
            worth_in_labels(curve, reference), one["worth"], strict=True
        ):
            assert (found.budget, found.note) == (budget, note)
            assert (found.labels, found.low, found.high) == (close(labels), close(low), close(high))


@pytest.mark.parametrize("path", SEGMENTATIONS, ids=lambda path: path.stem)
def test_every_segmentation_table_has_the_documented_columns(path):
    rows = read_rows(path)
    assert set(COLUMNS) <= set(pd.read_csv(path, nrows=0).columns)
    assert rows["run_id"].is_unique
    assert set(rows["method_family"]) <= {"", "autoencoding", "pseudo_masks"}
    assert ((rows["method"] == "") == (rows["method_family"] == "")).all()
    assert set(rows["weights"]) <= {"random", "imagenet"}
    assert all(isinstance(json.loads(text), dict) for text in rows["method_args"] if text)
    assert (rows["steps"] > 0).all()
    masks = rows[rows["method"] == "pseudo_masks"]
    assert {json.loads(text)["source"] for text in masks["method_args"]} <= {"color", "features", "brightness"}


def test_tables_beside_the_rows_are_of_their_runs():
    runs = set(rows_of("bench")["run_id"])
    for kind in ("per_image", "confusion", "curves"):
        table = read_details(RESULTS / "bench.csv", "bench", kind)
        assert table is not None
        assert set(table["run_id"]) == runs
    assert details_path(RESULTS / "bench.csv", "bench", "near_duplicates").exists()


def test_pixel_counts_confusion_and_scores_of_a_run_agree():
    pets = rows_of("bench").query("dataset == 'oxford-iiit-pet-sample'").iloc[0]
    table = read_details(RESULTS / "bench.csv", "bench", "confusion")
    assert table is not None
    counts = table[table["run_id"] == pets["run_id"]].pivot_table(index="truth", columns="prediction", values="pixels")
    diagonal = {name: counts.loc[name, name] for name in counts.index}
    iou = {name: diagonal[name] / (counts.loc[name].sum() + counts[name].sum() - diagonal[name]) for name in diagonal}
    assert sum(iou.values()) / 3 == pytest.approx(pets["miou"], abs=1e-6)
    assert pets["miou"] < pets["miou_without_border"] < 1
