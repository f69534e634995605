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
from tests.fabricate import make_folder, make_images, make_pets, save, write_list
from tests.fabricate_formats import CLASSES, COLORS, draw_labeled, write_coco, write_color_folder, write_cvat


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


@pytest.fixture
def cvat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_cvat(Path("photos/cvat"), *draw_labeled(), CLASSES)


def refuse(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The message with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err.partition(" Change ")[0].strip()


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_must_be_unpacked(cvat: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    file = shutil.make_archive("alone/export", kind, cvat)
    for place in (file, "alone"):
        messages = {refuse(capsys, *words, place) for words in (["data", "check"], ["finetune"], ["pretrain"])}
        assert len(messages) == 1
        assert "Unpack it" in (message := messages.pop())
        assert Path(file).name in message
    with pytest.raises(segae.DataError, match="Unpack it"):
        segae.data.open_dataset(file)
    shutil.copy(cvat / "JPEGImages" / "n00.jpg", "alone")
    assert check("alone") == 0  # an archive beside images


def test_tar_shards_are_no_archives_where_they_can_be_read(cvat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shutil.make_archive("shard-000", "tar", cvat / "JPEGImages")
    assert "Unpack it" in refuse(capsys, "data", "check", file)
    tiny = [
        "--encoder",
        "test_resnet",
        "--image-size",
        "32",
        "--max-steps",
        "1",
        "--device",
        "cpu",
        "--epoch-images",
        "4",
    ]
    cli.main(["pretrain", file, *tiny, "--batch-size", "2", "--out", "run"])
    assert Path("run/encoder.safetensors").is_file()


def test_the_data_set_below_or_above_is_named(cvat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, meaning in (("photos", "but photos/cvat is"), (cvat / "JPEGImages", "images of the labeled data set")):
        report = segae.check_data(folder)
        assert report.datasets == (cvat,)
        assert report.accepted
        assert meaning in report.problems[0].found
        assert report.commands == ("segae data check photos/cvat", f"segae pretrain {folder}")
        assert meaning in refuse(capsys, "finetune", folder)
    shutil.copytree(cvat, "photos/more/cvat")
    assert "but photos/cvat, photos/more/cvat are. Name one of them" in refuse(capsys, "finetune", "photos")


@pytest.mark.parametrize("name", ["SegmentationClass", "SegmentationObject"])
def test_masks_are_no_images_to_train_on(
    cvat: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    commands = (["data", "check"], ["finetune"], ["pretrain"])
    (message,) = {refuse(capsys, *words, cvat / name) for words in commands}
    assert "the masks of the labeled data set photos/cvat" in message
    monkeypatch.chdir(cvat / name)
    assert "masks of the labeled data set" in refuse(capsys, "data", "check", ".")
    Path("../../masks").mkdir()
    shutil.copy(Path("../JPEGImages/n00.jpg"), "../../masks")
    assert check("../../masks") == 0  # photographs in a folder of this name, beside no images


def test_what_cannot_be_read_has_the_message_of_the_training_and_no_numbers(
    cvat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = cvat / "labelmap.txt"
    lines = table.read_text().splitlines()
    colors = {"labelmap.txt": [line for line in lines if not line.startswith("disc")], "": []}
    for name, kept in colors.items():
        write_list(table, kept) if kept else table.unlink()
        message = refuse(capsys, "finetune", cvat)
        assert any(",".join(map(str, color)) in message for color in COLORS[1:])
        assert (f"class in {table}" if name else f"in {table} or {cvat / 'classes.csv'}; without, {cvat} is") in message
        report = segae.check_data(cvat)
        assert report.layout == ("cvat" if name else "voc")
        assert f"segae: {report.problems[0].found}." == message
        assert report.ignored is None
        assert not len(report.splits)
        assert not {"images", "ignored", "split by"} & {line[:9].strip() for line in str(report).splitlines()}
    write_list(table, lines)
    shutil.rmtree(cvat / "JPEGImages")
    (message,) = {refuse(capsys, *words, cvat) for words in (["data", "check"], ["finetune"])}
    assert f"Put them into {cvat / 'JPEGImages'}" in message


def test_color_masks_are_no_fault_where_a_table_says_what_they_mean(tmp_path: Path) -> None:
    root = write_color_folder(tmp_path / "set", *draw_labeled(), CLASSES)
    write_list(root / "classes.csv", (root / "classes.csv").read_text().splitlines()[:-1])
    (problem,) = segae.check_data(root).problems
    assert f"give the color to a class in {root / 'classes.csv'}" in problem.found
    (root / "classes.csv").unlink()
    (problem,) = segae.check_data(root, colors=["ground=0,0,0"]).problems
    assert "to a class in colors" in problem.found


def test_of_two_layouts_one_must_be_named_and_nothing_else_is_compared(
    cvat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cvat / "JPEGImages", cvat / "images")
    shutil.copytree(cvat / "SegmentationClass", cvat / "masks")
    report = segae.check_data(cvat)
    assert len(report.problems) == 1
    assert report.commands == tuple(f"segae data check {cvat} --layout {name}" for name in ("folder", "cvat"))
    with pytest.raises(SystemExit):
        cli.main(["finetune", str(cvat)])
    assert "Change --layout;" in capsys.readouterr().err
    assert check(cvat, "--layout", "cvat") == 0
    assert capsys.readouterr().out.endswith(f"segae finetune {cvat} --layout cvat\n")


def test_coco_names_the_image_that_it_looked_for(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set", *draw_labeled(), CLASSES)
    json_file = shutil.move(root / "annotations" / "instances_train2017.json", root / "coco.json")
    for folder in ("annotations", "train2017"):
        shutil.rmtree(root / folder)
    (problem,) = segae.check_data(root).problems
    assert "'n00.jpg'" in problem.found
    assert problem.found.count(str(root)) == 2  # the json, and where its images were looked for
    save(np.zeros((32, 32, 3), np.uint8), root / "n00.jpg")
    json_file.write_text(json_file.read_text().replace('"file_name": "', '"file_name": "data/'))
    (problem,) = segae.check_data(root).problems
    assert f"{root / 'n00.jpg'} is there" in problem.found


def test_the_table_counts_test_images_and_the_command_has_no_ignore_that_changes_nothing(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "cells", 4, 2, size=32, values=(0, 1))
    for place in range(6):
        repaint(root / "masks" / f"n{place}.png", np.arange(1024).reshape(32, 32) // 512 * (place != 5))
    report = segae.check_data(root)
    assert report.classes[["images", "test_images"]].to_numpy().tolist() == [[4, 2], [4, 1]]
    assert "train pixels  train images  test images" in str(report)
    assert ">test images</th>" in report._repr_html_()
    for one in (root, write_coco(tmp_path / "coco", *draw_labeled(), CLASSES)):
        assert segae.check_data(one).commands == (f"segae finetune {one}",)


def test_the_report_says_what_divides_the_images(tmp_path: Path) -> None:
    def origin(root: Path) -> str:
        report = segae.check_data(root)
        assert f"split by  {report.split_origin}\n" in str(report)
        return report.split_origin

    assert origin(make_pets(tmp_path / "pets", 3, 2)) == "annotations/trainval.txt, annotations/test.txt"
    root = make_folder(tmp_path / "cells", 4, 2, size=32)
    assert origin(root) == "train.txt, test.txt"
    (root / "train.txt").rename(root / "val.txt")
    write_list(root / "val.txt", ["n0"])
    assert origin(root) == "val.txt, test.txt"
    (root / "test.txt").unlink()
    assert origin(root) == "val.txt, a hash of the names"
    coco = write_coco(tmp_path / "coco", *draw_labeled(), CLASSES)
    files = "annotations/instances_train2017.json, annotations/instances_val2017.json"
    assert origin(coco) == f"{files}, the validation images as test"
    cvat = write_cvat(tmp_path / "cvat", *draw_labeled(), CLASSES)
    assert "train.txt" in origin(cvat)
    write_list(cvat / "ImageSets" / "Segmentation" / "train.txt", ["n00", "n01", "n02"])
    folder = "ImageSets/Segmentation"
    assert origin(cvat) == f"{folder}/train.txt, the test images by a hash of the names"
    for part, names in (("train", "012"), ("test", "34")):
        for kind in ("images", "masks"):
            for name in names:
                target = tmp_path / "parts" / part / kind / f"n{name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / kind / target.name, target)
    assert origin(tmp_path / "parts") == "folders test, train"
