"""Settings: every number has a range, every name is a name, and what is unknown is refused with the nearest."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import segae
from segae import config
from segae._settings import make_config, nest
from segae.config import (
    BenchConfig,
    EvaluateConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    TrainerConfig,
)

CONFIGS = [kind for kind in vars(config).values() if is_dataclass(kind)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "masks").mkdir()
    (tmp_path / "image.jpg").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (PretrainConfig, "lr", float("nan")),
        (PretrainConfig, "lr", 0),
        (PretrainConfig, "distance_penalty", float("nan")),
        (PretrainConfig, "image_size", 1_000_000),
        (PretrainConfig, "image_size", 7),
        (PretrainConfig, "epochs", 0),
        (PretrainConfig, "epochs", "three"),
        (PretrainConfig, "epochs", 2.5),
        (PretrainConfig, "batch_size", 0),
        (PretrainConfig, "val_fraction", 1.0),
        (PretrainConfig, "hard_mask_fraction", 1.1),
        (PretrainConfig, "warmup", 0),
        (PretrainConfig, "bn_mode", "strict"),
        (PretrainConfig, "upsampling", "nearst"),
        (PretrainConfig, "encoder", "x" * 300),
        (PretrainConfig, "encoder", "bad\nname"),
        (PretrainConfig, "out", "x" * 300),
        (PretrainConfig, "out", "zero\0"),
        (PretrainConfig, "out", 3),
        (PretrainConfig, "resume", "yes"),
        (PretrainConfig, "seed", 10**20),
        (PretrainConfig, "seed", -1),
        (PretrainConfig, "threads", 10**6),
        (PretrainConfig, "workers", -1),
        (PretrainConfig, "max_steps", 0),
        (PretrainConfig, "cache", "ram"),
        (PretrainConfig, "probe", "nowhere"),
        (FinetuneConfig, "labels", 1.5),
        (FinetuneConfig, "labels", 0),
        (FinetuneConfig, "weights", "nowhere/encoder.safetensors"),
        (FinetuneConfig, "transfer", "decoder"),
        (FinetuneConfig, "classes", ("a", "")),
        (BenchConfig, "labels", (0.1, 1.5)),
        (BenchConfig, "experiment", "../../x"),
        (BenchConfig, "experiment", "x" * 300),
        (BenchConfig, "seeds", 0),
        (BenchConfig, "preset", "huge"),
        (BenchConfig, "shard", "5/4"),
        (BenchConfig, "shard", "1"),
        (BenchConfig, "unlabeled", ("ftp://place/x",)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(folder: Path, kind: type, setting: str, value: Any) -> None:
    with pytest.raises(segae.SegaeError, match=f"^{setting} must be"):
        make_config(kind, folder, **{setting: value})


REQUIRED = ("data", "images", "rows", "model", "query", "detector", "files")


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range_and_every_default_is_in_it(kind: type, folder: Path) -> None:
    for one in fields(kind):
        accepted = kind.TYPES[one.name]
        assert ("low" in one.metadata) == bool(accepted.kinds & {int, float}), one.name
    required = {one.name: folder for one in fields(kind) if one.name in REQUIRED}
    kind(**required)


def test_unknown_settings_are_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(segae.SegaeError, match="epoch is not a setting of FinetuneConfig; did you mean epochs"):
        make_config(FinetuneConfig, folder, epoch=3)
    with pytest.raises(segae.SegaeError, match="sead is not a setting of TrainerConfig; did you mean seed"):
        make_config(FinetuneConfig, folder, trainer={"sead": 3})
    with pytest.raises(segae.SegaeError, match="settings of FinetuneConfig must be given by name"):
        make_config(FinetuneConfig, folder, "out")
    for kind in (FinetuneConfig, PretrainConfig, EvaluateConfig, ReportConfig):
        with pytest.raises(segae.SegaeError, match="must be given"):
            make_config(kind)


def test_settings_of_the_trainer_may_stand_beside_the_others(folder: Path) -> None:
    flat = make_config(FinetuneConfig, folder, seed=3, device="cpu")
    assert flat.trainer == TrainerConfig(seed=3, device="cpu")
    mixed = make_config(FinetuneConfig, folder, trainer=TrainerConfig(seed=3), device="cpu")
    nested = make_config(FinetuneConfig, folder, trainer={"seed": 3, "device": "cpu"})
    assert mixed == nested == flat


def test_presets_and_nested_settings_of_a_benchmark(folder: Path) -> None:
    plain = make_config(BenchConfig, folder)
    assert (plain.pretrain.image_size, plain.finetune.image_size, plain.labels) == (96, 128, (0.1, 0.3, 1.0))
    smp = make_config(BenchConfig, folder, preset="smp", finetune={"lr": 0.01})
    assert (smp.finetune.lr, smp.finetune.loss, smp.decoders) == (0.01, "dice", ("fpn",))
    quick = make_config(BenchConfig, preset="quick", labels=[8])
    assert (quick.labels, quick.pretrain.epochs, quick.pretrain.lr) == ((8,), 3, None)
    with pytest.raises(segae.DataError, match="data must be .*preset is own, got none"):
        make_config(BenchConfig)
    for name in config.PRESETS:
        make_config(BenchConfig, folder, preset=name)


def test_a_config_as_a_dict_makes_the_same_config(folder: Path) -> None:
    for kind, settings in ((BenchConfig, {"preset": "full", "seed": 3}), (PretrainConfig, {"method_args": {"a": 1}})):
        made = make_config(kind, folder, **settings)
        assert kind(**nest(kind, asdict(made))) == made


def test_verbs_show_the_settings_as_their_signature() -> None:
    shown = inspect.signature(segae.pretrain).parameters
    assert list(shown)[:1] == ["data"]
    assert shown["image_size"].default == 128
    assert all(shown[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("method", "trainer", "resume"))
    assert list(inspect.signature(segae.evaluate).parameters)[:2] == ["model", "data"]
    assert set(inspect.signature(segae.finetune).parameters) == {one.name for one in fields(FinetuneConfig)}
    assert {one.name for one in fields(config.PredictConfig)} == set(inspect.signature(segae.predict).parameters)


@pytest.mark.parametrize("name", ["data", "probe", "weights"])
def test_a_wrong_path_is_refused_with_a_neighbor_of_almost_the_same_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "encoder.safetensors").touch()
    wrong = tmp_path / ("encoders.safetensors" if name == "weights" else "photo")
    with pytest.raises(segae.SegaeError, match=f"^{name} must be .*did you mean (photos|encoder.safetensors)"):
        make_config(PretrainConfig, **{"data": tmp_path / "photos", name: wrong})
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(segae.DataError, match="data must hold images, got the empty folder"):
        make_config(PretrainConfig, tmp_path / "empty")
    with pytest.raises(segae.DataError, match=r"data must be an existing folder.*a.jpg, a file"):
        make_config(FinetuneConfig, tmp_path / "photos" / "a.jpg")
    assert make_config(PretrainConfig, "hf://owner/name?split=train").roots == ("hf://owner/name?split=train",)
