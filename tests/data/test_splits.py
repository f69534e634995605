"""Seeded choices are nested, disjoint and blind to the order of files; pretraining sees no test image."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from segae.data import (
    Pair,
    choose_by_hash,
    find_pretraining_images,
    label_subset,
    open_dataset,
    split_hash,
    train_val_split,
    unique_names,
)
from segae.errors import DataError, SegaeError
from tests.fabricate import make_folder, make_images, make_pets

quick = settings(max_examples=40, deadline=None)
names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=30, unique=True)


def make(names: list[str]) -> list[Pair]:
    return [Pair(name, Path(name), Path(name)) for name in names]


NUMBERS = make([f"image_{number}" for number in range(1000)])


@quick
@given(count=st.integers(2, 40), seed=st.integers(0, 5), data=st.data())
def test_label_budgets_are_nested_and_blind_to_order(count: int, seed: int, data: st.DataObject) -> None:
    pairs = NUMBERS[:count]
    small = data.draw(st.integers(1, count))
    large = data.draw(st.integers(small, count))
    chosen = label_subset(pairs, small, seed)
    assert chosen == label_subset(pairs, large, seed)[:small]
    assert chosen == label_subset(random.Random(1).sample(pairs, count), small, seed)
    assert len(set(chosen)) == small
    assert set(label_subset(pairs, None, seed)) == set(pairs)
    assert label_subset(pairs, small / count, seed) == chosen


@pytest.mark.parametrize("count", [0, -1, 4, 0.0, 1.5, float("nan")])
def test_impossible_budgets_are_refused(count: float) -> None:
    with pytest.raises(SegaeError, match="count"):
        label_subset(NUMBERS[:3], count, 0)


@quick
@given(count=st.integers(2, 40), seed=st.integers(0, 5), low=st.floats(0.01, 0.98), high=st.floats(0.01, 0.98))
def test_validation_is_disjoint_nested_and_blind_to_order(count: int, seed: int, low: float, high: float) -> None:
    pairs = NUMBERS[:count]
    train, validation = train_val_split(pairs, low, seed)
    assert train
    assert validation
    assert sorted([*train.names, *validation.names]) == sorted(pair.name for pair in pairs)
    shuffled = random.Random(2).sample(pairs, count)
    assert set(train_val_split(shuffled, low, seed)[1]) == set(validation)
    wider = train_val_split(pairs, max(low, high), seed)[1]
    assert set(train_val_split(pairs, min(low, high), seed)[1]) <= set(wider)


def test_an_image_stays_on_its_side_when_others_come() -> None:
    few, whole = (train_val_split(NUMBERS[:count], 0.2, 3)[1] for count in (500, 1000))
    assert set(few) == set(whole) & set(NUMBERS[:500])
    assert 150 < len(whole) < 250
    assert train_val_split(NUMBERS[:1], 0, 0) == (NUMBERS[:1], [])


def test_seeds_differ_purposes_are_independent_and_machines_agree() -> None:
    labels = set(label_subset(NUMBERS, 200, 0))
    assert len(labels & set(label_subset(NUMBERS, 200, 1))) < 80
    assert len(labels & set(train_val_split(NUMBERS, 0.2, 0)[1])) < 80
    assert [pair.name for pair in label_subset(NUMBERS[:8], 3, 0)] == ["image_6", "image_7", "image_5"]


def test_impossible_fractions_are_refused() -> None:
    for fraction in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(SegaeError, match="fraction"):
            train_val_split(NUMBERS[:2], fraction, 0)
    with pytest.raises(DataError, match="1 image"):
        train_val_split(NUMBERS[:1], 0.5, 0)


@quick
@given(names=names)
def test_split_hash_depends_on_the_names_only(names: list[str]) -> None:
    assert split_hash(names) == split_hash(iter(reversed(names))) != split_hash(names[1:])
    assert len(split_hash(names)) == 16
    assert split_hash([*names, os.fsdecode(b"caf\xe9")]) != split_hash(names)  # a name that is no text


@quick
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(tuple), unique=True, max_size=20))
def test_different_paths_get_different_names(parts: list[tuple[str, ...]]) -> None:
    paths = [Path("/", *each) for each in parts]
    assert len(set(unique_names(paths))) == len(paths)


def test_names_have_as_many_folders_as_they_need() -> None:
    paths = [Path(f"/data/{patient}/cam/{side}.png") for patient in ("p1", "p2") for side in ("left", "right")]
    assert unique_names(paths)[:2] == ["p1/cam/left.png", "p1/cam/right.png"]
    assert unique_names([*paths, Path("/data/cats/1.jpg")])[-1] == "cats/1.jpg"
    repeated = [Path(f"data/p{patient:03}/images/{index:03}.png") for patient in range(100) for index in range(10)]
    assert 30 < len(choose_by_hash(unique_names(repeated), 0.05, 0, "validation")) < 70


def test_no_test_image_is_seen_in_pretraining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pets = make_pets(tmp_path / "data" / "pets", 5, 3, unlabeled=2)
    test = {pair.image for pair in open_dataset(pets).splits["test"]}
    for roots in ([pets], [pets.parent], [pets / "images"], [pets / "images", pets / "unlabeled"]):
        report = find_pretraining_images(roots)
        assert not test & set(report.kept)
        assert {path for path, _ in report.excluded} == test
        assert all(reason for _, reason in report.excluded)
        assert len(report.kept) == (5 if roots == [pets / "images"] else 7)
        assert "3 of" in caplog.text
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        caplog.clear()
    with pytest.raises(DataError, match="test images"):
        find_pretraining_images(sorted(test))
    assert caplog.clear() is None
    assert find_pretraining_images([pets / "unlabeled"]).excluded == []
    assert not caplog.records


def test_copies_and_near_duplicates_of_test_images_are_excluded_with_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path / "set", 5, 3, size=128)
    photos = make_images(tmp_path / "photos", 3, size=128)
    test = [pair.image for pair in open_dataset(root).splits["test"]]
    shutil.copy(test[0], photos / "copy.png")
    with Image.open(test[1]) as image:
        ImageOps.mirror(image).resize((90, 90)).save(photos / "mirrored.jpg")
    report = find_pretraining_images([root, photos])
    reasons = dict(report.excluded)
    assert set(reasons) == {*test, photos / "copy.png", photos / "mirrored.jpg"}
    assert str(test[0]) in reasons[photos / "copy.png"]
    assert "looks like" in reasons[photos / "mirrored.jpg"]
    assert len(report.kept) == 5 + 3
    assert "5 of 13 images" in caplog.text
    assert "1 copies, 1 near-duplicates" in caplog.text
    exact = find_pretraining_images([root, photos], near_duplicates=False)
    assert {path for path, _ in exact.excluded} == {*test, photos / "copy.png"}
    assert len(exact.kept) == 5 + 4


def test_a_training_image_that_repeats_a_test_image_is_excluded_too(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 5, 3)
    train, test = (open_dataset(root).splits[split][0].image for split in ("train", "test"))
    shutil.copy(test, train)
    assert train in dict(find_pretraining_images([root]).excluded)


def test_data_sets_above_a_root_are_not_looked_for(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", 5, 3)
    (tmp_path / "set" / "masks" / "orphan.png").write_bytes(b"")  # broken, which nobody may notice
    photos = make_images(tmp_path / "set" / "images" / "deep" / "photos", 3)
    for roots in ([photos], [photos / "photo_000.jpg"], [photos.parent]):
        assert find_pretraining_images(roots).excluded == []


def test_validation_images_and_images_without_masks_stay(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 4, 2, val=2)
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (64, 64, 3), np.uint8)).save(root / "images" / "more.png")
    assert len(find_pretraining_images([root]).kept) == 7


def test_no_test_image_is_seen_behind_links_or_without_its_trimap(tmp_path: Path) -> None:
    pets = make_pets(tmp_path / "pets", 4, 3)
    test = {pair.image.name for pair in open_dataset(pets).splits["test"]}
    linked, files, alias = tmp_path / "linked", tmp_path / "files", tmp_path / "alias"
    for root in (linked, files):
        shutil.copytree(pets / "annotations", root / "annotations")
    (linked / "images").symlink_to(pets / "images")
    (files / "images").mkdir()
    for path in (pets / "images").iterdir():
        (files / "images" / path.name).symlink_to(path)
    (files / "annotations" / "trimaps" / min(test).replace("jpg", "png")).unlink()
    alias.symlink_to(pets / "images")
    for root in (linked, files, alias):
        assert len(found := find_pretraining_images([root]).kept) == 4
        assert not test & {path.name for path in found}
