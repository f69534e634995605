"""Compression, generation and descriptions of models, through public functions and the command line."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

import segae
from segae.cli import main
from segae.models import save_autoencoder
from tests.fabricate import draw, make_images, save

SIDE = 32


def make_model(method: str = "reconstruct", encoder: str = "conv_16_8_4", **choices) -> segae.Autoencoder:
    torch.manual_seed(0)
    made = segae.create_encoder(encoder, image_size=SIDE) if encoder.startswith("conv") else encoder
    return segae.create_autoencoder(made, method=method, **choices)


@pytest.fixture(scope="module")
def trained() -> segae.Autoencoder:
    """An autoencoder that has seen a few drawings."""
    model = make_model()
    images = torch.from_numpy(np.stack([draw(np.random.default_rng(seed), SIDE)[0] for seed in range(32)]))
    images = images.permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        (model(images) - images).square().mean().backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return draw(np.random.default_rng(99), 70)[0][:50]


def test_size_and_fidelity_follow_the_target(trained: segae.Autoencoder, image: np.ndarray) -> None:
    sizes = []
    for bits in (0.3, 0.6, 1.5):
        data = segae.compress(image, trained, bits_per_pixel=bits)
        assert 8 * len(data) <= bits * 50 * 70
        sizes.append((len(data), cv2.PSNR(image, segae.decompress(data, trained))))
    assert sizes == sorted(sizes)
    best = cv2.PSNR(image, segae.decompress(segae.compress(image, trained, step=1e-3), trained))
    coarse = segae.compress(image, trained, target_psnr=best - 3)
    assert best - 3 <= cv2.PSNR(image, segae.decompress(coarse, trained)) < best - 1.5
    default = segae.compress(image, trained)
    assert best - 0.6 <= cv2.PSNR(image, segae.decompress(default, trained))
    assert len(coarse) < len(default) < len(segae.compress(image, trained, step=1e-3))


def test_large_images_of_one_color_take_few_bytes(trained: segae.Autoencoder) -> None:
    pixels = np.full((800, 1000, 3), 90, np.uint8)
    data = segae.compress(pixels, trained, step=0.5)
    assert 8 * len(data) / pixels[..., 0].size < 0.02
    assert segae.decompress(data, trained).shape == pixels.shape


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 64), (100, 20)])
def test_images_of_any_size_come_back_at_their_size(trained: segae.Autoencoder, shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 90, np.uint8)
    again = segae.decompress(segae.compress(pixels, trained, step=0.01), trained)
    assert again.shape == pixels.shape
    tile = np.full((1, SIDE, SIDE, 3), 90, np.uint8)
    codes = segae.encode_images(tile, trained)
    assert abs(again[0, 0].astype(int) - trained_pixels(trained, codes)[0, 0, 0]).max() <= 1


def trained_pixels(model: segae.Autoencoder, codes: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return (model.eval().from_code(codes).permute(0, 2, 3, 1).clip(0, 1) * 255).round().numpy().astype(int)


def test_another_process_makes_the_same_bytes(trained: segae.Autoencoder, image: np.ndarray, tmp_path: Path) -> None:
    save_autoencoder(trained, tmp_path / "model.safetensors")
    save(image, tmp_path / "image.png")
    code = "import segae, sys; sys.stdout.buffer.write(segae.compress('image.png', 'model.safetensors', step=0.05))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == segae.compress(image, trained, step=0.05) == segae.compress(image, trained, step=0.05)


@pytest.mark.parametrize(
    ("method", "encoder", "choices"),
    [("variational", "conv_16_8_4", {}), ("reconstruct", "test_resnet", {"bottleneck": 4})],
)
def test_other_codes_are_compressed_too(method: str, encoder: str, choices: dict, image: np.ndarray) -> None:
    model = make_model(method, encoder, **choices)
    first, second = (segae.compress(image, model, step=0.05) for _ in range(2))
    assert first == second
    assert segae.decompress(first, model).shape == image.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "begin with"),
        (lambda data: b"\x89PNG" + data[4:], "begin with"),
        (lambda data: data[:4] + b"\x02" + data[5:], "begin with"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[:8], "damaged"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "damaged"),
    ],
)
def test_damaged_data_are_refused(trained: segae.Autoencoder, image: np.ndarray, change, words: str) -> None:
    with pytest.raises(segae.DataError, match=f"data must .*{words}"):
        segae.decompress(change(segae.compress(image, trained, step=0.1)), trained)


HEADER = struct.Struct("<5s8sIIfH")
FIELDS = ("magic", "model", "height", "width", "step", "largest")


@pytest.mark.parametrize(
    ("fields", "cut", "words"),
    [
        ({"model": b"\xff" * 8}, None, "model must"),
        ({"height": 2**32 - 1}, None, "image must have 1 to"),
        ({"width": 0}, None, "image must have 1 to"),
        ({"height": 1, "width": 3_200_000}, None, "image must have 1 to"),
        ({"height": 2000, "width": 3000}, 4, "data must be a code"),
        ({"step": float("nan")}, None, "step in data must"),
        ({"step": float("inf")}, None, "step in data must"),
        ({"largest": 0}, None, "data must be a code"),
        ({}, 0, "data must be a code"),
        ({}, 5, "data must be a code"),
        ({}, -1, "data must be a code"),
    ],
)
def test_crafted_data_are_refused(
    trained: segae.Autoencoder, image: np.ndarray, fields: dict, cut: int | None, words: str
) -> None:
    data = segae.compress(image, trained, step=0.1)
    known = dict(zip(FIELDS, HEADER.unpack_from(data), strict=True))
    body = HEADER.pack(*{**known, **fields}.values()) + data[HEADER.size : -4][:cut]
    tracemalloc.start()
    with pytest.raises(segae.SegaeError, match=words):
        segae.decompress(body + zlib.crc32(body).to_bytes(4, "little"), trained)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_another_model_is_refused(trained: segae.Autoencoder, image: np.ndarray) -> None:
    with pytest.raises(segae.CheckpointError, match="model must be the one"):
        segae.decompress(segae.compress(image, trained, step=0.1), make_model())


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({"step": -1.0}, "step"),
        ({"step": 1e-9}, "step"),
        ({"step": 1.0, "bits_per_pixel": 1.0}, "step"),
        ({"target_psnr": 99.0}, "target_psnr"),
        ({"bits_per_pixel": 1e-4}, "bits_per_pixel"),
        ({"image": np.zeros((8, 8), np.uint8)}, "image"),
        ({"image": np.zeros((8, 8, 3))}, "image"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "image"),
        ({"image": None}, "image"),
    ],
)
def test_wrong_arguments_of_compress(trained: segae.Autoencoder, image: np.ndarray, wrong: dict, argument: str) -> None:
    with pytest.raises(segae.SegaeError, match=argument):
        segae.compress(**{"image": image, "model": trained, **wrong})


@pytest.mark.parametrize(
    "model",
    [
        lambda: segae.create_encoder("conv_16_8_4"),
        lambda: make_model("spark", "test_resnet"),
        lambda: segae.create_autoencoder("test_resnet", method="reconstruct", decoder="unet"),
        lambda: "pets_pseudo_masks",
        lambda: "no_such_file.safetensors",
        lambda: 3,
    ],
)
def test_models_without_a_code_are_refused(model) -> None:
    with pytest.raises(segae.SegaeError, match="model|decoder"):
        segae.sample(model(), 1)


def test_samples_have_the_mean_and_covariance_of_given_codes(trained: segae.Autoencoder, monkeypatch) -> None:
    images = np.stack([draw(np.random.default_rng(seed), SIDE)[0] for seed in range(20)])
    codes, drawn = segae.encode_images(images, trained), []
    decode = segae.applications.generation.decode_codes
    monkeypatch.setattr(
        segae.applications.generation, "decode_codes", lambda made, model: [drawn.append(made), decode(made, model)][1]
    )
    made = segae.sample(trained, 3000, seed=1, codes=codes)
    assert made.shape == (3000, SIDE, SIDE, 3)
    first, second = codes.flatten(1).T.double(), drawn[0].flatten(1).T.double()
    assert torch.allclose(first.mean(1), second.mean(1), atol=0.1 * float(first.std()))
    error = (first.cov() - second.cov()).norm() / first.cov().norm()
    assert error < 0.15
    assert np.array_equal(made[:0], segae.sample(trained, 1, codes=codes)[:0])


def test_samples_depend_on_the_seed_alone() -> None:
    model = make_model("variational")
    same, again, other = (segae.sample(model, 2, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)


@pytest.mark.parametrize(
    ("method", "wrong", "argument"),
    [
        ("reconstruct", {}, "codes"),
        ("reconstruct", {"codes": torch.zeros(1, 4, 4, 4)}, "codes"),
        ("reconstruct", {"codes": torch.zeros(5, 3, 4, 4)}, "codes"),
        ("variational", {"n": 0}, "n"),
        ("variational", {"seed": -1}, "seed"),
    ],
)
def test_wrong_arguments_of_sample(method: str, wrong: dict, argument: str) -> None:
    with pytest.raises(segae.SegaeError, match=f"^{argument} must"):
        segae.sample(make_model(method), **{"n": 2, **wrong})


def test_interpolation_begins_and_ends_with_the_reconstructions(trained: segae.Autoencoder) -> None:
    first, last = (draw(np.random.default_rng(seed), SIDE)[0] for seed in (1, 2))
    steps = segae.interpolate(trained, first, last, steps=5)
    assert steps.shape == (5, SIDE, SIDE, 3)
    ends = trained_pixels(trained, segae.encode_images(np.stack([first, last]), trained))
    assert abs(steps[[0, -1]].astype(int) - ends).max() <= 1
    with pytest.raises(segae.SegaeError, match="steps must"):
        segae.interpolate(trained, first, last, steps=1)


def test_commands_compress_and_generate(trained: segae.Autoencoder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_autoencoder(trained, tmp_path / "model.safetensors")
    photos = make_images(tmp_path / "photos", 10)
    (photos / "broken.jpg").write_bytes(b"no image")
    main(["compress", "photos", "--model", "model.safetensors", "--out", "small", "--step", "0.05"])
    table = pd.read_csv("small/compression.csv")
    assert len(table) == 10
    assert [Path("small", file).stat().st_size for file in table["file"]] == table["bytes"].tolist()
    assert (8 * table["bytes"] / 64**2).to_numpy() == pytest.approx(table["bpp"].to_numpy(), rel=1e-3)
    assert "broken" in Path("small/skipped.csv").read_text()
    main(["decompress", "small", "--model", "model.safetensors", "--out", "large"])
    row = table.iloc[0]
    again = cv2.imread(f"large/{pd.read_csv('large/decompression.csv')['file'][0]}")[..., ::-1]
    assert cv2.PSNR(cv2.imread(row["source"])[..., ::-1], np.array(again)) == pytest.approx(row["psnr"], abs=0.1)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir("below")
    main(["compress", "../photos/../photos/photo_000.jpg", "--model", "../model.safetensors", "--out", "there"])
    assert Path("there/photos/photo_000.jpg.sgac").is_file()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):  # a file of no kind known here
        main(["decompress", "photos/photo_000.jpg", "--model", "model.safetensors", "--out", "none"])

    main(
        [
            "generate",
            "model.safetensors",
            "--count",
            "9",
            "--images",
            "photos",
            "--interpolate",
            "photos/photo_000.jpg",
            "photos/photo_001.jpg",
            "--out",
            "made",
        ]
    )
    rows = pd.read_csv("made/samples.csv")
    assert len(rows) == 9
    assert {"sheet.png", "interpolation.png", *rows["sample"]} <= {file.name for file in Path("made").iterdir()}
    pixels = cv2.resize(cv2.imread(rows["nearest"][0]), (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(float)
    assert np.sqrt(((pixels - cv2.imread(f"made/{rows['sample'][0]}")) ** 2).mean()) == pytest.approx(
        rows["rmse"][0], abs=0.5
    )
    with pytest.raises(segae.SegaeError, match="codes must be given"):
        segae.generate("model.safetensors", out="other")
    with pytest.raises(segae.SegaeError, match="interpolate must be two"):
        segae.generate("model.safetensors", interpolate=("photos/photo_000.jpg",), out="other")


@pytest.mark.parametrize("source", ["conv_16_8_4", "test_resnet", "pets_pseudo_masks"])
def test_describe_counts_the_parameters(source: str) -> None:
    text = segae.describe(source)
    known = segae.load(source) if source.startswith("pets") else segae.create_encoder(source)
    assert f"Total params: {sum(parameter.numel() for parameter in known.parameters()):,}" in text
    assert f"architecture: {known.info.architecture}" in text
    with pytest.raises(segae.SegaeError, match="got 'conv_x'"):
        segae.describe("conv_x")


def test_describe_takes_every_kind_of_model() -> None:
    for model in (segae.create_segmenter("test_resnet", num_classes=3, image_size=64), make_model("variational")):
        assert "info" not in segae.describe(model)
        assert "encoder.architecture" in segae.describe(model)
    images = np.stack([draw(np.random.default_rng(seed), SIDE)[0] for seed in range(8)])
    detector = segae.AnomalyDetector.fit([*images], segae.create_encoder("conv_16_8_4", image_size=SIDE), held_out=0.5)
    assert "model.architecture: conv_16_8_4" in segae.describe(detector)
    with pytest.raises(segae.SegaeError, match="model must be .* Linear"):
        segae.describe(torch.nn.Linear(2, 2))
