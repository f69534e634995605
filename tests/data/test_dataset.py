"""Seeded choices: nested, disjoint, and blind to the order of the files."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segae.data.dataset import Pair, choose_by_hash, names_apart, split_hash, split_off_validation, take_labels
from segae.errors import SegaeError

names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=40, unique=True)


def make(names: list[str]) -> list[Pair]:
    return [Pair(name, Path(name), Path(name)) for name in names]


@given(names=names, seed=st.integers(0, 5), data=st.data())
def test_budgets_are_nested_and_blind_to_order(names: list[str], seed: int, data: st.DataObject) -> None:
    small = data.draw(st.integers(1, len(names)))
    large = data.draw(st.integers(small, len(names)))
    shuffled = random.Random(1).sample(names, len(names))
    chosen = take_labels(make(names), small, seed)
    assert chosen == take_labels(make(names), large, seed)[:small]
    assert chosen == take_labels(make(shuffled), small, seed)
    assert len(set(chosen)) == small
    assert set(take_labels(make(names), None, seed)) == set(make(names))


@given(names=names, seed=st.integers(0, 5), low=st.floats(0.01, 0.98), high=st.floats(0.01, 0.98))
def test_validation_is_disjoint_nested_and_blind_to_order(names: list[str], seed: int, low: float, high: float) -> None:
    pairs = make(names)
    train, validation = split_off_validation(pairs, low, seed)
    assert train
    assert validation
    assert set(train) | set(validation) == set(pairs)
    assert not set(train) & set(validation)
    shuffled = random.Random(2).sample(pairs, len(pairs))
    assert set(split_off_validation(shuffled, low, seed)[1]) == set(validation)
    wider = split_off_validation(pairs, max(low, high), seed)[1]
    assert set(split_off_validation(pairs, min(low, high), seed)[1]) <= set(wider)


def test_fraction_zero_sets_nothing_aside() -> None:
    pairs = make(["a"])
    assert split_off_validation(pairs, 0, 0) == (tuple(pairs), ())


def test_an_image_stays_on_its_side_when_others_come() -> None:
    pairs = make([str(number) for number in range(1000)])
    few = split_off_validation(pairs[:500], 0.2, 3)[1]
    all_ = split_off_validation(pairs, 0.2, 3)[1]
    assert set(few) == set(all_) & set(pairs[:500])
    assert 150 < len(all_) < 250


def test_seeds_differ_and_purposes_are_independent() -> None:
    pairs = make([str(number) for number in range(1000)])
    labels = set(take_labels(pairs, 200, 0))
    assert len(labels & set(take_labels(pairs, 200, 1))) < 80
    assert len(labels & set(split_off_validation(pairs, 0.2, 0)[1])) < 80


def test_a_choice_is_the_same_on_every_machine() -> None:
    pairs = make([f"image_{number}" for number in range(8)])
    assert [pair.name for pair in take_labels(pairs, 3, 0)] == ["image_6", "image_7", "image_5"]


@given(names=names)
def test_split_hash_depends_on_the_names_only(names: list[str]) -> None:
    fingerprint = split_hash(names)
    assert fingerprint == split_hash(iter(reversed(names)))
    assert fingerprint != split_hash(names[1:])
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0


@pytest.mark.parametrize("count", [0, -1, 4])
def test_impossible_budgets_are_refused(count: int) -> None:
    with pytest.raises(SegaeError, match=f"{count} labelled images.*training split has 3"):
        take_labels(make(["a", "b", "c"]), count, 0)


def test_impossible_fractions_are_refused() -> None:
    for fraction in (-0.1, 1.0, 2.0):
        with pytest.raises(SegaeError, match="fraction"):
            split_off_validation(make(["a", "b"]), fraction, 0)
    with pytest.raises(SegaeError, match="two or more"):
        split_off_validation(make(["a"]), 0.5, 0)


@pytest.mark.parametrize("count", [2, 5, 15])
def test_a_small_budget_has_training_and_validation_images_nested_in_those_of_a_larger_one(count: int) -> None:
    pairs = make([f"image_{number}" for number in range(300)])
    for seed in range(20):
        small, large = (split_off_validation(take_labels(pairs, n, seed), 0.2, seed) for n in (count, 60))
        assert small[0]
        assert small[1]
        assert set(small[0]) | set(small[1]) <= set(large[0]) | set(large[1])


def test_a_name_that_is_no_text_is_a_name() -> None:
    pairs = make([os.fsdecode(b"caf\xe9"), "b", "c"])
    assert len(take_labels(pairs, 3, 0)) == 3
    assert split_hash(pair.name for pair in pairs) != split_hash(["b", "c"])


def test_files_of_one_name_are_told_apart_by_the_folders_above():
    paths = [Path(f"/data/{patient}/cam/{side}.png") for patient in ("p1", "p2") for side in ("left", "right")]
    assert names_apart(paths) == ["p1/cam/left.png", "p1/cam/right.png", "p2/cam/left.png", "p2/cam/right.png"]
    assert names_apart([*paths, Path("/data/cats/1.jpg")])[-1] == "cats/1.jpg"  # needs no more
    assert names_apart([Path("/a/data/cats/1.jpg"), Path("/b/data/cats/1.jpg")]) == [
        "a/data/cats/1.jpg",
        "b/data/cats/1.jpg",
    ]
    assert names_apart([Path("1.jpg"), Path("2.jpg")]) == ["1.jpg", "2.jpg"]


def test_a_fraction_is_one_of_images_where_their_names_repeat():
    paths = [Path(f"data/p{patient:03}/images/{index:03}.png") for patient in range(100) for index in range(10)]
    held_out = choose_by_hash(names_apart(paths), 0.05, 0, "validation")
    assert 30 < len(held_out) < 70


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(tuple), unique=True, max_size=20))
def test_different_paths_get_different_names(parts):
    paths = [Path("/", *each) for each in parts]
    assert len(set(names_apart(paths))) == len(paths)
