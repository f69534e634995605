"""The runs of a benchmark: every combination once, and an identity that follows what decides the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segae._settings import make_config
from segae.bench.grid import (
    FURTHER_GRIDS,
    Contents,
    Run,
    count_labels,
    hash_contents,
    make_runs,
    parse_variant,
    read_schedule,
)
from segae.config import PRESETS, BenchConfig
from segae.data import open_dataset
from segae.errors import SegaeError
from segae.models import create_encoder, find_weights, save_encoder
from tests.fabricate import make_images, make_pets

TINY: dict[str, Any] = {"encoders": "test_resnet", "weights": ["random", "random+denoise"], "labels": 1.0, "seeds": 1}


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 2 test images."""
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 8, 2, size=32)


def runs_of(root: Path, *, read: bool = True, **settings: Any) -> list[Run]:
    config = make_config(BenchConfig, root, **{**TINY, **settings})
    dataset = open_dataset(root, classes=config.classes, merge=config.merge)
    return make_runs(config, dataset, hash_contents(config, dataset) if read else Contents())


def ids(*where: Path, **settings: Any) -> list[str]:
    return [run.run_id for run in runs_of(*where, **settings)]


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(0.001, 1))
def test_a_budget_is_a_count_or_a_share_of_at_least_one_image(count: int, available: int, share: float) -> None:
    if count > available:
        with pytest.raises(SegaeError, match=rf"labels must .*{available}.* got {count}"):
            count_labels(count, available)
    else:
        assert count_labels(count, available) == (None if count == available else count)
    taken = count_labels(share, available) or available
    assert 1 <= taken <= available
    assert abs(taken - max(1, share * available)) <= 0.51


@pytest.mark.parametrize("budget", [0, 0.0, 1.5, -3, float("nan"), 11])
def test_an_impossible_budget_is_refused(budget: float) -> None:
    with pytest.raises(SegaeError, match=f"labels must be .* got {budget}"):
        count_labels(budget, 10)


@pytest.mark.parametrize("text", ["3", "1+", "1+3+5", "0+0", "one+three", "1-3", ""])
def test_an_impossible_schedule_is_refused(text: str) -> None:
    assert read_schedule(" 1 + 3 ") == (1, 3)
    with pytest.raises(SegaeError, match="schedules must be .* got '"):
        read_schedule(text)


@pytest.mark.parametrize(
    ("text", "start", "method", "transfer", "kind"),
    [
        ("random", "random", "", "encoder", ""),
        ("imagenet+pseudo_masks:features+decoder@frozen", "imagenet", "pseudo_masks", "encoder+decoder", "frozen"),
        ("pets_pseudo_masks+decoder", "pets_pseudo_masks", "", "encoder+decoder", ""),
        ("me@lab/encoder.safetensors+denoise", "me@lab/encoder.safetensors", "denoise", "encoder", ""),
        ("me@lab/encoder.safetensors@long", "me@lab/encoder.safetensors", "", "encoder", "long"),
    ],
)
def test_a_variant_is_read(text: str, start: str, method: str, transfer: str, kind: str) -> None:
    weights, found = parse_variant(text)
    assert (weights.start, weights.method, weights.transfer, found) == (start, method, transfer, kind)


@pytest.mark.parametrize(
    "text",
    [
        *("random@wide", "random+denoize", "denoise", "random+ddep", "random+pseudo_masks:features", "+denoise"),
        "random+pseudo_masks+decoder@linear",
    ],
)
def test_an_impossible_variant_is_refused_by_name(text: str) -> None:
    with pytest.raises(SegaeError, match="(weights|method) must .*(denoi|rand|ddep)"):
        parse_variant(text)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weights": ["nowhere.safetensors"]}, "nowhere"),
        ({"weights": ()}, "weights must"),
        ({"schedules": ()}, "schedules must"),
        ({"labels": 9}, "labels must .* 9"),
        ({"weights": ["random+pseudo_masks+decoder"], "decoders": "linear"}, "decoders must .* linear"),
        ({"method_args": {"denoise": {"sigma": -1}}}, "sigma must .* -1"),
    ],
)
def test_an_impossible_grid_is_refused_before_images_are_read(pets: Path, settings: Any, named: str) -> None:
    with pytest.raises(SegaeError, match=named):
        runs_of(pets, read=False, **settings)


def test_every_combination_is_one_run_with_the_same_seeds_and_steps_for_all(pets: Path) -> None:
    runs = runs_of(pets, labels=[2, 1.0, 8], seeds=2, seed=5, decoders=["unet", "fpn"], schedules=["1+1", "0+2"])
    assert len(runs) == len({run.run_id for run in runs}) == 2 * 2 * 2 * 2 * 2
    assert {(run.finetune["labels"], run.finetune["epoch_images"]) for run in runs} == {(2, 8), (None, None)}
    seeds: dict[Any, list[int]] = {}
    for run in runs:
        seeds.setdefault((run.place, run.schedule, run.finetune["labels"]), []).append(run.seed)
    assert {tuple(one) for one in seeds.values()} == {(5, 6)}
    assert [run.variant for run in runs[:4]] == ["random", "random", "random+denoise", "random+denoise"]


def test_a_kind_changes_the_fine_tuning_and_not_the_start(pets: Path) -> None:
    weights = [f"random+denoise{kind}" for kind in ("", "@frozen", "@linear", "@long")]
    plain, frozen, linear, long = runs_of(pets, weights=weights, schedules="1+3")
    assert len({run.pretrain_id for run in (plain, frozen, linear, long)}) == 1
    assert [run.schedule for run in (plain, frozen, linear, long)] == [(1, 3), (4, 0), (4, 0), (1, 12)]
    assert [run.finetune["decoder"] for run in (plain, frozen, linear, long)] == ["unet", "unet", "linear", "unet"]
    assert frozen.finetune["bn_mode"] == "strict"


def test_a_pretraining_serves_all_budgets_and_each_seed_has_its_own_unless_one_is_named(pets: Path) -> None:
    runs = runs_of(pets, weights="random+denoise", labels=[2, 1.0], seeds=2)
    assert [run.pretrain_id for run in runs[:2]] == [run.pretrain_id for run in runs[2:]]
    assert runs[0].pretrain_id != runs[1].pretrain_id
    assert len({run.pretrain_id for run in runs_of(pets, weights="random+denoise", seeds=2, pretrain_seed=7)}) == 1


@pytest.mark.parametrize("preset", ["sample", "full", "quick", "smp"])
def test_a_preset_adds_its_grids_unless_a_dimension_is_given(pets: Path, preset: str) -> None:
    def plan(**settings: Any) -> list[Run]:
        config = make_config(BenchConfig, pets, preset=preset, **settings)
        return make_runs(config, open_dataset(pets, merge=config.merge), Contents())

    runs, further = plan(), FURTHER_GRIDS.get(preset, ())
    assert {run.variant for run in runs} >= set(PRESETS[preset].get("weights", BenchConfig().weights))
    assert any("@" in run.variant for run in runs) == bool(further)
    assert not any("@" in run.variant for run in plan(schedules="1+1"))


def test_a_run_is_the_same_wherever_its_folders_are_and_however_it_is_computed(pets: Path, tmp_path: Path) -> None:
    before = ids(pets)
    moved = Path(shutil.copytree(pets, tmp_path / "elsewhere" / "renamed"))
    assert ids(moved) == before
    how = {"device": "cuda:1", "threads": 3, "workers": 2, "cache": "none", "jobs": 2, "devices": ["cpu", "cpu"]}
    assert ids(pets, **how, out=tmp_path, experiment="other", engine="ray", report=False) == before


@pytest.mark.parametrize(
    "settings",
    [
        *({"finetune": one} for one in ({"image_size": 96}, {"lr": 0.1}, {"loss": "dice"}, {"augment": False})),
        *({"seed": 1}, {"precision": "bfloat16"}, {"max_steps": 3}, {"accumulate": 2}, {"decoders": "fpn"}),
        *({"schedules": "1+2"}, {"labels": 4}, {"merge": "foreground=pet+border"}, {"split": "val"}),
        {"encoders": "test_convnext"},
    ],
)
def test_a_setting_that_decides_the_result_makes_other_runs(pets: Path, settings: dict[str, Any]) -> None:
    assert not set(ids(pets, **settings)) & set(ids(pets))


@pytest.mark.parametrize(
    "settings", [{"pretrain": {"epochs": 3}}, {"method_args": {"denoise": {"sigma": 0.1}}}, {"pretrain_seed": 3}]
)
def test_a_setting_of_the_pretraining_leaves_other_runs_alone(pets: Path, settings: dict[str, Any]) -> None:
    (random, denoised), (first, second) = ids(pets), ids(pets, **settings)
    assert random == first
    assert denoised != second


@pytest.mark.parametrize("change", ["train image", "test mask", "swapped masks", "unlabeled"])
def test_other_images_make_other_runs(pets: Path, tmp_path: Path, change: str) -> None:
    before = ids(pets)
    copy = Path(shutil.copytree(pets, tmp_path / "pets"))
    masks = sorted((copy / "annotations" / "trimaps").iterdir())
    if change == "train image":
        shutil.copy(make_images(tmp_path / "more", 1) / "photo_000.jpg", copy / "images" / "Abyssinian_0.jpg")
    elif change == "test mask":
        shutil.copy(masks[0], copy / "annotations" / "trimaps" / "beagle_9.png")
    elif change == "swapped masks":
        contents = [mask.read_bytes() for mask in masks[:2]]
        for mask, content in zip(masks[:2], reversed(contents), strict=True):
            mask.write_bytes(content)
    else:
        more = make_images(tmp_path / "more", 2)
        assert ids(copy, unlabeled=[more])[0] == before[0]
        assert ids(copy, unlabeled=[more])[1] != before[1]
        return
    assert not set(ids(copy)) & set(before)


def test_a_weights_file_counts_by_its_content(pets: Path, tmp_path: Path) -> None:
    encoder = create_encoder("test_resnet")
    first = save_encoder(encoder, tmp_path / "first" / "encoder.safetensors")
    second = Path(shutil.copy(first, tmp_path / "copied.safetensors"))
    (run,) = runs_of(pets, weights=[str(first), str(second)])
    assert run.weights == str(first)
    other = save_encoder(create_encoder("test_resnet"), tmp_path / "other.safetensors")
    assert ids(pets, weights=str(other)) != [run.run_id]
    (pretrained,) = runs_of(pets, weights=f"{first}+denoise")
    assert pretrained.pretrain["weights"] == str(first)


def test_published_weights_are_found_by_name(pets: Path) -> None:
    runs = runs_of(pets, weights=["pets_pseudo_masks+decoder", "pets_pseudo_masks"], encoders="tf_efficientnet_lite0")
    assert {run.weights for run in runs} == {str(find_weights("pets_pseudo_masks").absolute())}
    assert [run.finetune["transfer"] for run in runs] == ["encoder+decoder", "encoder"]
    assert runs[0].run_id != runs[1].run_id
