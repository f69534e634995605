"""``select_images`` covers groups that nothing labeled is in; ``segae suggest`` writes lists of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segae
from segae.cli import main
from tests.fabricate import make_images, make_pets


def groups(counts: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features around one direction per group, and the group of each row."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(counts)), counts)
    return 5 * np.eye(16)[group] + generator.normal(0, 0.1, (len(group), 16)) + 3, group


def test_each_large_group_is_chosen_before_any_twice() -> None:
    features, group = groups([40, 30, 20, 10])
    chosen = segae.select_images(features, count=4)
    assert sorted(group[chosen]) == [0, 1, 2, 3]
    assert len(set(segae.select_images(features, count=100))) == 100


def test_what_is_labeled_counts_as_covered() -> None:
    features, group = groups([40, 30, 20, 10])
    chosen = segae.select_images(features, features[group == 0][:3], count=3)
    assert sorted(group[chosen]) == [1, 2, 3]


def test_uncertain_images_count_more() -> None:
    features, group = groups([40, 20, 10])
    chosen = segae.select_images(features, count=1, uncertainty=np.where(group == 2, 1.0, 0.01))
    assert group[chosen] == [2]


def test_large_pools_are_sampled_the_same_way_each_time() -> None:
    features, group = groups([3000, 2500, 600])
    chosen = segae.select_images(features, count=3, seed=1)
    assert sorted(group[chosen]) == [0, 1, 2]
    np.testing.assert_array_equal(chosen, segae.select_images(features, count=3, seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 11}, "count"),
        ({"count": 1, "labeled": np.zeros((2, 3))}, "labeled"),
        ({"count": 1, "uncertainty": np.full(10, -1.0)}, "uncertainty"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(segae.SegaeError, match=message):
        segae.select_images(np.random.default_rng(0).normal(size=(10, 4)), **settings)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A folder of ten images, one of which cannot be read."""
    folder = make_images(tmp_path / "pool", 10, size=48, seed=3, extension="png")
    sorted(folder.iterdir())[4].write_bytes(b"no picture")
    return folder


def test_the_command_writes_lists_that_exist_and_a_sheet(pool: Path, tmp_path: Path) -> None:
    pets, out = make_pets(tmp_path / "pets", 4, 2), tmp_path / "out"
    encoder = segae.save_encoder(segae.create_encoder("test_resnet"), tmp_path / "encoder.safetensors")
    settings = ["--encoder", f"{encoder}", "--image-size", "32", "--out", f"{out}"]
    main(["suggest", f"{pool}", f"{pets}", "--labeled", f"{pets}", "--count", "3", *settings])
    listed = (out / "files.txt").read_text().split()
    assert len(set(listed)) == 3
    assert all(Path(name).parent == pool for name in listed)  # none that has a mask, none of the test split
    with (out / "suggestions.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == listed
    tasks = json.loads((out / "label_studio.json").read_text())
    assert [f"/{task['data']['image'].split('=')[1]}" for task in tasks] == listed
    assert Image.open(out / "sheet.png").width > 100
    assert "pool" in (out / "skipped.csv").read_text()


def test_a_model_adds_its_uncertainty(pool: Path, tmp_path: Path) -> None:
    model = segae.create_segmenter("test_resnet", num_classes=3, image_size=32)
    rows = segae.suggest(pool, model=model, count=4, out=tmp_path / "out", device="cpu")
    assert rows["uncertainty"].between(0.01, 1).all()
    with pytest.raises(segae.SegaeError, match="out must be a new folder"):
        segae.suggest(pool, model=model, count=5, out=tmp_path / "out", device="cpu")


def test_as_many_labeled_images_as_broken_ones(pool: Path, tmp_path: Path) -> None:
    labeled = make_images(tmp_path / "labeled", 1, size=48, extension="png")
    rows = segae.suggest(
        pool, labeled=labeled, count=2, encoder="pets_pseudo_masks", image_size=32, out=tmp_path / "out", device="cpu"
    )
    assert len(rows) == 2


def test_too_few_images_are_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(segae.DataError, match="at least count, 50, .* got 10"):
        segae.suggest(pool, encoder="pets_pseudo_masks", out=tmp_path / "out")
