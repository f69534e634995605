"""Leaks between training and test images, and rows that must not be compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image, ImageOps

import segae
from segae.bench.checks import compare_with_published, require_comparable, require_no_leak
from segae.bench.results import details_path, read_details
from segae.data import open_dataset
from segae.errors import DataError, SegaeError
from tests.fabricate import make_folder, write_list


def with_copies(root: Path, how: str, count: int, test: int = 4) -> Path:
    """A data set in which the first test images are training images too, under other names."""
    make_folder(root, 3, test, classes=("rest", "thing"))
    names = ["n0", "n1", "n2"]
    for place in range(3, 3 + count):
        image, copy = Image.open(root / "images" / f"n{place}.png"), root / "images" / f"holiday_{place}.png"
        if how == "file":
            shutil.copy(root / "images" / f"n{place}.png", copy)
        elif how == "pixels":
            image.save(copy.with_suffix(".bmp"))
        else:
            ImageOps.mirror(image).resize((48, 48)).save(copy.with_suffix(".jpg"), quality=70)
        shutil.copy(root / "masks" / f"n{place}.png", root / "masks" / copy.name)
        names.append(copy.stem)
    write_list(root / "train.txt", names)
    return root


@pytest.mark.parametrize("how", ["file", "pixels"])
def test_a_test_image_among_the_training_images_is_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(DataError, match=r"1 training images are test images: .*holiday_3\.\w+ .*n3.png"):
        require_no_leak(open_dataset(with_copies(tmp_path / "set", how, 1)), allow_near=True)


@pytest.mark.parametrize(("count", "test"), [(0, 4), (1, 4), (1, 100), (2, 100)])
def test_near_duplicates_of_up_to_2_percent_are_let_through(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, test: int
) -> None:
    found = require_no_leak(open_dataset(with_copies(tmp_path / "set", "near", count, test)))
    assert [one.image.stem for one in found] == [f"holiday_{place}" for place in range(3, 3 + count)]
    assert (f"{count} of {test} test images" in caplog.text) == bool(count)


def test_more_near_duplicates_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    root, out = with_copies(tmp_path / "set", "near", 2), tmp_path / "out"
    how: dict[str, Any] = {"out": out, "weights": "imagenet", "labels": 1.0, "seeds": 1, "encoders": "test_resnet"}
    with pytest.raises(DataError, match="2 of 4 test images .*allow_near_duplicates"):
        segae.benchmark(root, **how)
    assert not list(out.glob("test-*"))
    with pytest.raises(SegaeError, match="1 of 1 runs failed"):  # there are no ImageNet weights of this network
        segae.benchmark(root, **how, allow_near_duplicates=True)
    table = read_details(out / "bench.csv", "bench", "near_duplicates")
    assert details_path(out / "bench.csv", "bench", "near_duplicates").exists()
    assert table is not None
    assert set(table["test_image"]) == {"n3.png", "n4.png"}


ROWS = pd.DataFrame(
    [
        {"dataset": "pets", "split": "test", "encoder": "resnet18", "weights": weights, "method": "", "labels": labels}
        | {"seed": seed, "run_id": f"{weights}{labels}{seed}", "label_subset": f"{labels}{seed}", "image_size": 64.0}
        | {"loss": "dice", "batch_size": 8.0, "epoch_images": images, "iou_foreground": 0.9150}
        for weights in ("random", "imagenet")
        for labels, images in ((10, 100.0), (100, float("nan")))
        for seed in (0, 1)
    ]
)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("run_id", "random101"), ("label_subset", "other"), ("image_size", 96.0), ("loss", "cross_entropy")),
        *(("batch_size", 4.0), ("epoch_images", 50)),
    ],
)
def test_rows_of_other_protocols_are_not_compared(column: str, value: Any) -> None:
    require_comparable(ROWS)
    with pytest.raises(SegaeError, match=f"{column} must .*{value}"):
        require_comparable(ROWS.assign(**{column: [value, *ROWS[column][1:]]}))


def test_the_number_of_validation_images_may_vary_with_the_seed() -> None:
    require_comparable(ROWS.assign(split="val", labels=[10, 10, 84, 79] * 2))


@pytest.mark.parametrize(
    ("score", "images", "expected"),
    [(0.915, 3669, "agrees"), (0.905, 3669, "does not agree"), (0.915, 298, "cannot be compared")],
)
def test_the_published_protocol_is_judged_on_its_own_test_split(score: float, images: int, expected: str) -> None:
    assert expected in compare_with_published(ROWS.assign(iou_foreground=score), images)
    assert "cannot be compared" in compare_with_published(ROWS[ROWS["weights"] == "random"], images)
