"""Variants of arms, epochs with repetition, Dice and merged classes, from the command to the rows and their details."""

from __future__ import annotations

import csv
import gzip
import json
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from segae.cli import main
from segae.errors import SegaeError
from segae.models.encoder import create_encoder, load_encoder, save_encoder
from segae.tasks.arms import Arm, own_settings, parse_arm
from segae.tasks.compare import Compare, _keep, segment_folder
from segae.tasks.compare import run as compare
from segae.tasks.details import details_of
from segae.tasks.pretrain import Pretrain
from segae.tasks.pretrain import run as pretrain
from segae.tasks.rows import COLUMNS, add_per_image, make_row, read_json, read_rows, summary_table, write_rows
from segae.tasks.segment import Segment
from segae.tasks.segment import run as segment
from segae.tasks.settings import settings_of
from segae.training.run import seed_everything

ARMS = ("random", "random@frozen", "random@linear", "random@long")
SCORES = ("miou", "dice", "pixel_accuracy", "per_image_miou", "boundary_iou", "iou_pet")
SMALL = ["--encoder", "test_resnet", "--image-size", "64", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "9", "--test", "3", "--unlabelled", "2", "--size", "64"])
    return root


@pytest.fixture(scope="module")
def compared(pets, tmp_path_factory) -> Compare:
    out = tmp_path_factory.mktemp("compared")
    words = ["--labels", "4", "--epoch-images", "6", "--freeze-epochs", "1", "--epochs", "1", "--seeds", "0"]
    words += ["--merge", "foreground=pet+border", "--loss", "dice"]
    main(["compare", "--data", str(pets), "--out", str(out), "--arms", *ARMS, *words, *SMALL])
    settings = {"labels": 4, "epoch_images": 6, "epochs": 1, "merge": ("foreground=pet+border",), "loss": "dice"}
    return Compare(pets, out=out, encoder="test_resnet", image_size=64, batch_size=4, seeds=(0,), **settings)


def test_a_row_says_what_was_varied(compared):
    rows = read_rows(compared.out / "rows.csv")
    shown = [(row["decoder"], row["freeze_epochs"], row["epochs"], row["bn_mode"]) for row in rows]
    assert shown == [("unet", "1", "1", "train"), ("unet", "2", "0", "strict"), ("linear", "2", "0", "strict"),
                     ("unet", "1", "4", "train")]  # fmt: skip
    assert {(row["init"], row["epoch_images"], row["loss"], row["labels"]) for row in rows} == {
        ("random", "6", "dice", "4")
    }
    assert len({row["label_subset"] for row in rows}) == 1, "arms were trained on different images"
    assert [name for name in rows[0] if name.startswith("iou_")] == ["iou_background", "iou_foreground"]
    assert len({row["settings"] for row in rows}) == 4


def test_the_encoder_of_a_frozen_arm_is_the_one_that_it_started_from(compared):
    seed_everything(0)
    start = create_encoder("test_resnet", "random")[0].state_dict()
    for arm, same in zip(ARMS, (False, True, True, False), strict=True):
        folder = segment_folder(compared, arm, 0)
        trained = safetensors.torch.load_file(folder / "model.safetensors")
        assert all(torch.equal(trained[f"encoder.{name}"], value) for name, value in start.items()) is same, arm
        assert (folder / "curves.png").stat().st_size > 1000
        assert (folder / "sheet.png").stat().st_size > 1000


def test_details_are_those_of_the_run(compared):
    for row, arm in zip(read_rows(compared.out / "rows.csv"), ARMS, strict=True):
        details = details_of(segment_folder(compared, arm, 0), row)
        run = {"settings": row["settings"], "seed": "0"}
        for line in (*details.per_image, *details.confusion, *details.curve):
            assert line.items() >= run.items()
        phases = ["frozen"] * int(row["freeze_epochs"]) + ["full"] * int(row["epochs"])
        assert [line["phase"] for line in details.curve] == phases
        assert [line["epoch"] for line in details.curve] == [str(epoch + 1) for epoch in range(len(phases))]
        assert all(float(line["train_loss"]) > 0 and line["miou"] == line["valid_loss"] == "" for line in details.curve)
        pixels = {(line["truth"], line["prediction"]): line["pixels"] for line in details.confusion}
        assert sum(pixels.values()) == 3 * 64 * 64
        assert len(details.per_image) == 3
        for name in ("foreground", "background"):
            both = sum(line[f"intersection_{name}"] for line in details.per_image)
            assert both == pixels[name, name]
            either = sum(line[f"union_{name}"] for line in details.per_image)
            assert both / either == pytest.approx(float(row[f"iou_{name}"]), abs=1e-6)
    with gzip.open(compared.out / "per_image" / "compare.csv.gz", "rt") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * len(ARMS)
    assert {str(line["intersection_background"]) for line in details.per_image} <= {
        line["intersection_background"] for line in lines if line["settings"] == row["settings"]
    }


def test_every_epoch_has_as_many_images_as_were_asked_for(compared):
    with (segment_folder(compared, "random@long", 0) / "log.csv").open() as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["6"] * 5


@pytest.fixture
def meter(monkeypatch) -> pytest.MonkeyPatch:
    """A CPU that says that it draws 3,600 watts, a watt-hour in each second."""

    def read(powercap: Path) -> dict[str, tuple[float, float]]:
        return {"intel-rapl:0": (3600 * time.perf_counter(), 1e15)}

    monkeypatch.setattr("segae.training.power.read_cpu_energy", read)
    return monkeypatch


def no_meter(monkeypatch) -> None:
    monkeypatch.setattr("segae.training.power.read_cpu_energy", lambda powercap: {})


def test_rows_and_page_say_what_energy_was_used(pets, tmp_path, meter):
    words = [
        "--labels",
        "4",
        "--epochs",
        "1",
        "--seeds",
        "0",
        "--pretrain-epochs",
        "1",
        "--arms",
        "random",
        "ae:denoise",
    ]
    main(["compare", "--data", str(pets), "--out", str(tmp_path), *words, *SMALL])
    random, pretrained = read_rows(tmp_path / "rows.csv")
    for row in (random, pretrained):
        assert float(row["energy_wh"]) == pytest.approx(float(row["seconds"]), rel=0.1, abs=0.02)
    assert random["pretrain_energy_wh"] == ""
    assert 0 < float(pretrained["pretrain_energy_wh"]) == pytest.approx(float(pretrained["pretrain_seconds"]), abs=0.1)
    (folder,) = tmp_path.glob("pretrain-*")
    _, description = load_encoder(folder / "encoder.safetensors")
    found = json.loads((folder / "metrics.json").read_text())["energy_wh"]
    assert found == description.pretraining["energy_wh"] == float(pretrained["pretrain_energy_wh"])

    def page() -> str:
        main(["report", "--rows", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "page.html")])
        return (tmp_path / "page.html").read_text()

    said = page()
    assert "The rows hold no energy" not in said
    assert "Wh of fine-tuning" in said
    assert f">{float(pretrained['pretrain_energy_wh']):.2f}<" in said
    names = ("energy_wh", "pretrain_energy_wh", "init_source")
    older = [{name: value for name, value in row.items() if name not in names} for row in (random, pretrained)]
    write_rows(tmp_path / "rows.csv", older)
    assert "The rows hold no energy" in page()


@pytest.mark.parametrize("metered_to_the_end", [True, False])
def test_a_resumed_run_adds_up_its_energy_or_says_nothing(pets, tmp_path, meter, metered_to_the_end):
    def stop(row: dict) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt  # before this epoch is saved: the first one was

    config = Segment(pets, out=tmp_path / "run", encoder="test_resnet", image_size=64, batch_size=4, labels=4,
                     epochs=1, device="cpu")  # fmt: skip
    with meter.context() as patch:
        patch.setattr("segae.training.fit.print_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            segment(config)
    if not metered_to_the_end:
        no_meter(meter)
    segment(replace(config, resume=True))
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    with (tmp_path / "run" / "log.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["energy_wh"]) > 0
    if metered_to_the_end:
        parts = float(first["energy_wh"]) + float(second["energy_wh"])
        assert found["energy_wh"] == pytest.approx(parts)
        assert found["energy_wh"] == pytest.approx(found["seconds"], rel=0.1, abs=0.02)
    else:
        assert (second["energy_wh"], found["energy_wh"]) == ("", "")


def test_without_a_meter_the_log_has_no_column_of_energy(pets, tmp_path, monkeypatch):
    no_meter(monkeypatch)
    small = {"encoder": "test_resnet", "image_size": 64, "batch_size": 4, "epochs": 1, "device": "cpu"}
    pretrain(Pretrain((pets,), out=tmp_path / "run", objective="denoise", **small))
    with (tmp_path / "run" / "log.csv").open() as file:
        assert "energy_wh" not in next(csv.DictReader(file))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["energy_wh"] == ""


def test_a_row_names_where_the_first_weights_came_from(pets, tmp_path, compared):
    assert {row["init_source"] for row in read_rows(compared.out / "rows.csv")} == {"random initialisation"}
    source = "ImageNet, timm's timm/test_resnet.r160_in1k from the model hub"
    encoder, description = create_encoder("test_resnet")
    start = tmp_path / "encoder.safetensors"
    save_encoder(start, encoder, replace(description, init="imagenet", source=source))
    small = {"encoder": "test_resnet", "image_size": 64, "batch_size": 4, "epochs": 1, "device": "cpu"}
    for objective in ("denoise", "mask"):
        start = pretrain(Pretrain((pets,), tmp_path / objective, init=str(start), objective=objective, **small))
    segment(Segment(pets, tmp_path / "run", init=str(start), labels=4, **small))
    run = read_json(tmp_path / "run" / "metrics.json") | {"settings": "x"}
    assert run["init"] == "imagenet+ae:denoise+ae:mask"
    row = make_row(experiment="e", split="test", run=run, scores=dict.fromkeys(SCORES, 0.5))
    assert row["init_source"] == source


def test_a_run_that_is_not_finished_has_no_details(tmp_path):
    (tmp_path / "log.csv").write_text("epoch\n")
    with pytest.raises(SegaeError, match="holds no finished run"):
        details_of(tmp_path, {"settings": "x", "seed": "0"})


def test_validation_at_a_small_budget_leaves_the_test_split_closed(pets, tmp_path):
    words = ["--labels", "3", "--epoch-images", "5", "--epochs", "0", "--seeds", "0", "--split", "val", *SMALL]
    main(["compare", "--data", str(pets), "--out", str(tmp_path), "--arms", "random", "random@linear", *words])
    rows = read_rows(tmp_path / "rows.csv")
    assert [row["split"] for row in rows] == ["val"] * 2
    assert all(1 <= int(row["labels"]) <= 2 and 0 < float(row["miou"]) < 1 for row in rows)
    assert len({row["label_subset"] for row in rows}) == 1
    folder = next(tmp_path.glob("val-random-0-*"))
    details = details_of(folder, rows[0])
    assert details.per_image == details.confusion == ()
    assert all(0 < float(line["miou"]) < 1 and float(line["valid_loss"]) > 0 for line in details.curve)


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("imagenet@frozen", Arm("imagenet", "", "encoder", "frozen")),
        ("ae:mask@linear", Arm("random", "mask", "encoder", "linear")),
        ("imagenet+ae:mask+decoder@long", Arm("imagenet", "mask", "encoder+decoder", "long")),
    ],
)
def test_a_variant_stands_behind_the_arm(text, arm):
    assert parse_arm(text) == arm


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random@slow", "unknown variant 'slow'.*@frozen: .*@linear: .*@long: "),
        ("random@", "unknown variant ''"),
        ("ae:mask@long+decoder", "unknown variant 'long[+]decoder'.*the last part"),
        ("ae:mask+decoder@linear", "ae:mask@linear or ae:mask[+]decoder@frozen"),
        ("imgnet@long", "the arm 'imgnet' is unknown"),
    ],
)
def test_an_impossible_variant_is_refused_with_the_next_thing_to_type(text, message):
    with pytest.raises(SegaeError, match=message):
        parse_arm(text)


def test_a_frozen_arm_keeps_the_batchnorm_mode_that_was_asked_for():
    config = Compare(Path("pets"), bn_mode="eval", freeze_epochs=2, epochs=3)
    own = own_settings(config, parse_arm("random@frozen"))
    assert (own.bn_mode, own.freeze_epochs, own.epochs, own.decoder) == ("eval", 5, 0, "unet")
    assert own_settings(config, parse_arm("random")) is config


def fixed(root: Path) -> Compare:
    """A comparison of which everything that decides a run is written down here."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(4):
        cv2.imwrite(str(root / "images" / f"{index}.png"), np.zeros((8, 8, 3), np.uint8))
        cv2.imwrite(str(root / "masks" / f"{index}.png"), np.full((8, 8), index % 3, np.uint8))
    (root / "trainval.txt").write_text("0\n1\n2\n")
    (root / "test.txt").write_text("3\n")
    protocol = {"lr": 0.004, "lr_ratio": 1.0, "bn_mode": "train", "warmup": 0.3, "recalibrate": False}
    return Compare(root, classes=("ground", "thing", "edge"), labels=2, **protocol)


def test_the_runs_of_published_rows_are_still_the_same(tmp_path, monkeypatch):
    """A new setting that is left as it was must not make all runs other ones."""
    monkeypatch.setattr("segae.data.fingerprint._content_hash", lambda path: path.stem)  # encoders' bytes vary
    config = fixed(tmp_path / "data")
    assert settings_of(config, "random", 0) == ("184eca7f63", "43faf86d23")
    assert settings_of(config, "imagenet", 3) == ("817710adc9", "b0b066f219")
    assert settings_of(config, "random@long", 0) == settings_of(replace(config, epochs=12), "random", 0)


@pytest.mark.parametrize(("part", "index"), [("images", 0), ("masks", 1), ("masks", 3)])
def test_another_image_or_mask_of_the_same_name_makes_another_run(tmp_path, part, index):
    config = fixed(tmp_path / "data")
    before = settings_of(config, "random", 0)
    value = cv2.imread(str(tmp_path / "data" / part / f"{index}.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tmp_path / "data" / part / f"{index}.png"), (value + 1) % 3)
    assert settings_of(config, "random", 0)[0] == before[0]
    assert settings_of(config, "random", 0)[1] != before[1]


def test_a_pretraining_depends_on_what_its_images_show_and_on_no_mask(tmp_path):
    config = fixed(tmp_path / "data")
    for index in range(4):
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{index}.png"), np.full((8, 8, 3), index, np.uint8))
    before = settings_of(config, "ae:mask", 0)
    cv2.imwrite(str(tmp_path / "data" / "masks" / "0.png"), np.ones((8, 8), np.uint8))
    other_mask = settings_of(config, "ae:mask", 0)
    assert other_mask[0] == before[0]
    assert other_mask[1] != before[1]
    cv2.imwrite(str(tmp_path / "data" / "images" / "0.png"), np.full((8, 8, 3), 9, np.uint8))
    assert settings_of(config, "ae:mask", 0)[0] != before[0]


def test_what_is_new_makes_another_run(tmp_path):
    config = fixed(tmp_path / "data")
    others = [replace(config, **{name: value}) for name, value in (
        ("epoch_images", 3), ("epoch_images", 4), ("loss", "dice"), ("merge", ("all=thing+edge",)),
        ("merge", ("all=ground+thing",)))]  # fmt: skip
    digests = [settings_of(other, "random", 0) for other in (config, *others)]
    digests += [settings_of(config, f"random@{variant}", 0) for variant in ("frozen", "linear", "long")]
    assert len({fine for _, fine in digests}) == 9
    assert len({pretraining for pretraining, _ in digests}) == 1
    turned = replace(config, merge=("all=edge+thing",))
    assert settings_of(turned, "random", 0) == digests[4]


KEY = {"dataset": "d", "split": "test", "init": "random", "seed": "0", "labels": "4", "freeze_epochs": "1"}


def test_pixels_are_added_to_a_file_of_scores_alone(tmp_path):
    path = tmp_path / "per_image" / "e.csv.gz"
    rows = [{**KEY, "epochs": "3", "settings": name} for name in ("old", "new")]
    add_per_image(path, rows[0], [{"name": "a", "miou": "0.123456789"}])
    pixels = {"intersection_pet": "12", "union_pet": "15"}
    for _ in range(2):  # the second time in place of the first
        add_per_image(path, rows[1], [{"name": "a", "miou": 0.8, **pixels}])
    with gzip.open(path, "rt") as file:
        old, new = csv.DictReader(file)
    assert (old["miou"], old["intersection_pet"], old["settings"]) == ("0.123457", "", "old")
    assert (new["miou"], new["intersection_pet"], new["union_pet"]) == ("0.8", "12", "15")


def test_rows_join_a_file_that_is_older_than_some_columns(tmp_path, compared):
    run = json.loads((segment_folder(compared, "random", 0) / "metrics.json").read_text()) | {"settings": "x"}
    younger = ("epoch_images", "loss", "energy_wh", "source")
    older = {name: value for name, value in run.items() if name not in younger}
    row = make_row(experiment="e", split="test", run=older, scores=dict.fromkeys(SCORES, 0.5))
    assert (row["epoch_images"], row["loss"], row["label_subset"]) == ("", "cross_entropy", run["split_hash"])
    assert (row["energy_wh"], row["pretrain_energy_wh"], row["init_source"]) == ("", "", "")
    before = {name: "1" for name in (*COLUMNS, "iou_pet") if name not in ("epoch_images", "loss", "label_subset")}
    path = tmp_path / "rows.csv"
    write_rows(path, [before])
    write_rows(path, [*read_rows(path), row])
    first, second = read_rows(path)
    assert (first["loss"], first["label_subset"], first["iou_pet"]) == ("", "", "1")
    assert (second["loss"], second["settings"]) == ("cross_entropy", "x")


def test_the_summary_averages_seeds_and_nothing_else():
    base = {"init": "random", "transfer": "encoder", "encoder": "a", "decoder": "unet", "labels": "30"}
    base |= {"freeze_epochs": "1", "epochs": "3", "iou_pet": "0.4"}
    changes = [{}, {"labels": "300"}, {"encoder": "b"}, {"decoder": "linear"}, {"epochs": "12"}]
    rows = [
        base | change | {"miou": f"{0.1 * place + shift:.2f}"}
        for place, change in enumerate(changes, start=1)
        for shift in (-0.02, 0.02)
    ]
    lines = summary_table(rows).splitlines()[1:]
    assert [line.split()[-3:-1] for line in lines] == [["2", f"{0.1 * place:.3f}"] for place in (5, 4, 3, 2, 1)]


def test_a_row_that_another_process_has_added_is_not_added_again(tmp_path):
    config = replace(fixed(tmp_path / "data"), split="val")
    for settings in ("aaa", "aaa", "bbb"):
        _keep(
            config,
            tmp_path / "rows.csv",
            "random",
            0,
            {"experiment": config.experiment, "settings": settings, "miou": 1},
        )
    assert [row["settings"] for row in read_rows(tmp_path / "rows.csv")] == ["aaa", "bbb"]


def test_a_table_of_something_else_is_no_table_of_rows(tmp_path, capsys):
    config = fixed(tmp_path / "data")
    (tmp_path / "sales.csv").write_text("year,sum\n2026,3\n")
    with pytest.raises(SegaeError, match="no column experiment and no miou and no settings.*--rows"):
        compare(replace(config, rows=tmp_path / "sales.csv", arms=("random",), seeds=(0,)))
    assert (tmp_path / "sales.csv").read_text() == "year,sum\n2026,3\n"
