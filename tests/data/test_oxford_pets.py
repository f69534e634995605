"""The official layout: whole, partial, broken."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segae.data.cache import cache_pairs
from segae.data.images import read_mask
from segae.data.oxford_pets import ARCHIVES, BASE_URL, CLASSES, PALETTE, OxfordPets
from segae.data.quarantine import Quarantine
from segae.errors import SegaeError


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three training and two test images with trimaps, and lists with the official four columns."""
    root = tmp_path / "pets"
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    for number in range(5):
        trimap = np.uint8([[1, 2], [3, 1 + number % 3]])
        Image.fromarray(trimap * 60).save(root / "images" / f"Breed_{number}.jpg")
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"Breed_{number}.png")
    lines = [f"Breed_{number} 1 1 1\n" for number in range(5)]
    (root / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED-ID\n" + "".join(lines))
    (root / "annotations" / "trainval.txt").write_text("".join(lines[:3]))
    (root / "annotations" / "test.txt").write_text("".join(lines[3:]))
    return root


def test_official_splits_classes_and_values(pets: Path) -> None:
    data = OxfordPets(pets)
    assert [pair.name for pair in data.splits["train"]] == ["Breed_0", "Breed_1", "Breed_2"]
    assert [pair.name for pair in data.splits["test"]] == ["Breed_3", "Breed_4"]
    assert data.classes == CLASSES == ("pet", "background", "border")
    assert data.missing == 0
    assert len(set(PALETTE)) == len(CLASSES)
    cached = cache_pairs(data.splits["train"], 2, data.mask_values, Quarantine(), progress=False)
    for mask, pair in zip(cached.masks, data.splits["train"], strict=True):
        assert np.array_equal(mask, read_mask(pair.mask) - 1)


def test_a_partial_copy_is_used_and_what_is_missing_is_counted(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pets / "images" / "Breed_0.jpg").unlink()
    (pets / "annotations" / "trimaps" / "Breed_4.png").unlink()
    with caplog.at_level(logging.WARNING, "segae"):
        data = OxfordPets(pets)
    assert [pair.name for pair in data.splits["train"]] == ["Breed_1", "Breed_2"]
    assert [pair.name for pair in data.splits["test"]] == ["Breed_3"]
    assert data.missing == 2
    assert len(caplog.records) == 1
    assert "3 of 5 listed images, 2 missing" in caplog.text


@pytest.mark.parametrize("part", ["images", "annotations/trimaps", "annotations/trainval.txt", "annotations"])
def test_a_missing_part_is_named_with_the_command_that_fetches_it(pets: Path, part: str) -> None:
    target = pets / part
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    with pytest.raises(SegaeError) as caught:
        OxfordPets(pets)
    assert str(target) in str(caught.value)
    assert f"segae data pets --root {pets}" in str(caught.value)


def test_lists_that_cannot_be_right_are_refused(pets: Path) -> None:
    lists = pets / "annotations"
    (lists / "test.txt").write_text("Breed_0 1 1 1\n")
    with pytest.raises(SegaeError, match="both list Breed_0"):
        OxfordPets(pets)
    (lists / "test.txt").write_text("\n")
    with pytest.raises(SegaeError, match="empty"):
        OxfordPets(pets)
    (lists / "test.txt").write_text("Nobody 1 1 1\n")
    (lists / "trainval.txt").write_text("None 1 1 1\n")
    with pytest.raises(SegaeError, match="none of the 2 listed images"):
        OxfordPets(pets)


def test_addresses_and_checksums_equal_torchvisions() -> None:
    from torchvision.datasets import OxfordIIITPet

    ours = {(BASE_URL + name, checksum) for name, checksum in ARCHIVES.items()}
    assert ours == {(url, f"md5:{md5}") for url, md5 in OxfordIIITPet._RESOURCES}


@pytest.mark.real
def test_the_real_sample(real_data: Path) -> None:
    data = OxfordPets(real_data / "oxford-iiit-pet-sample")
    assert (len(data.splits["train"]), len(data.splits["test"]), data.missing) == (300, 298, 0)
    quarantine = Quarantine()
    cached = cache_pairs(data.splits["train"][:20], 64, data.mask_values, quarantine, progress=False)
    assert cached.images.shape == (20, 64, 64, 3)
    assert not len(quarantine)
    assert np.unique(cached.masks).tolist() == [0, 1, 2]
    corners = cached.masks[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == CLASSES.index("background")).mean() > 0.6
