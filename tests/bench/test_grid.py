"""The runs of a benchmark: every combination once, and an identity that follows what decides the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segae._settings import make_config
from segae.bench.grid import FURTHER_GRIDS, Contents, count_labels, hash_contents, make_runs, parse_variant
from segae.config import BenchConfig
from segae.data import open_dataset
from segae.errors import SegaeError
from segae.models import create_encoder, find_weights, save_encoder
from tests.fabricate import make_images, make_pets

TINY = {"encoders": "test_resnet", "weights": ["random", "random+denoise"], "labels": 1.0, "seeds": 1}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 8, 2, size=32)


def runs_of(root, *, read=True, **settings):
    config = make_config(BenchConfig, root, **{**TINY, **settings})
    dataset = open_dataset(root, classes=config.classes, merge=config.merge)
    return make_runs(config, dataset, hash_contents(config, dataset) if read else Contents())


def ids(root, **settings):
    return [run.run_id for run in runs_of(root, **settings)]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        *(({"labels": budget}, f"labels must .* got {budget}") for budget in (0, 0.0, 1.5, -3, 9, float("nan"))),
        *(({"schedules": text}, "schedules must .* got '") for text in ("3", "1+", "1+3+5", "0+0", "one+three", "1-3")),
        *(({"weights": text}, "weights must") for text in ("denoise", "+denoise", "random+ddep", "random@wide")),
        ({"weights": "random+denoize"}, "method must .*did you mean denoise"),
        ({"weights": "random+pseudo_masks:features"}, "weights must not start from random"),
        ({"weights": "random+pseudo_masks+decoder@linear"}, "weights must not take a decoder along"),
        ({"weights": "random+pseudo_masks+decoder", "decoders": "linear"}, "decoders must .* linear"),
        *(({name: ()}, f"{name} must") for name in ("weights", "schedules", "labels", "encoders")),
        ({"weights": "nowhere.safetensors"}, "weights must .*nowhere"),
        ({"method_args": {"denoise": {"sigma": -1}}}, "sigma must .* -1"),
    ],
)
def test_an_impossible_grid_is_refused_before_images_are_read(pets, settings, named):
    with pytest.raises(SegaeError, match=named):
        runs_of(pets, read=False, **settings)


def test_budgets_and_variants_are_read():
    assert [count_labels(one, 8) for one in (0.001, 1, 0.5, 7)] == [1, 1, 4, 7]
    assert [count_labels(one, 8) for one in (8, 1.0, 0.99)] == [None] * 3  # all
    file, ours = "me@lab/encoder.safetensors", "imagenet+pseudo_masks:features+decoder"
    for text in (file, "pets_pseudo_masks", ours, f"{file}+denoise", f"{file}+decoder"):
        for kind in ("", "frozen", "long"):
            weights, found = parse_variant(f"{text}@{kind}" if kind else text)
            assert (str(weights), found) == (text, kind)


def test_every_combination_is_one_run_with_the_same_seeds_and_steps_for_all(pets):
    runs = runs_of(pets, labels=[2, 1.0, 8], seeds=2, seed=5, decoders=["unet", "fpn"], schedules=["1+1", " 0 + 2 "])
    combinations = {(run.place, run.schedule, run.finetune["labels"], run.seed) for run in runs}
    assert len(runs) == len({run.run_id for run in runs}) == len(combinations) == 2 * 2 * 2 * 2 * 2
    assert {run.seed for run in runs} == {5, 6}
    assert {(run.finetune["labels"], run.finetune["epoch_images"]) for run in runs} == {(2, 8), (None, None)}
    pretrainings = [run.pretrain_id for run in runs if run.pretrain and run.finetune["decoder"] == "unet"]
    assert len(set(pretrainings)) == 2  # one per seed, for all budgets and schedules
    assert len({run.pretrain_id for run in runs_of(pets, weights="random+denoise", seeds=2, pretrain_seed=7)}) == 1


def test_a_kind_changes_the_fine_tuning_and_not_the_pretraining(pets):
    runs = runs_of(pets, weights=[f"random+denoise{kind}" for kind in ("", "@frozen", "@linear", "@long")])
    assert len({run.pretrain_id for run in runs}) == 1
    assert [run.schedule for run in runs] == [(1, 3), (4, 0), (4, 0), (1, 12)]
    assert [run.finetune["decoder"] for run in runs] == ["unet", "unet", "linear", "unet"]
    assert [run.finetune["bn_mode"] for run in runs] == [None, "strict", "strict", None]


@pytest.mark.parametrize("preset", ["sample", "full", "quick", "smp"])
def test_a_preset_adds_its_grids_unless_a_dimension_is_given(pets, preset):
    for settings, further in (({}, preset in FURTHER_GRIDS), ({"schedules": "1+1"}, False)):
        config = make_config(BenchConfig, pets, preset=preset, **settings)
        runs = make_runs(config, open_dataset(pets, merge=config.merge), Contents())
        assert any("@" in run.variant for run in runs) == further


def test_a_run_is_the_same_wherever_its_folders_are_and_however_it_is_computed(pets, tmp_path):
    before = ids(pets)
    assert ids(Path(shutil.copytree(pets, tmp_path / "elsewhere" / "renamed"))) == before
    how = {"device": "cuda:1", "threads": 3, "workers": 2, "cache": "none", "jobs": 2, "report": False}
    assert ids(pets, **how, devices=["cpu", "cpu"], out=tmp_path, experiment="other", engine="ray") == before


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"finetune": one}
            for one in ({"image_size": 96}, {"lr": 0.1}, {"loss": "dice"}, {"augment": False}, {"augment": "strong"})
        ),
        {"pretrain": {"augment": "light"}},
        *({"seed": 1}, {"precision": "bfloat16"}, {"max_steps": 3}, {"accumulate": 2}, {"decoders": "fpn"}),
        *({"schedules": "1+2"}, {"labels": 4}, {"merge": "foreground=pet+border"}, {"split": "val"}),
        *({"encoders": "test_convnext"}, {"pretrain": {"epochs": 3}}, {"pretrain_seed": 3}),
        {"method_args": {"denoise": {"sigma": 0.1}}},
    ],
)
def test_a_setting_that_decides_the_result_makes_other_runs(pets, settings):
    (random, denoised), (first, second) = ids(pets), ids(pets, **settings)
    assert denoised != second
    assert (random == first) == any("pretrain" in name or name == "method_args" for name in settings)


@pytest.mark.parametrize("change", ["train image", "test mask", "swapped masks", "unlabeled"])
def test_other_images_make_other_runs(pets, tmp_path, change):
    copy, more = Path(shutil.copytree(pets, tmp_path / "pets")), make_images(tmp_path / "more", 2)
    first, second, test = (f"annotations/trimaps/{name}.png" for name in ("Abyssinian_0", "beagle_1", "beagle_9"))
    if change == "train image":
        shutil.copy(more / "photo_000.jpg", copy / "images" / "Abyssinian_0.jpg")
    elif change == "test mask":
        shutil.copy(pets / first, copy / test)
    elif change == "swapped masks":
        shutil.copy(pets / first, copy / second)
        shutil.copy(pets / second, copy / first)
    (random, denoised), (first, second) = ids(pets), ids(copy, unlabeled=[more] if change == "unlabeled" else ())
    assert denoised != second
    assert (random == first) == (change == "unlabeled")


def test_an_augmentation_counts_by_its_content(pets, tmp_path):
    for name, kind in (("a", "HorizontalFlip"), ("b", "HorizontalFlip"), ("c", "VerticalFlip")):
        text = json.dumps({"transform": {"__class_fullname__": kind, "p": 0.5}})
        (tmp_path / f"{name}.json").write_text(text)
    first, same, other = (ids(pets, finetune={"augment": str(tmp_path / f"{name}.json")}) for name in "abc")
    assert first == same
    assert set(first).isdisjoint(other)
    assert ids(pets, finetune={"augment": True}) == ids(pets, finetune={"augment": "default"}) == ids(pets)


def test_a_weights_file_counts_by_its_content(pets, tmp_path):
    first, other = (save_encoder(create_encoder("test_resnet"), tmp_path / f"{name}.safetensors") for name in "ab")
    (run,) = runs_of(pets, weights=[str(first), str(shutil.copy(first, tmp_path / "c.safetensors"))])
    assert run.weights == str(first)
    assert ids(pets, weights=str(other)) != [run.run_id]
    runs = runs_of(pets, weights=["pets_pseudo_masks+decoder", "pets_pseudo_masks"], encoders="tf_efficientnet_lite0")
    assert {run.weights for run in runs} == {str(find_weights("pets_pseudo_masks"))}
    assert runs[0].run_id != runs[1].run_id
