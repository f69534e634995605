"""Each fault is planted and each guard finds it; the sound case passes every guard."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segae.bench.guards import (
    require_no_leak,
    require_same_normalisation,
    require_same_protocol,
    require_same_subsets,
    require_sound_rows,
    require_sound_run,
)
from segae.data.dataset import Pair
from segae.data.drawn_pets import draw_pet, draw_pets
from segae.errors import SegaeError
from segae.models.encoder import create_encoder, save_encoder
from segae.models.segmenter import load_segmenter, save_segmenter
from segae.tasks.evaluate import Evaluate
from segae.tasks.evaluate import run as evaluate
from segae.tasks.readings import LEDGER, note_reading, read_readings
from segae.tasks.rows import make_row, read_json
from segae.tasks.segment import Segment
from segae.tasks.segment import run as segment

Row = dict[str, Any]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Drawn pets, as pairs whose masks nobody reads."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for index in range(50):
        path = folder / f"pet_{index}.png"
        Image.fromarray(draw_pet(generator, 64)[0]).save(path)
        made.append(Pair(path.stem, path, path))
    return made


def nearly(pair: Pair, folder: Path) -> Path:
    path = folder / f"holiday_{pair.name}.jpg"
    Image.open(pair.image).save(path, quality=60)
    return path


def test_separate_images_are_no_leak(pairs: list[Pair]) -> None:
    assert require_no_leak(pairs[:20], pairs[20:40], [pair.image for pair in [*pairs[:20], *pairs[40:]]]) == []


@pytest.mark.parametrize("stage", ["training", "pretraining"])
@pytest.mark.parametrize("saved_as", ["scan.png", "scan.bmp"])
def test_a_test_image_in_training_is_found_by_content(
    pairs: list[Pair], tmp_path: Path, stage: str, saved_as: str
) -> None:
    renamed = tmp_path / saved_as
    if saved_as.endswith("png"):
        shutil.copy(pairs[25].image, renamed)
    else:
        Image.open(pairs[25].image).save(renamed)  # other bytes, the same pixels
    leak = Pair("scan", renamed, renamed)
    train, unlabelled = [*pairs[:20], *([leak] if stage == "training" else [])], [pair.image for pair in pairs[40:]]
    with pytest.raises(SegaeError, match=rf"1 of \d+ {stage} images are test images: .*{saved_as} .*pet_25.png"):
        require_no_leak(
            train, pairs[20:40], unlabelled if stage == "training" else [*unlabelled, renamed], allow_near=True
        )


def test_the_very_test_file_in_the_pretraining_list_is_a_leak(pairs: list[Pair]) -> None:
    with pytest.raises(SegaeError, match="2 of 3 pretraining images are test images"):
        require_no_leak([], pairs[:20], [pairs[3].image, pairs[4].image, pairs[30].image])


@pytest.mark.parametrize("stage", ["training", "pretraining"])
def test_one_near_duplicate_is_told_and_many_are_an_error(
    pairs: list[Pair], tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    copies = [nearly(pair, tmp_path) for pair in pairs[20:22]]

    def look(count: int, **allowed: bool) -> list[Any]:
        labelled = [Pair(path.stem, path, path) for path in copies[:count]] if stage == "training" else []
        return require_no_leak([*pairs[:20], *labelled], pairs[20:40], copies[:count], **allowed)

    assert [(one.image, one.of) for one in look(1)] == [(copies[0], pairs[20].image)]
    assert "1 of 20 test images have near-duplicates" in caplog.text
    assert f"{copies[0]} looks like {pairs[20].image}" in caplog.text
    with pytest.raises(SegaeError, match=r"2 of 20 test images have near-duplicates.*holiday_pet_20.*holiday_pet_21"):
        look(2)
    assert len(look(2, allow_near=True)) == 2


def row(init: str = "random", **other: Any) -> Row:
    made = {"experiment": "e", "dataset": "d", "split": "test", "encoder": "n", "decoder": "unet", "init": init}
    made |= {"transfer": "encoder", "labels": "100", "seed": "0", "label_subset": "aa", "image_size": "64", "loss": "l"}
    made |= {"batch_size": "16", "epoch_images": "", "freeze_epochs": "1", "epochs": "3", **other}
    return {**made, "settings": str(hash(tuple(made.items())))}


SOUND = [
    *(row(init, seed=seed, label_subset=f"s{seed}") for init in ("random", "imagenet") for seed in "01"),
    *(row(init, labels="10", epoch_images="100", label_subset="few") for init in ("random", "imagenet")),
    *(row(init, epochs="12", label_subset="s0") for init in ("random", "imagenet")),
    row("random", epochs="48", label_subset="s0"),
    row("imagenet", freeze_epochs="4", epochs="0", label_subset="s0"),
    row("ae:mask", decoder="linear", freeze_epochs="4", epochs="0", label_subset="s0"),
    row("random", encoder="other", image_size="96", label_subset="s0"),
    row("random", dataset="other", label_subset="elsewhere", labels="7"),
    *(row(init, split="val", labels="80", label_subset="v0") for init in ("random", "imagenet")),
    row("random", split="val", labels="70", seed="1", label_subset="v1"),
]


def test_sound_rows_pass() -> None:
    require_sound_rows(SOUND)
    require_sound_rows([{**one, "labels": int(one["labels"]), "seed": int(one["seed"])} for one in SOUND])
    require_sound_rows([])


@pytest.mark.parametrize("where", [{"labels": "100"}, {"labels": "10", "epoch_images": "100"}])
def test_an_arm_with_other_labelled_images_is_found(where: Row) -> None:
    others = [row("random", **where), row("imagenet", **where)]
    require_same_subsets(others)
    with pytest.raises(SegaeError, match=r"different labelled images: label_subset is aa of random.*bb of ae:mask"):
        require_same_subsets([*others, row("ae:mask", label_subset="bb", **where)])
    require_same_subsets([*others, row("ae:mask", label_subset="bb", **{**where, "seed": "1"})])


def test_rows_that_do_not_tell_their_labelled_images_are_refused() -> None:
    old = {name: value for name, value in row("imagenet").items() if name != "label_subset"}
    with pytest.raises(SegaeError, match="1 rows of .* do not say"):
        require_same_subsets([row(), old])


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"image_size": "96"}, "image_size is 64 of random.* 96 of imagenet"),
        ({"batch_size": "8"}, "batch_size is 16"),
        ({"loss": "dice"}, "loss is l"),
        ({"epoch_images": "200"}, "an epoch of .* has 100 images and one of imagenet .* 200"),
        ({"labels": "10"}, "has 10 images"),
        ({"epochs": "4"}, r"unet 1 \+ 3.*unet 1 \+ 4"),
        ({"freeze_epochs": "3", "epochs": "0"}, r"shares no decoder and schedule"),
        ({"decoder": "fpn"}, "fpn"),
    ],
)
def test_an_arm_that_was_trained_differently_is_found(odd: Row, told: str) -> None:
    with pytest.raises(SegaeError, match=told):
        require_same_protocol([row(), row("imagenet", **odd)])
    require_same_protocol([row(), row("imagenet")])


def test_a_run_that_counts_twice_is_found() -> None:
    with pytest.raises(SegaeError, match="stands 2 times"):
        require_sound_rows([*SOUND, SOUND[0]])


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Drawing them takes most of an evaluation's time, and no guard looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segae.tasks.evaluate._write_pictures", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Row]:
    """A fine-tuning from an encoder file, scored on test once, and its row."""
    root = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(root / "cache"))
        pets = draw_pets(root / "pets", train=8, test=4, size=64, progress=False)
        torch.manual_seed(0)
        encoder, description = create_encoder("test_resnet")
        save_encoder(root / "encoder.safetensors", encoder, replace(description, init="ae:mask"))
        run, init = root / "run", str(root / "encoder.safetensors")
        how: Row = {"encoder": "test_resnet", "init": init, "image_size": 64, "epochs": 1, "batch_size": 4}
        model = segment(Segment(pets, run, **how, val_fraction=0.0, device="cpu"))
        scores = evaluate(Evaluate(model, pets, out=run / "test", device="cpu"))
        measured = {**read_json(run / "metrics.json"), "settings": "0"}
        return run, make_row(experiment="e", split="test", run=measured, scores=scores.as_row())


@pytest.fixture
def copy(finished: tuple[Path, Row], tmp_path: Path) -> tuple[Path, Row]:
    """The finished run again, to be spoilt."""
    return Path(shutil.copytree(finished[0], tmp_path / "run")), dict(finished[1])


def test_a_sound_run_passes_and_reading_again_with_the_same_weights_does_no_harm(copy: tuple[Path, Row]) -> None:
    folder, one = copy
    require_sound_run(folder, one)
    require_sound_run(folder, {name: str(value) for name, value in one.items()})  # as read from a file
    pets = Path(json.loads((folder / "config.json").read_text())["data"])
    for split in ("test", "train"):  # the training images may be scored as often as one likes
        evaluate(Evaluate(folder / "model.safetensors", pets, split=split, out=folder / split, device="cpu"))
    readings = read_readings(folder)
    assert len(readings) == 2
    assert len({(reading.weights, reading.split_hash) for reading in readings}) == 1
    require_sound_run(folder, one)


def other_weights(folder: Path, change: float = 0.01) -> None:
    model, description = load_segmenter(folder / "model.safetensors")
    with torch.no_grad():
        next(model.parameters()).add_(change)
    save_segmenter(folder / "model.safetensors", model, description)


def test_choosing_the_best_epoch_on_test_is_found(copy: tuple[Path, Row]) -> None:
    """Scored with the weights of an earlier epoch, and with those of the last one."""
    folder, one = copy
    kept = (folder / "model.safetensors").read_bytes()
    other_weights(folder)
    pets = Path(json.loads((folder / "config.json").read_text())["data"])
    evaluate(Evaluate(folder / "model.safetensors", pets, out=folder / "epoch-1", device="cpu"))
    (folder / "model.safetensors").write_bytes(kept)
    with pytest.raises(SegaeError, match="read with 2 sets of weights"):
        require_sound_run(folder, one)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


def edit_log(folder: Path, change: Callable[[list[Row]], None]) -> None:
    with (folder / "log.csv").open(newline="") as file:
        lines: list[Row] = list(csv.DictReader(file))
    change(lines)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def other_scores(folder: Path) -> None:
    edit(folder / "test" / "metrics.json", lambda content: {**content, "model_sha256": 64 * "0"})


def better_scores(folder: Path) -> None:
    edit(folder / "test" / "metrics.json", lambda content: {**content, "miou": content["miou"] + 0.01})


def other_labels(folder: Path) -> None:
    edit(folder / "metrics.json", lambda content: {**content, "split_hash": 16 * "0"})


def earlier_epoch(folder: Path) -> None:
    edit(folder / "metrics.json", lambda content: {**content, "last_epoch": {**content["last_epoch"], "epoch": 1}})


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights of no epoch": (other_weights, "not the model of the last epoch"),
    "weights changed after scoring": (
        lambda folder: ((folder / "resume.pt").unlink(), other_weights(folder)),
        "no reading of the test split with the weights",
    ),
    "a longer schedule was asked for": (
        lambda folder: edit(folder / "config.json", lambda content: {**content, "epochs": 2}),
        "log.csv ends with epoch 2, and the schedule has 3",
    ),
    "metrics of an earlier epoch": (earlier_epoch, "metrics.json ends with epoch 1"),
    "a log that ends early": (lambda folder: edit_log(folder, lambda lines: lines.pop()), "log.csv ends with epoch 1"),
    "test scores in the log": (
        lambda folder: edit_log(folder, lambda lines: [line.update(test_miou="0.5") for line in lines]),
        "has test_miou of each epoch",
    ),
    "validation scores without validation images": (
        lambda folder: edit_log(folder, lambda lines: [line.update(miou="0.5") for line in lines]),
        "has miou of each epoch",
    ),
    "scores of another file": (other_scores, "SHA-256 000000000000"),
    "scores that are not the row's": (better_scores, "the row's mIoU is"),
    "another run's row": (other_labels, "the row says label_subset"),
    "no ledger": (lambda folder: (folder / LEDGER).unlink(), f"{LEDGER} missing"),
    "a damaged ledger": (lambda folder: (folder / LEDGER).write_text("a,b\n1,2\n"), "no record of test readings"),
    "a half run": (lambda folder: (folder / "metrics.json").unlink(), "metrics.json missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_run_is_refused(copy: tuple[Path, Row], fault: str) -> None:
    folder, one = copy
    spoil, told = FAULTS[fault]
    spoil(folder)
    with pytest.raises(SegaeError, match=told):
        require_sound_run(folder, one)


def test_a_log_with_columns_for_validation_that_are_empty_is_sound(copy: tuple[Path, Row]) -> None:
    folder, one = copy
    edit_log(folder, lambda lines: [line.update(valid_loss="", miou="") for line in lines])
    require_sound_run(folder, one)


def test_a_run_to_choose_settings_must_not_have_read_the_test_split(copy: tuple[Path, Row]) -> None:
    folder, one = copy
    with pytest.raises(SegaeError, match="the choice was not blind"):
        require_sound_run(folder, {**one, "split": "val"})
    (folder / LEDGER).unlink()
    require_sound_run(folder, {**one, "split": "val"})


def test_a_normalisation_that_changes_on_the_way_is_found(copy: tuple[Path, Row], tmp_path: Path) -> None:
    folder, one = copy
    model_file = folder / "model.safetensors"
    encoder_file = Path(json.loads((folder / "config.json").read_text())["init"])
    require_same_normalisation(model_file, encoder_file, read_readings(folder))
    require_same_normalisation(model_file)  # as if from random weights: those of the architecture

    encoder, description = create_encoder("test_resnet", str(encoder_file))
    save_encoder(tmp_path / "encoder.safetensors", encoder, replace(description, mean=(0.4, 0.4, 0.4)))
    with pytest.raises(SegaeError, match=r"mean 0.4 0.4 0.4 .*encoder.safetensors: the network sees other colours"):
        require_same_normalisation(model_file, tmp_path / "encoder.safetensors")
    edit(folder / "config.json", lambda content: {**content, "init": str(tmp_path / "encoder.safetensors")})
    with pytest.raises(SegaeError, match="the network sees other colours"):
        require_sound_run(folder, one)

    readings = [replace(read_readings(folder)[0], std="0.1 0.1 0.1")]
    with pytest.raises(SegaeError, match=r"std 0.1 0.1 0.1 by the scoring in"):
        require_same_normalisation(model_file, encoder_file, readings)

    model, described = load_segmenter(model_file)
    save_segmenter(model_file, model, replace(described, std=(1.0, 1.0, 1.0)))
    for start in (encoder_file, None):
        with pytest.raises(SegaeError, match=r"std 1.0 1.0 1.0 by .*model.safetensors"):
            require_same_normalisation(model_file, start)


def test_the_ledger_holds_the_normalisation_that_was_used(finished: tuple[Path, Row]) -> None:
    reading = read_readings(finished[0])[0]
    _, description = load_segmenter(finished[0] / "model.safetensors")
    assert tuple(map(float, reading.mean.split())) == description.mean
    assert tuple(map(float, reading.std.split())) == description.std
    assert Path(reading.out).name == "test"


def test_a_ledger_that_cannot_be_written_to_stops_no_scoring(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LEDGER).mkdir()  # root may write into any file, but not into a folder
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    model = torch.nn.Linear(1, 1)
    note_reading(tmp_path / "model.safetensors", model, "pets", ["a"], (0.5,), (0.5,), tmp_path / "out")
    assert "is not recorded" in caplog.text
