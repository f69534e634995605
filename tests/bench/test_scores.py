"""The counts of an arm: the mIoU is a ratio of sums and the mean of the influence values; files are read right."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segae.bench.scores import ArmScores, read_scores
from segae.errors import SegaeError


@st.composite
def arm_scores(draw) -> ArmScores:
    seeds, images, classes = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    union = rng.integers(0, 50, (seeds, images, classes)) * rng.integers(0, 2, (seeds, images, classes))
    union[:, 0, 0] += 1  # something is there
    intersection = (union * rng.random(union.shape)).astype(np.int64)
    names = tuple(f"image {number}" for number in range(images))
    return ArmScores(tuple(range(seeds)), names, tuple("abc"[:classes]), intersection, union)


@given(arm_scores())
def test_miou_and_influence_agree_with_loops(scores):
    for s in range(len(scores.seeds)):
        ious, values = [], np.zeros(len(scores.images))
        present = [k for k in range(len(scores.classes)) if sum(scores.union[s, :, k]) > 0]
        for k in present:
            inter, union = sum(scores.intersection[s, :, k]), sum(scores.union[s, :, k])
            ious.append(inter / union)
            for i in range(len(scores.images)):
                rest = scores.intersection[s, i, k] - ious[-1] * scores.union[s, i, k]
                values[i] += (ious[-1] + len(scores.images) * rest / union) / len(present)
        assert scores.miou()[s] == pytest.approx(np.mean(ious))
        assert scores.influence()[s] == pytest.approx(values)


@given(arm_scores())
def test_the_mean_influence_is_the_miou(scores):
    assert scores.influence().mean(axis=1) == pytest.approx(scores.miou(), abs=1e-12)


def test_influence_is_what_leaving_an_image_out_changes():
    rng = np.random.default_rng(0)
    union = rng.integers(800, 1200, (1, 400, 3))
    intersection = (union * rng.uniform(0.4, 0.9, union.shape)).astype(np.int64)
    names = tuple(map(str, range(400)))
    scores = ArmScores((0,), names, ("a", "b", "c"), intersection, union)
    without = ArmScores((0,), names[1:], scores.classes, intersection[:, 1:], union[:, 1:])
    change = scores.miou()[0] - without.miou()[0]
    assert (scores.influence()[0, 0] - scores.miou()[0]) / 399 == pytest.approx(change, rel=0.01)


def test_a_class_that_is_nowhere_has_no_part():
    union = np.array([[[4, 0], [6, 0]]])
    scores = ArmScores((0,), ("x", "y"), ("pet", "ghost"), union // 2, union)
    assert np.isnan(scores.iou()[0, 1])
    assert scores.miou()[0] == 0.5
    assert scores.influence().tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 0)}, "seed 0 is there twice"),
        ({"images": ("x", "x")}, "image 'x' is there twice"),
        ({"images": ("x",)}, "shapes"),
        ({"intersection": np.full((2, 2, 1), 9)}, "larger than its union"),
        ({"intersection": np.zeros((2, 2, 1), int), "union": np.zeros((2, 2, 1), int)}, "no scored pixel"),
    ],
)
def test_impossible_counts_are_refused(change, message):
    good = {"seeds": (0, 1), "images": ("x", "y"), "classes": ("pet",)}
    good |= {"intersection": np.ones((2, 2, 1), int), "union": np.full((2, 2, 1), 2)}
    ArmScores(**good)
    with pytest.raises(SegaeError, match=message):
        ArmScores(**{**good, **change})


ROWS = [{"settings": "s1", "split": "test", "seed": "10"}, {"settings": "s0", "split": "test", "seed": "9"}]
LINES = [  # (split, settings, image, intersections and unions of pet and of background)
    ("test", "s1", "b", 1, 4, 5, 6),
    ("test", "s1", "a", 2, 4, 6, 8),
    ("val", "s1", "a", 0, 4, 0, 8),
    ("test", "s0", "a", 3, 4, 0, 8),
    ("test", "s0", "b", 4, 4, 1, 6),
    ("test", "other", "c", 1, 1, 1, 1),
]


def write(
    path: Path, lines: list[tuple], header: str = "intersection_pet,union_pet,intersection_sky,union_sky"
) -> Path:
    # nucleus: a class of another data set in the same file
    text = [f"split,settings,image,{header},intersection_nucleus,union_nucleus"]
    text += [",".join(map(str, line)) + ",," for line in lines]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(text) + "\n")
    return path


def test_counts_are_read_by_run_and_image_name(tmp_path):
    scores = read_scores(write(tmp_path / "e.csv.gz", LINES), ROWS)
    assert (scores.seeds, scores.images, scores.classes) == ((9, 10), ("a", "b"), ("pet", "sky"))
    assert scores.intersection.tolist() == [[[3, 0], [4, 1]], [[2, 6], [1, 5]]]
    assert scores.union.tolist() == [[[4, 8], [4, 6]]] * 2


@pytest.mark.parametrize(
    ("lines", "rows", "message"),
    [
        (LINES[1:], ROWS, r"images differ: b \(1 in all\)"),
        (LINES[:3], ROWS, r"no image of the run s0 \(seed 9"),
        (LINES, [ROWS[0], ROWS[0]], "each may be there once"),
        (LINES, [], "0 rows"),
        ([(*LINES[0][:3], "many", 4, 5, 6)], ROWS[:1], "cannot be read as pixel counts"),
    ],
)
def test_holes_in_the_file_are_told(tmp_path, lines, rows, message):
    with pytest.raises(SegaeError, match=message):
        read_scores(write(tmp_path / "e.csv.gz", lines), rows)


def test_a_file_without_counts_is_told(tmp_path):
    with pytest.raises(SegaeError, match="run segae bench"):
        read_scores(tmp_path / "none.csv.gz", ROWS)
    with pytest.raises(SegaeError, match="no pixel counts"):
        read_scores(write(tmp_path / "old.csv.gz", [line[:4] for line in LINES], header="miou"), ROWS)
