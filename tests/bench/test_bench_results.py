"""Result tables: faults are located by file, row and column; merges are atomic; details are read by run."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from segae.bench.results import (
    COLUMNS,
    collect_details,
    details_path,
    merge_rows,
    pixel_counts,
    read_details,
    read_rows,
    run_id,
    write_table,
)
from segae.errors import DataError, SegaeError

ROW = {
    **{"experiment": "bench", "dataset": "pets", "labels": 30, "encoder": "test_resnet", "decoder": "unet"},
    **{"weights": "random", "epochs": 3, "seed": 0, "miou": 0.4, "run_id": "1234567890", "iou_NA": 0.25},
}


def rows_of(count: int = 2) -> list[dict]:
    return [ROW | {"seed": seed, "run_id": f"12345e{seed}"} for seed in range(count)]


def test_rows_come_back_typed_with_defaults_for_absent_columns(tmp_path):
    merge_rows(tmp_path / "b.csv", [ROW | {"lr": 1e-7, "method_args": {"b": 1, "a": None}, "commit": None}])
    (row,) = read_rows(tmp_path / "b.csv").to_dict("records")
    assert (row["run_id"], row["labels"], row["miou"], row["iou_NA"], row["lr"]) == ("1234567890", 30, 0.4, 0.25, 1e-7)
    assert (row["split"], row["transfer"], row["finetuning"], row["method"]) == ("test", "encoder", "supervised", "")
    assert json.loads(row["method_args"]) == {"a": None, "b": 1}
    assert set(COLUMNS) <= set(row)
    assert np.isnan(row["boundary_iou"])


def test_rows_from_before_augmentations_had_names_get_them(tmp_path):
    given = {"1": "default", "0": "none", "": "default", "strong": "strong", '{"transform": {}}': '{"transform": {}}'}
    merge_rows(tmp_path / "b.csv", [ROW | {"run_id": f"{place}", "augment": one} for place, one in enumerate(given)])
    assert read_rows(tmp_path / "b.csv")["augment"].tolist() == list(given.values())


@pytest.mark.parametrize(
    ("column", "value", "condition"),
    [
        ("miou", "high", "finite number"),
        ("miou", "", "empty"),
        ("miou", "inf", "finite number"),
        ("miou", "1.5", r"\[0, 1\]"),
        ("iou_NA", "-0.1", r"\[0, 1\]"),
        ("labels", "", "integer"),
        ("labels", "30.5", "integer"),
        ("seed", "-1", "integer"),
        ("lr", "fast", "finite number"),
        ("run_id", "", "empty"),
    ],
)
def test_a_bad_cell_is_named_by_file_row_and_column(tmp_path, column, value, condition):
    write_table(tmp_path / "b.csv", [ROW, ROW | {column: value}])
    with pytest.raises(DataError, match=rf"b\.csv, row 3, column {column}.*{condition}"):
        read_rows(tmp_path / "b.csv")


def test_files_that_are_no_rows_are_refused(tmp_path):
    path = tmp_path / "b.csv"
    for content, words in ((b"", "lacks the columns"), (b"a,b\n1,2\n", "encoder"), (b"\xff\xfe\x00", r"b\.csv")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_rows(path)
    path.write_text(",".join(ROW) + "\n")
    with pytest.raises(DataError, match="no rows"):
        read_rows(path)
    path.write_text("a,b\n1,2\n3,4,5\n")
    with pytest.raises(DataError, match=r"b\.csv .*line 3"):
        read_rows(path)
    with pytest.raises(DataError, match=r"none\.csv"):
        read_rows(tmp_path / "none.csv")


def test_one_study_is_selected(tmp_path):
    write_table(tmp_path / "b.csv", [ROW, ROW | {"experiment": "other"}])
    assert list(read_rows(tmp_path / "b.csv", experiment="other")["experiment"]) == ["other"]
    with pytest.raises(DataError, match=r"experiment .*bench, other.*'none'"):
        read_rows(tmp_path / "b.csv", experiment="none")


def test_merging_replaces_rows_of_the_same_run_and_keeps_the_others(tmp_path):
    path = tmp_path / "deep" / "b.csv"
    merge_rows(path, rows_of(3))
    merge_rows(path, [rows_of(2)[1] | {"miou": 0.9, "iou_new": 0.1}])
    table = read_rows(path).set_index("seed")
    assert table["miou"].to_dict() == {0: 0.4, 1: 0.9, 2: 0.4}
    first = path.read_bytes()
    merge_rows(path, [])
    assert path.read_bytes() == first  # what is there is never formatted again
    merge_rows(path, [rows_of(1)[0] | {"experiment": "other"}])
    assert len(read_rows(path)) == 4
    assert [one.name for one in path.parent.iterdir()] == ["b.csv"]


def test_writers_at_the_same_time_lose_no_row(tmp_path):
    path = tmp_path / "b.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: merge_rows(path, [row]), rows_of(24)))
    assert sorted(read_rows(path)["seed"]) == list(range(24))


def test_a_failed_write_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "b.csv"
    merge_rows(path, rows_of())
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SegaeError, match=r"b\.csv"):
        merge_rows(path, rows_of(5))
    assert path.read_bytes() == before


def test_equal_settings_have_equal_run_ids_and_others_do_not():
    config = {"lr": 0.1, "trainer": {"seed": 0, "device": "cpu"}, "data": Path("pets")}
    assert run_id(config) == run_id(dict(reversed(config.items())))
    assert len({run_id(config | change) for change in ({}, {"lr": 0.2}, {"new": None}, {"data": "pet"})}) == 4
    assert len(run_id(config)) == 16


LINES = [  # run, image, intersections and unions of pet and of sky; nucleus is a class of another data set
    ("12345e1", "b", 1, 4, 5, 6),
    ("12345e1", "a", 2, 4, 6, 8),
    ("12345e0", "a", 3, 4, 0, 8),
    ("12345e0", "b", 4, 4, 1, 6),
    ("other", "c", 1, 1, 1, 1),
]


def per_image(tmp_path: Path, lines: list[tuple]):
    header = ("run_id", "image", "intersection_pet", "union_pet", "intersection_sky", "union_sky")
    rows = [dict(zip(header, line, strict=True)) | {"split": "test"} for line in lines]
    rows += [{"run_id": "cells", "image": "n", "intersection_nucleus": 1, "union_nucleus": 2, "split": "test"}]
    rows += [row | {"split": "val", "intersection_pet": 0} for row in rows[:4]]
    merge_rows(details_path(tmp_path / "b.csv", "bench", "per_image"), rows, key=("run_id",))
    return read_details(tmp_path / "b.csv", "bench", "per_image")


def test_pixel_counts_are_read_by_run_split_and_image(tmp_path):
    merge_rows(tmp_path / "b.csv", reversed(rows_of()))
    counts = pixel_counts(per_image(tmp_path, LINES), read_rows(tmp_path / "b.csv"))
    assert (counts.seeds, counts.images, counts.classes) == ((0, 1), ("a", "b"), ("pet", "sky"))
    assert counts.intersection.tolist() == [[[3, 0], [4, 1]], [[2, 6], [1, 5]]]
    assert counts.union.tolist() == [[[4, 8], [4, 6]]] * 2


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (LINES[1:], "images"),
        (LINES[:2], "none of run 12345e0"),
        ([*LINES[:3], ("12345e0", "b", 4, 4, "", "")], "none of run 12345e0"),
    ],
)
def test_holes_in_the_pixel_counts_are_named(tmp_path, lines, words):
    merge_rows(tmp_path / "b.csv", rows_of())
    with pytest.raises(DataError, match=words):
        pixel_counts(per_image(tmp_path, lines), read_rows(tmp_path / "b.csv"))


def test_details_that_cannot_be_read_are_named(tmp_path):
    path = details_path(tmp_path / "b.csv", "bench", "curves")
    assert read_details(tmp_path / "b.csv", "bench", "curves") is None
    write_table(path, [{"run_id": "a", "epoch": 1, "train_loss": "low"}])
    with pytest.raises(DataError, match=r"bench\.csv\.gz, row 2, column train_loss"):
        read_details(tmp_path / "b.csv", "bench", "curves")
    write_table(path, [{"run": "a"}])
    with pytest.raises(DataError, match="run_id"):
        read_details(tmp_path / "b.csv", "bench", "curves")
    path.write_bytes(gzip.compress(b"run_id,epoch\na,1\n" * 999)[:-20])
    with pytest.raises(DataError, match=r"bench\.csv\.gz"):
        read_details(tmp_path / "b.csv", "bench", "curves")


def test_details_of_a_run_folder_are_collected(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "log.csv").write_text("epoch,phase,train_loss,seconds\n1,frozen,0.9,3\n2,full,0.7,3\n")
    (tmp_path / "test" / "per_image.csv").write_text("name,miou,intersection_a,union_a\nx,0.5,1,2\n")
    (tmp_path / "test" / "metrics.json").write_text('{"classes": ["a", "b"], "confusion": [[3, 1], [0, 4]]}')
    key = {"run_id": "r", "seed": 2, "dataset": "pets", "split": "test"}
    found = collect_details(tmp_path, key)
    (line,) = found["per_image"]
    assert line["image"] == "x"
    assert [line[name] for name in ("run_id", "seed", "split", "union_a")] == ["r", 2, "test", "2"]
    assert [line["pixels"] for line in found["confusion"]] == [3, 1, 0, 4]
    assert [(line["run_id"], line["epoch"], line["miou"]) for line in found["curves"]] == [
        ("r", "1", ""),
        ("r", "2", ""),
    ]
    assert collect_details(tmp_path / "none", key) == {"per_image": [], "confusion": [], "curves": []}
