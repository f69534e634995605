"""Checks of folders before training: what they find, what they print and write, and how the command ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segae
from segae import cli
from segae.data.duplicates import _hash_image
from tests.fabricate import make_folder, make_images, make_pets, save


def check(*words: object) -> int:
    try:
        cli.main(["data", "check", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def found(report: segae.DataReport, text: str) -> Any:
    (problem,) = (one for one in report.problems if text in one.found)
    return problem


def repaint(mask: Path, values: Any) -> None:
    save(np.asarray(values, np.uint8), mask)


def test_a_good_data_set_is_described_and_the_command_to_type_next_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pets(Path("pets"), 5, 3, val=2)
    assert check("pets", "--out", "checked") == 0
    printed = capsys.readouterr().out
    assert "layout    pets" in printed
    assert printed.endswith("Next:\n  segae finetune pets\n")
    report = json.loads(Path("checked/report.json").read_text())
    assert report["accepted"]
    assert report["problems"] == []
    assert {row["split"]: row["images"] for row in report["splits"]} == {"train": 5, "test": 3, "val": 2}
    trimaps = [np.array(Image.open(f"pets/annotations/trimaps/{name}.png")) for name in listed("pets", "trainval")[:5]]
    for row in report["classes"]:
        assert row["share"] == pytest.approx(np.mean([trimap == row["values"][0] for trimap in trimaps]))
        assert row["images"] == sum((trimap == row["values"][0]).any() for trimap in trimaps)
    assert report["formats"] == [{"channels": 3, "bits": 8, "images": 10}]
    assert [row["width"] for row in report["sizes"]] == [64, 64, 64]
    with Image.open("checked/sheet.png") as sheet:
        assert sheet.width > 300
    printed_again = str(segae.check_data("pets"))
    assert printed_again == printed.rstrip("\n")


def listed(root: str, split: str) -> list[str]:
    return [line.split()[0] for line in Path(root, "annotations", f"{split}.txt").read_text().splitlines()]


def test_all_problems_are_collected_and_each_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "cells", 8, 4, size=32, classes=("ground", "cell", "wall"), values=(0, 1))
    images, masks = root / "images", root / "masks"
    (images / "n0.png").write_bytes(b"no picture")
    save(np.array(Image.open(masks / "n1.png"))[:20], masks / "n1.png")
    repaint(masks / "n2.png", np.arange(1024).reshape(32, 32) % 2 * 2 + 7)
    repaint(masks / "n3.png", np.random.default_rng(0).integers(0, 255, (32, 32, 3)))
    shutil.copy(images / "n4.png", images / "n8.png")  # a training image and a test image
    save(np.array(Image.open(images / "n5.png"))[:, ::-1], images / "n9.png")
    make_images(tmp_path / "more", 2)
    shutil.move(tmp_path / "more" / "photo_000.jpg", images / "single.jpg")
    assert check(root, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "A training refuses this folder" in printed
    assert printed.rstrip().endswith(f"segae data check {root}")
    report = segae.check_data(root)
    assert not report.accepted
    assert report.splits.to_numpy().tolist() == [["all", 12]]
    assert found(report, "another size").files == ("masks/n1.png",)
    assert "n3.png" in found(report, "is no class mask").found
    assert list(report.unreadable["file"]) == ["images/n0.png"]
    assert found(report, "unreadable").refused is False
    assert report.images_without_mask == ("images/single.jpg",)
    (tmp_path / "cells" / "masks" / "n3.png").unlink()
    (tmp_path / "cells" / "images" / "n3.png").unlink()
    (root / "train.txt").write_text("n0\nn1\nn2\nn4\nn5\nn6\nn7\n")
    report = segae.check_data(root)
    assert found(report, "no class: 7, 9").files == ("masks/n2.png",)
    assert found(report, "no training image shows wall").refused is False
    kinds = {row.image: (row.kind, row.of) for row in report.duplicates.itertuples()}
    assert kinds == {"images/n8.png": ("file", "images/n4.png"), "images/n9.png": ("near", "images/n5.png")}
    assert [problem.refused for problem in report.problems] == sorted(
        (problem.refused for problem in report.problems), reverse=True
    )
    assert all(str(problem).endswith(".") for problem in report.problems)


def test_what_a_training_refuses_is_refused_and_what_it_takes_is_not(tmp_path: Path) -> None:
    """The same folders, as they are and mended, by the check and by the training itself."""
    root = make_folder(tmp_path / "cells", 6, 2, size=32)
    settings: dict[str, Any] = {"encoder": "test_resnet", "image_size": 32, "device": "cpu", "epochs": 0}
    settings |= {"freeze_epochs": 1, "max_steps": 1, "threads": 1, "decoder": "linear", "overwrite": True}
    (root / "images" / "n7.png").rename(tmp_path / "away.png")
    (root / "test.txt").write_text("n6\n")
    report = segae.check_data(root)
    assert report.masks_without_image == ("masks/n7.png",)
    assert not report.accepted
    with pytest.raises(segae.DataError, match="without an image"):
        segae.finetune(root, out=tmp_path / "run", **settings)
    (root / "masks" / "n7.png").unlink()
    (root / "images" / "n0.png").write_bytes(b"")
    report = segae.check_data(root)
    assert report.accepted
    assert segae.finetune(root, out=tmp_path / "run", **settings).path.is_file()
    (root / "train.txt").write_text("n1\n")
    assert not segae.check_data(root).accepted
    with pytest.raises(segae.DataError, match="cannot be divided"):
        segae.finetune(root, out=tmp_path / "run", **settings)


def test_rare_classes_and_ignored_pixels_change_the_command(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "streets", 4, 2, size=32, values=(0, 1))
    for place in range(6):
        mask = np.zeros((32, 32))
        mask[:8], mask[-1, : 2 + place] = 255, 1
        repaint(root / "masks" / f"n{place}.png", mask)
    report = segae.check_data(root)
    assert report.ignored == pytest.approx(0.25)
    share = (2 + 3 + 4 + 5) / (4 * 24 * 32)
    assert report.classes["share"].tolist() == pytest.approx([1 - share, share])
    assert report.commands == (f"segae finetune {root} --balance-classes --ignore 255",)
    merged = segae.check_data(root, classes=("ground", "line"), ignore=("255", "line"))
    assert merged.layout == "folder"
    assert "in all training masks" in merged.problems[0].found


def test_unlabeled_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_images(tmp_path / "my photos", 5)
    shutil.copy(root / "photo_001.jpg", root / "photo_009.jpg")
    save(np.array(Image.open(root / "photo_000.jpg").resize((40, 40))), root / "small.png")
    save(np.random.default_rng(0).integers(0, 65535, (20, 30)).astype(np.uint16), root / "wide.png")
    (root / "broken.jpg").write_bytes((root / "photo_002.jpg").read_bytes()[:900])
    assert check(root, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.endswith(f"Next:\n  segae pretrain '{root}'\n")
    report = segae.check_data(root)
    assert report.layout == "unlabeled images"
    assert {(row.image, row.of) for row in report.duplicates.itertuples()} == {
        ("photo_009.jpg", "photo_001.jpg"),
        ("small.png", "photo_000.jpg"),
    }
    assert sorted(map(tuple, report.formats.to_numpy().tolist())) == [(1, 16, 1), (3, 8, 7)]
    assert list(report.unreadable["file"]) == ["broken.jpg"]
    assert (tmp_path / "out" / "sheet.png").is_file()
    for place in ("a", "b"):
        make_images(tmp_path / "kinds" / place, 2, seed=ord(place))
    assert "--task classify" in segae.check_data(tmp_path / "kinds").commands[1]


def test_no_image_is_decoded_by_a_second_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "cells", 3, 2, size=32)
    monkeypatch.setattr("segae.data.cache._SETTLED_NS", -(10**12))  # files of a moment ago count as settled
    decoded: list[Path] = []

    def hash_image(path: Path) -> str:
        decoded.append(path)
        return _hash_image(path)

    def decode(path: Path, *more: Any, **how: Any) -> Any:
        decoded.append(path)
        return read_mask(path, *more, **how)

    read_mask = segae.data.read_mask
    monkeypatch.setattr("segae.data.duplicates._hash_image", hash_image)
    monkeypatch.setattr("segae.data.datasets.read_mask", decode)
    first = segae.check_data(root)
    assert sorted(decoded) == sorted([*(root / "images").iterdir(), *(root / "masks").iterdir()])
    assert str(segae.check_data(root)) == str(first)
    assert len(decoded) == 10


@pytest.mark.parametrize("make", ["missing", "empty", "texts"])
def test_folders_without_images_are_refused(make: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "folder"
    if make != "missing":
        root.mkdir()
    if make == "texts":
        (root / "notes.txt").write_text("nothing")
    assert check(root) == 2
    assert str(root) in capsys.readouterr().err
