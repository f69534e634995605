"""``segae.extract_features``: equal to a plain forward pass, in order, resumable, in every file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import segae
from segae import cli
from segae.applications import features as module
from segae.config import DEFAULT_ENCODER
from tests.fabricate import make_images

SIZE = 64


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    return segae.save_encoder(segae.create_encoder("test_resnet"), path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_images(tmp_path / "photos", 11, size=SIZE, extension="png")


def extract(images: object, encoder: object, **settings: object) -> segae.Features:
    return segae.extract_features(images, encoder, **{"image_size": SIZE, "device": "cpu"} | settings)


def by_hand(photos: Path, encoder: Path, layer: int, pool: str) -> np.ndarray:
    model = segae.load_encoder(encoder).eval()
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(photos.glob("*.png"))])
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (model.info.mean, model.info.std))
    with torch.no_grad():
        maps = model((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)[layer]
    pooled = {
        "avg": lambda: maps.mean((2, 3)),
        "max": lambda: maps.flatten(2).max(2).values,
        "gem": lambda: (maps.clamp(min=1e-6) ** 3).mean((2, 3)) ** (1 / 3),
        "none": lambda: maps,
    }
    return pooled[pool]().numpy()


@pytest.mark.parametrize(("layer", "pool"), [(-1, "avg"), (5, "max"), (3, "gem"), (-2, "none")])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_values_are_those_of_a_plain_forward_pass(
    photos: Path, encoder: Path, layer: int, pool: str, batch_size: int
) -> None:
    found = extract(photos, encoder, layer=layer, pool=pool, batch_size=batch_size)
    expected = by_hand(photos, encoder, layer, pool)
    assert found.values.dtype == np.float32
    assert found.values.shape == expected.shape
    assert np.abs(found.values - expected).max() < 1e-5 * expected.std()
    assert list(found.names) == sorted(map(str, photos.glob("*.png")))


def test_arrays_objects_and_other_models_are_taken_too(photos: Path, encoder: Path, tmp_path: Path) -> None:
    expected = extract(photos, encoder).values
    arrays = [np.asarray(Image.open(path)) for path in sorted(photos.glob("*.png"))]
    model = segae.load_encoder(encoder)
    assert np.allclose(extract(arrays, model).values, expected, atol=1e-6)
    assert np.allclose(extract(arrays[0], model).values, expected[:1], atol=1e-6)
    segmenter = segae.create_segmenter(model, num_classes=2)
    file = segae.save_segmenter(segmenter, tmp_path / "model.safetensors")
    assert np.array_equal(extract(photos, file).values, expected)
    assert extract(photos, "pets_pseudo_masks").values.shape == (11, 320)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ending", [".npz", ".parquet", ".safetensors", ".npy"])
def test_every_format_gives_back_values_and_names(
    photos: Path, encoder: Path, tmp_path: Path, ending: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "photo_003.png").write_bytes(b"broken")
    out = tmp_path / "new" / f"features{ending}"
    assert extract(photos, encoder, out=out, dtype=dtype, batch_size=4) == out
    expected, found = extract(photos, encoder, dtype=dtype), segae.Features.load(out)
    assert np.array_equal(found.values, expected.values)
    assert found.values.dtype == dtype
    assert found.names == expected.names
    assert len(found) == 10
    assert "photo_003.png" in caplog.text
    assert not list(out.parent.glob("*.partial"))
    with pytest.raises(segae.SegaeError, match="overwrite=True"):
        extract(photos, encoder, out=out)
    assert isinstance(found.values, np.memmap) == (ending == ".npy")
    again = segae.Features.load(expected.save(tmp_path / f"saved{ending}"))
    assert (again.names, again.values.tolist()) == (expected.names, expected.values.tolist())


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_dense_maps_are_written_too(photos: Path, encoder: Path, tmp_path: Path, ending: str) -> None:
    out = extract(photos, encoder, pool="none", layer=4, out=tmp_path / f"maps{ending}")
    assert np.array_equal(segae.Features.load(out).values, extract(photos, encoder, pool="none", layer=4).values)


@pytest.mark.parametrize("lost", ["", "values.npy", "progress.json"])
def test_an_interrupted_call_continues(
    photos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    (photos / "photo_001.png").write_bytes(b"broken")
    out, read, real = tmp_path / "features.npz", [], module.read_resized

    def stop(path: Path, size: int) -> np.ndarray:
        if path.name == "photo_009.png":
            raise KeyboardInterrupt
        return real(path, size)

    monkeypatch.setattr(module, "read_resized", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(photos, encoder, out=out, batch_size=4)
    if lost:
        (tmp_path / "features.npz.partial" / lost).unlink()
    monkeypatch.setattr(module, "read_resized", lambda path, size: read.append(path.name) or real(path, size))
    extract(photos, encoder, out=out, batch_size=4)
    expected_reads = ["photo_008.png", "photo_009.png", "photo_010.png"]
    assert sorted(read) == (sorted(path.name for path in photos.iterdir()) if lost else expected_reads)
    found, expected = segae.Features.load(out), extract(photos, encoder)
    assert np.array_equal(found.values, expected.values)
    assert found.names == expected.names


def test_a_file_that_another_process_writes_is_left_alone(photos: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    with FileLock(f"{out}.lock"), pytest.raises(segae.SegaeError, match="out must not be in use"):
        extract(photos, encoder, out=out)
    assert len(segae.Features.load(extract(photos, encoder, out=out))) == 11
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["features.npz"]


def test_another_encoder_or_image_starts_again(
    photos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "features.npz", module._write
    monkeypatch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(segae.SegaeError, match="No space left"):
        extract(photos, encoder, out=out)
    monkeypatch.setattr(module, "_write", real)
    torch.manual_seed(1)
    other = segae.create_encoder("test_resnet")
    Image.fromarray(np.full((SIZE, SIZE, 3), 7, np.uint8)).save(photos / "photo_000.png")
    assert np.array_equal(segae.Features.load(extract(photos, other, out=out)).values, extract(photos, other).values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 0}, "layer must be one of 1, 2, 3, 4, 5 or -1, got 0"),
        ({"layer": 6}, r"layer must be an integer in \[-5, 5\], got 6"),
        ({"pool": "sum"}, "pool must be one of auto, avg, max, gem, flatten, none, got .*sum"),
        ({"image_size": 65}, "image_size must be a multiple of the stride 32, got 65"),
        ({"out": "features.csv"}, r"out must end with \.npz"),
        ({"out": "maps.parquet", "pool": "none"}, "dense maps"),
        ({"encoder": "no_such_name"}, "encoder must be an existing .safetensors file or a published name"),
        ({"encoder": "timm:resnot18"}, "encoder must be a network of timm.*resnet18"),
        ({"images": "no_such_folder"}, "no_such_folder"),
    ],
)
def test_bad_settings_are_named(photos: Path, encoder: Path, settings: dict[str, object], message: str) -> None:
    given = {"images": photos, "encoder": encoder} | settings
    with pytest.raises(segae.SegaeError, match=message):
        extract(given.pop("images"), given.pop("encoder"), **given)


def test_the_default_encoder_is_that_of_the_commands() -> None:
    assert module.open_encoder("imagenet").info.architecture == DEFAULT_ENCODER


@pytest.mark.parametrize("ending", [".npz", ".npy", ".safetensors", ".parquet"])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, ending: str) -> None:
    (tmp_path / "taken").write_text("no folder")
    features = segae.Features(np.zeros((2, 3), np.float32), ("a", "b"))
    with pytest.raises(segae.SegaeError, match="could not be written"):
        features.save(tmp_path / "taken" / f"features{ending}")
    assert len(segae.Features.load(features.save(tmp_path / "new" / f"features{ending}"))) == 2
    assert not list(tmp_path.rglob("*.segae-part"))


def test_nothing_readable_is_an_error(tmp_path: Path, encoder: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    for out in (None, tmp_path / "features.npz"):
        with pytest.raises(segae.DataError, match="1 of which none is: .*a.png"):
            extract(tmp_path / "a.png", encoder, out=out)
    for content in (b"x", b"", b"PK\x03\x04 cut off"):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(segae.DataError, match="path must be a file of extract_features"):
            segae.Features.load(tmp_path / "other.npz")
    with pytest.raises(segae.SegaeError, match="path must end with"):
        segae.Features.load(tmp_path / "other.csv")


def test_the_command_writes_the_same(
    photos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.npz"
    words = ["features", photos, "--encoder", encoder, "--out", out, "--image-size", SIZE, "--device", "cpu"]
    cli.main([*map(str, words)])
    assert f"wrote features of 11 images to {out}" in capsys.readouterr().out
    assert np.array_equal(segae.Features.load(out).values, extract(photos, encoder).values)
