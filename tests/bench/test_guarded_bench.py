"""segae bench itself refuses what would make it lie: each fault is planted, and the command is typed."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from segae.bench.report import write_report
from segae.cli import main
from segae.tasks.readings import LEDGER, read_readings
from segae.tasks.rows import read_rows

TINY = [
    *("--encoders", "test_resnet", "--image-size", "64", "--batch-size", "4", "--schedules", "0+1"),
    *("--budgets", "100%", "--seeds", "0", "--pretrain-image-size", "64", "--pretrain-epochs", "1"),
    *("--pretrain-batch-size", "4", "--devices", "cpu", "--threads", "1", "--no-estimate", "--no-page"),
]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Drawing them takes most of an evaluation's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segae.tasks.evaluate._write_pictures", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "8", "--test", "4", "--unlabelled", "2", "--size", "64"])
    return root


@pytest.fixture(scope="module")
def finished(pets, tmp_path_factory) -> Path:
    """A run folder with two arms."""
    out = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(out.parent / "cache"))
        main(bench(pets, out, "random", "random@frozen"))
    return out


def bench(pets: Path, out: Path, *arms: str) -> list[str]:
    return ["bench", "--data", str(pets), "--out", str(out), "--arms", *arms, *TINY]


def refused(capsys, command: list[str]) -> str:
    """What the command says as it gives up."""
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_test_image_among_the_unlabelled_ones_is_refused(pets, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    leak = sorted((pets / "annotations" / "test.txt").read_text().split("\n"))[-1].split()[0]
    Image.open(pets / "images" / f"{leak}.jpg").save(tmp_path / "more" / "holiday.bmp")  # the same pixels
    told = refused(capsys, [*bench(pets, tmp_path / "out", "ae:mask"), "--unlabelled", str(tmp_path / "more")])
    assert "pretraining images are test images" in told
    assert "holiday.bmp" in told
    assert not list(tmp_path.glob("out/pretrain-*")), "it was pretrained on the test image"


def test_near_duplicates_are_refused_unless_they_are_allowed(pets, tmp_path, capsys):
    more = tmp_path / "more"
    more.mkdir()
    names = [line.split()[0] for line in (pets / "annotations" / "test.txt").read_text().splitlines() if line[0] != "#"]
    for name in names[:2]:
        Image.open(pets / "images" / f"{name}.jpg").save(more / f"holiday_{name}.jpg", quality=60)
    command = [*bench(pets, tmp_path / "out", "ae:mask"), "--unlabelled", str(more)]
    told = refused(capsys, command)
    assert "2 of 4 test images have near-duplicates" in told
    assert "--allow-near-duplicates" in told
    assert not list(tmp_path.glob("out/pretrain-*"))
    main([*command, "--allow-near-duplicates"])
    assert "2 of 4 test images have near-duplicates" in capsys.readouterr().out
    assert [row["init"] for row in read_rows(tmp_path / "out" / "bench.csv")] == ["ae:mask"]
    shutil.rmtree(more)
    main(bench(pets, tmp_path / "out", "random"))  # the earlier row has still seen them
    page = write_report(tmp_path / "out" / "bench.csv", tmp_path / "page.html")
    said = f"2 of 4 test images of {pets.name} look like images that were trained on, with or without masks"
    assert said in page.read_text()
    assert f"{names[0]}.jpg like holiday_{names[0]}.jpg" in page.read_text()


def test_a_page_of_a_study_without_near_duplicates_says_nothing_of_them(pets, finished, tmp_path):
    assert "look like images" not in write_report(finished / "bench.csv", tmp_path / "page.html").read_text()


@pytest.mark.parametrize("flags", [["--jobs", "0"], ["--threads", "0"]])
def test_no_runs_at_once_and_no_threads_are_refused_before_anything_is_done(flags, pets, tmp_path, capsys):
    told = refused(capsys, [*bench(pets, tmp_path / "out", "random"), *flags])
    assert f"{flags[0][2:]} is 0" in told
    assert "wanted 1 or more, such as --jobs 2 --threads 1" in told
    assert not (tmp_path / "out").exists()


def test_a_second_reading_of_the_test_split_is_refused(pets, finished, tmp_path, capsys):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (folder,) = out.glob("test-random-0-*")
    other = replace(read_readings(folder)[0], weights="of an earlier epoch")
    with (folder / LEDGER).open("a", newline="") as file:
        csv.DictWriter(file, list(asdict(other)), lineterminator="\n").writerow(asdict(other))
    (out / "bench.csv").unlink()
    for cell in (out / "cells").iterdir():  # the runs are there, and only their rows are to be made again
        cell.unlink()
    told = refused(capsys, bench(pets, out, "random", "random@frozen"))
    assert "1 of 2 runs failed" in told
    assert "the test split was read with 2 sets of weights" in told
    assert [int(row["freeze_epochs"]) for row in read_rows(out / "bench.csv")] == [1]


def test_a_row_of_other_labelled_images_is_refused(pets, finished, tmp_path, capsys):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    cell = sorted((out / "cells").iterdir())[0]
    content = json.loads(cell.read_text())
    content["row"]["label_subset"] = 16 * "0"
    cell.write_text(json.dumps(content))
    assert "arms saw different labelled images: label_subset is " in refused(
        capsys, bench(pets, out, "random", "random@frozen")
    )


def test_the_settings_of_a_row_are_those_that_validation_images_chose(pets, tmp_path, capsys):
    out = tmp_path / "out"
    main([*bench(pets, out, "random"), "--tune", "lr=0.00001,0.01", "--tune-seeds", "0", "1"])
    trials = read_rows(out / "bench_validation.csv")
    assert sorted((row["split"], float(row["lr"]), row["seed"]) for row in trials) == [
        ("val", lr, seed) for lr in (1e-5, 1e-2) for seed in "01"
    ]
    mean = {lr: sum(float(row["miou"]) for row in trials if float(row["lr"]) == lr) / 2 for lr in (1e-5, 1e-2)}
    (row,) = read_rows(out / "bench.csv")
    assert (row["split"], float(row["lr"])) == ("test", max(mean, key=mean.get))
    assert f"test_resnet, unet, random: lr {float(row['lr'])}" in capsys.readouterr().out
    read = [path.parent.name.split("-")[0] for path in out.rglob(LEDGER)]
    assert read == ["test"], "the search has read the test split"


def test_runs_with_other_settings_in_a_used_folder_have_a_page_of_their_own(finished, pets, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    changed = [word for word in bench(pets, out, "random") if word != "--no-page"]
    changed[changed.index("--batch-size") + 1] = "2"
    main(changed)
    assert "The page is of these runs alone" in capsys.readouterr().out
    page = (out / "index.html").read_text()
    assert "the batch size was 2;" in page
    assert "1 rows of bench.csv" in page
    assert {row["batch_size"] for row in read_rows(out / "bench.csv")} == {"2", "4"}  # nothing is lost
