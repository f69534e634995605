"""The ways in which images reach a training: cached on disk, on the GPU, decoded in every epoch, streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import segae
from segae._settings import make_config
from segae.commands._data import choose_cache, load_unlabeled
from segae.config import PretrainConfig
from segae.data import SkippedFiles
from tests.fabricate import draw, make_images, make_shard, save

Settings = dict[str, Any]
pytestmark = pytest.mark.usefixtures("without_pictures")
CPU = torch.device("cpu")


def same_weights(one: Path, other: Path) -> bool:
    first, second = (safetensors.torch.load_file(path) for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def shard(shared: Path) -> Path:
    return make_shard(shared / "shards" / "part-000.tar", 12)


def test_pretraining_sees_the_same_images_by_every_way(pets: Path, tmp_path: Path, small: Settings) -> None:
    results = {
        cache: segae.pretrain(pets, out=tmp_path / cache, method="denoise", val_fraction=0.2, cache=cache, **small)
        for cache in ("disk", "gpu", "none")
    }
    disk = results["disk"]
    for cache, result in results.items():
        assert list(result.log["images"]) == list(disk.log["images"])
        # other crops in training; the same validation images, which lazy decoding gives nearly as the cache does
        assert list(result.log["valid_loss"]) == pytest.approx(list(disk.log["valid_loss"]), rel=0.15)
        for name in ("images", "split_hash"):
            assert result.encoder.info.pretraining[name] == disk.encoder.info.pretraining[name]
        assert json.loads((tmp_path / cache / "metrics.json").read_text())["cache"] == cache


def test_fine_tuning_learns_by_every_way(pets: Path, tmp_path: Path, small: Settings) -> None:
    settings = small | {"batch_size": 4, "val_fraction": 0.3, "recalibrate": True}
    caches = ("disk", "gpu", "none")
    expected, *others = (segae.finetune(pets, out=tmp_path / one, cache=one, **settings).log for one in caches)
    for seen in others:
        assert list(seen["images"]) == list(expected["images"])
        assert list(seen["train_loss"]) == pytest.approx(list(expected["train_loss"]), rel=0.15)


def test_lazy_decoding_replaces_and_lists_what_it_cannot_read(tmp_path: Path, small: Settings) -> None:
    folder = make_images(tmp_path / "images", 9)
    (folder / "broken.jpg").write_bytes(b"no picture")
    settings = small | {"method": "denoise", "cache": "none", "val_fraction": 0.0}
    result = segae.pretrain(folder, out=tmp_path / "run", **settings)
    assert list(result.log["images"]) == [10]
    assert "broken.jpg" in (tmp_path / "run" / "skipped.csv").read_text()


def test_workers_change_no_weight_of_a_lazy_training(pets: Path, tmp_path: Path, small: Settings) -> None:
    for workers in (0, 1):
        settings = small | {"method": "denoise", "cache": "none", "workers": workers}
        segae.pretrain(pets, out=tmp_path / f"{workers}", **settings)
    assert same_weights(*(tmp_path / f"{workers}" / "encoder.safetensors" for workers in (0, 1)))


def test_a_stream_pretrains_and_resumes(
    shard: Path, tmp_path: Path, small: Settings, interrupt: Callable[[int], None]
) -> None:
    pytest.importorskip("webdataset", reason="the extra 'streaming' is not installed")
    settings = small | {"method": "denoise", "epoch_images": 8, "batch_size": 4, "epochs": 2, "workers": 0}
    whole = segae.pretrain(shard, out=tmp_path / "whole", **settings)
    assert list(whole.log["images"]) == [8, 8]
    past = whole.encoder.info.pretraining
    assert (past["images"], past["images_seen"]) == (8, 16)
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        segae.pretrain(shard, out=tmp_path / "parts", **settings)
    parts = segae.pretrain(shard, out=tmp_path / "parts", resume=True, **settings)
    assert list(parts.log["train_loss"]) == list(whole.log["train_loss"])
    assert same_weights(whole.path, parts.path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "disk"}, "cache must be none for a stream, got disk"),
        ({"patience": 3}, "patience must be None for a stream.*got 3"),
        ({"repeats": 2}, "repeats must be 1 for a stream, got 2"),
        ({"data": ["pets", "a.tar"]}, "data must be"),
        ({"data": "pipe:touch ran #.tar"}, "data must be .*pipe"),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused(
    pets: Path, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").symlink_to(pets)
    (tmp_path / "a.tar").symlink_to(shard)
    with pytest.raises(segae.SegaeError, match=message):
        segae.pretrain(**({"data": shard, "encoder": "test_resnet", "image_size": 64} | settings))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "segae-cache") == ["a.tar", "pets"]


@pytest.mark.parametrize("cache", ["disk", "none"])
@pytest.mark.parametrize(("method", "whole"), [("pseudo_masks", True), ("denoise", False)])
def test_only_methods_that_crop_by_themselves_get_whole_images(
    tmp_path: Path, method: str, whole: bool, cache: str
) -> None:
    folder, size = tmp_path / "images", 32
    folder.mkdir()
    for index in range(6):
        image = draw(np.random.default_rng(index), size)[0] // 2
        image[[0, -1]] = image[:, [0, -1]] = 255  # a white frame, which a crop loses on one side at least
        save(image, folder / f"{index}.png")
    info = segae.create_encoder("test_resnet").info
    settings = {"image_size": size, "val_fraction": 0.0, "cache": cache, "method": method}
    config = make_config(PretrainConfig, folder, **settings)
    train = load_unlabeled(config, info, segae.create_method(method), CPU, SkippedFiles()).train
    framed = [
        all(bool((edge > 0.8).all()) for edge in (image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]))
        for image in (train[index] for index in range(6))
    ]
    assert framed.count(True) == (6 if whole else 0)


def test_auto_keeps_images_on_a_gpu_that_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    (tmp_path / "image.jpg").touch()
    gpu, out = torch.device("cuda", 0), tmp_path / "run"

    def choose(need: int, device: torch.device, **settings: Any) -> str:
        return choose_cache(make_config(PretrainConfig, tmp_path, out=out, **settings), need, device)

    assert choose(200, gpu) == "gpu"
    assert choose(300, gpu) == "disk"
    assert choose(200, gpu, workers=4) == "disk"
    assert choose(200, CPU) == "disk"
    assert choose(200, gpu, cache="none") == "none"
    out.mkdir()  # a resumed run keeps what it began with, also where the GPU is full now
    (out / "config.json").write_text(json.dumps({"task": "pretrain", "run": {"cache": "gpu"}}))
    assert choose(300, gpu, resume=True) == "gpu"
    assert choose(300, gpu) == "disk"
    with pytest.raises(segae.SegaeError, match="workers must be 0"):
        choose(200, gpu, resume=True, workers=1)
    monkeypatch.setattr("segae.commands._data.gather_objects", lambda value: [value, False])  # another rank's is full
    assert choose(200, gpu) == "disk"


def test_download_names_the_splits(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="segae")
    monkeypatch.setattr("segae.commands.data.download_pets", lambda root: pets)
    assert segae.download("pets", root=tmp_path / "pets") == pets
    assert "14 train images" in caplog.text
    with pytest.raises(segae.SegaeError, match="name must be one of pets, fashion_mnist, got 'cats'"):
        segae.download("cats")


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["gpu", "disk"])
def test_a_gpu_comes_near_the_cpu(pets: Path, tmp_path: Path, small: Settings, cache: str) -> None:
    """Bfloat16 and another order of sums: near, not equal."""
    settings = small | {"device": "cuda", "cache": cache, "val_fraction": 0.2}
    first = segae.pretrain(pets, out=tmp_path / "p", method="denoise", **settings)
    second = segae.pretrain(
        pets, out=tmp_path / "c", method="denoise", **(settings | {"device": "cpu", "cache": "disk"})
    )
    assert list(first.log["valid_loss"]) == pytest.approx(list(second.log["valid_loss"]), rel=0.25)
    result = segae.finetune(pets, out=tmp_path / "f", weights=first.path, **settings)
    assert result.log["train_loss"].iloc[-1] < result.log["train_loss"].iloc[0]
