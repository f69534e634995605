"""Leaks between training and test images, and rows that must not be compared."""

from __future__ import annotations

import gzip
import shutil

import pandas as pd
import pytest
from PIL import Image, ImageOps

import segae
from segae.bench.checks import compare_with_published, require_comparable, require_no_leak
from segae.data import open_dataset
from segae.errors import DataError, SegaeError
from tests.fabricate import make_folder, write_list


def with_copies(root, how, count, test=4):
    """A data set in which the first test images are training images too, under other names."""
    make_folder(root, 3, test, classes=("rest", "thing"))
    for place in range(3, 3 + count):
        image, copy = root / "images" / f"n{place}.png", root / "images" / f"holiday_{place}.png"
        if how == "file":
            shutil.copy(image, copy)
        elif how == "pixels":
            Image.open(image).save(copy.with_suffix(".bmp"))
        else:
            ImageOps.mirror(Image.open(image)).resize((48, 48)).save(copy.with_suffix(".jpg"))
        shutil.copy(root / "masks" / image.name, root / "masks" / copy.name)
    write_list(root / "train.txt", ["n0", "n1", "n2", *(f"holiday_{place}" for place in range(3, 3 + count))])
    return root


@pytest.mark.parametrize(
    ("how", "count", "test", "refused"),
    [
        *(("file", 1, 4, "1 training images are test images: .*holiday_3.png .*n3.png"), ("near", 0, 4, "")),
        *(("pixels", 1, 4, "1 training images are test images"), ("near", 1, 4, ""), ("near", 2, 100, "")),
        ("near", 2, 4, "2 of 4 test images .*allow_near_duplicates"),
    ],
)
def test_copies_of_test_images_are_refused_and_a_few_near_ones_let_through(tmp_path, caplog, how, count, test, refused):
    root, out = with_copies(tmp_path / "set", how, count, test), tmp_path / "out"
    if not refused:
        assert [one.image.stem for one in require_no_leak(open_dataset(root))] == ["holiday_3", "holiday_4"][:count]
        assert (f"{count} of {test} test images" in caplog.text) == bool(count)
        return
    with pytest.raises(DataError, match=refused):
        segae.benchmark(root, out=out)
    assert not out.exists()
    # there are no ImageNet weights of this network
    with pytest.raises(SegaeError, match="runs failed" if how == "near" else refused):
        segae.benchmark(root, out=out, weights="imagenet", encoders="test_resnet", allow_near_duplicates=True)
    if how == "near":
        assert "n4.png" in gzip.decompress((out / "near_duplicates" / "bench.csv.gz").read_bytes()).decode()


ROWS = pd.DataFrame(
    [
        {"dataset": "pets", "split": "test", "encoder": "resnet18", "weights": weights, "method": "", "labels": labels}
        | {"seed": seed, "run_id": f"{weights}{labels}{seed}", "label_subset": f"{labels}{seed}", "image_size": 64.0}
        | {"loss": "dice", "batch_size": 8.0, "epoch_images": images}
        for weights in ("random", "imagenet")
        for labels, images in ((10, 100.0), (100, float("nan")))
        for seed in (0, 1)
    ]
)


def test_rows_of_other_protocols_are_not_compared():
    require_comparable(ROWS)
    require_comparable(ROWS.assign(split="val", labels=[10, 10, 84, 79] * 2))  # fewer by validation images of a seed
    other = {"run_id": "random101", "label_subset": "x", "image_size": 96.0, "loss": "cross_entropy"}
    for column, value in {**other, "batch_size": 4.0, "epoch_images": 50}.items():
        with pytest.raises(SegaeError, match=f"{column} must .*{value}"):
            require_comparable(ROWS.assign(**{column: [value, *ROWS[column][1:]]}))


def test_the_published_protocol_is_judged_on_its_own_test_split():
    for score, images, expected in ((0.915, 3669, "agrees"), (0.905, 3669, "does not"), (0.915, 298, "cannot be")):
        assert expected in compare_with_published(ROWS.assign(iou_foreground=score), images)
    assert "cannot be" in compare_with_published(ROWS[ROWS["weights"] == "random"], 3669)
