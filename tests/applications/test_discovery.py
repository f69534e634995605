"""Anomalies, search, clusters and maps: what they find, what their files and commands hold, what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import beta

import segae
from segae.cli import main
from segae.models import save_autoencoder
from tests.fabricate import save

SIZE = {"image_size": 64}


def stripes(count: int, seed: int, *, upright: bool = False) -> list[np.ndarray]:
    """Images of level or upright stripes at random phases, with noise."""
    generator, images = np.random.default_rng(seed), []
    for _ in range(count):
        wave = 128 + 90 * np.sin(np.arange(64) / 3 + generator.uniform(0, 6))
        image = np.repeat(np.broadcast_to(wave, (64, 64))[..., None], 3, axis=2) + generator.normal(0, 6, (64, 64, 3))
        images.append((image if upright else image.transpose(1, 0, 2)).clip(0, 255).astype(np.uint8))
    return images


@pytest.fixture(scope="module")
def encoder() -> segae.Encoder:
    torch.manual_seed(0)
    return segae.create_encoder("test_resnet")


@pytest.fixture(scope="module")
def autoencoder() -> segae.Autoencoder:
    """Knows level stripes: eight principal components of them, in closed form."""
    model = segae.create_autoencoder(segae.create_encoder("linear_8", image_size=64))
    images = torch.from_numpy(np.stack(stripes(64, 9))).permute(0, 3, 1, 2).flatten(1) / 255
    mean = images.mean(dim=0)
    axes = torch.linalg.svd(images - mean, full_matrices=False).Vh[:8]
    values = axes.reshape(8, 3, 64, 64), -axes @ mean, axes.T[..., None, None], mean
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
    return model


@pytest.fixture(params=["encoder", "autoencoder"])
def detector(request: pytest.FixtureRequest) -> segae.AnomalyDetector:
    model = request.getfixturevalue(request.param)
    return segae.AnomalyDetector.fit(stripes(90, 0), model, false_alarm_rate=0.1, held_out=0.4, image_size=64)


def test_anomalies_are_found_and_normal_images_seldom(detector: segae.AnomalyDetector) -> None:
    assert detector.predict(stripes(20, 1, upright=True)).all()
    assert detector.predict(stripes(60, 2)).mean() < 0.3
    whole = detector.heatmap(stripes(1, 1, upright=True)[0])
    assert whole.mean() > 1.3 * detector.heatmap(stripes(1, 2)[0]).mean()
    half = stripes(1, 2)[0]
    half[:, 32:] = stripes(1, 1, upright=True)[0][:, 32:]
    heat = detector.heatmap(np.repeat(half, 2, axis=0))
    assert heat.shape == (128, 64)
    assert heat[:, 40:].mean() > heat[:, :24].mean()


def test_the_threshold_is_that_of_images_that_were_held_out(encoder: segae.Encoder) -> None:
    images = stripes(50, 0)
    detector = segae.AnomalyDetector.fit(images, encoder, false_alarm_rate=0.1, held_out=0.4, **SIZE)
    assert detector.info.held_out == 20
    assert detector.info.rate_interval == pytest.approx((beta.ppf(0.025, 1, 20), beta.ppf(0.975, 2, 19)), abs=1e-6)
    order = np.random.default_rng(0).permutation(50)
    held_out = detector.score([images[place] for place in order[:20]])
    assert (held_out > detector.info.threshold).sum() == 1  # of 21 with a new one, two are as high: a tenth
    few = segae.AnomalyDetector.fit(images, encoder, false_alarm_rate=0.01, **SIZE)
    assert few.info.rate_interval[1] > 0.2  # ten images promise little


def test_a_detector_is_one_file(detector: segae.AnomalyDetector, tmp_path: Path) -> None:
    found = segae.load(detector.save(tmp_path / "detector.safetensors"))
    images = stripes(5, 3)
    assert found.info == detector.info
    np.testing.assert_allclose(found.score(images), detector.score(images), rtol=1e-5)
    np.testing.assert_allclose(found.heatmap(images[0]), detector.heatmap(images[0]), rtol=1e-4)
    with pytest.raises(segae.CheckpointError, match="kind"):
        segae.load_encoder(tmp_path / "detector.safetensors")


def test_a_file_that_cannot_be_read_is_an_anomaly(encoder: segae.Encoder, tmp_path: Path) -> None:
    detector = segae.AnomalyDetector.fit(stripes(20, 0), encoder, **SIZE)
    (tmp_path / "a.png").write_bytes(b"broken")
    save(stripes(1, 0)[0], tmp_path / "b.png")
    assert np.isnan(detector.score(tmp_path)).tolist() == [True, False]
    assert detector.predict(tmp_path)[0]
    assert np.isnan(detector.score([tmp_path / "b.png", tmp_path / "a.png"])).tolist() == [False, True]  # as given
    again = segae.AnomalyDetector.load(detector.save(tmp_path / "a.safetensors"), skipped=segae.data.SkippedFiles())
    again.score([tmp_path / "a.png", tmp_path / "b.png"])
    assert again.heatmap(tmp_path / "b.png").shape == (64, 64)  # what was skipped before is not held against it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"false_alarm_rate": 0.0}, "false_alarm_rate must be .*0.0"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate must be .*1.0"),
        ({"held_out": 0.0}, "held_out must leave 1 image for the threshold .*, got 0"),
        ({"held_out": 0.9}, "held_out must leave .* 2 to learn from"),
        ({"image_size": 63}, "image_size must be .*63"),
        ({"model": "no_such"}, "encoder must be .*no_such"),
    ],
)
def test_bad_settings_of_a_detector_are_named(
    encoder: segae.Encoder, settings: dict[str, object], message: str
) -> None:
    given = {"model": encoder, **SIZE, **settings}
    with pytest.raises(segae.SegaeError, match=message):
        segae.AnomalyDetector.fit(stripes(10, 0), given.pop("model"), **given)


def test_an_autoencoder_of_something_else_than_pixels_is_refused(encoder: segae.Encoder) -> None:
    model = segae.create_autoencoder(encoder, method="pseudo_masks")
    with pytest.raises(segae.SegaeError, match="model must predict the 3 channels"):
        segae.AnomalyDetector.fit(stripes(10, 0), model, **SIZE)


@pytest.mark.parametrize("large", [False, True])
def test_the_nearest_images_are_of_the_same_kind(
    encoder: segae.Encoder, tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segae.applications.retrieval._LARGE", 0 if large else 100)
    index = segae.ImageIndex.build([*stripes(10, 0), *stripes(10, 1, upright=True)], encoder, **SIZE)
    rows = index.search([*stripes(1, 0), *stripes(1, 5, upright=True)], k=6)
    assert rows["image"][0] == "0"
    assert rows["distance"][0] == pytest.approx(0, abs=1e-5)
    assert (rows["image"].astype(int) >= 10).tolist() == [False] * 6 + [True] * 6
    assert all(part["distance"].is_monotonic_increasing for _, part in rows.groupby("query"))
    again = segae.ImageIndex.load(index.save(tmp_path / "index.npz"), encoder, **SIZE)
    pd.testing.assert_frame_equal(again.search(stripes(1, 0), k=6), rows[:6], atol=1e-5)


def test_bad_searches_are_named(encoder: segae.Encoder) -> None:
    index = segae.ImageIndex.build(stripes(3, 0), encoder, **SIZE)
    with pytest.raises(segae.SegaeError, match=r"k must be an integer in \[1, 3\], got 4"):
        index.search(stripes(1, 0), k=4)
    other = segae.ImageIndex(index.features, segae.create_encoder("test_convnext"), **SIZE)
    with pytest.raises(segae.SegaeError, match="encoder must give"):
        other.search(stripes(1, 0), k=1)


def groups() -> np.ndarray:
    centers = np.repeat(np.eye(16)[:3] * 20, 12, axis=0)
    return centers + np.random.default_rng(0).normal(0, 0.3, centers.shape)


@pytest.mark.parametrize("k", [3, None])
def test_groups_become_clusters(k: int | None) -> None:
    labels = segae.cluster(groups(), k=k).reshape(3, 12)
    assert (labels == labels[:, :1]).all()
    assert sorted(labels[:, 0]) == [0, 1, 2]


@pytest.mark.parametrize("how", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_groups_stay_apart_on_a_map(how: str) -> None:
    places = segae.project(groups(), how=how)
    assert places.shape == (36, 2)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(axis=1) // 12 == np.arange(36) // 12).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segae.cluster(groups(), k=0), "k must be .*0"),
        (lambda: segae.cluster(groups(), k=37), "k must be .*37"),
        (lambda: segae.cluster(groups()[:3]), r"features must be .*\(3, 16\)"),
        (lambda: segae.project(groups(), how="pcs"), "how must be .*pcs.*pca"),
        (lambda: segae.project(groups() * np.nan), "features must be finite"),
        (lambda: segae.project(groups()[0]), r"features must be .*\(16,\)"),
    ],
)
def test_bad_features_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(segae.SegaeError, match=message):
        call()


def test_small_networks_and_few_channels_keep_positions(encoder: segae.Encoder) -> None:
    images, small = stripes(2, 0), segae.create_encoder("conv_16_8_4", image_size=64)
    assert segae.extract_features(images, small).values.shape == (2, 4 * 8 * 8)
    assert segae.extract_features(images, encoder, **SIZE).values.shape == (2, encoder.out_channels[-1])
    with pytest.raises(segae.SegaeError, match="layer must be one of 1, 2, 3 or -1, got 4"):
        segae.extract_features(images, small, layer=4)


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoder: segae.Encoder, autoencoder: segae.Autoencoder) -> Path:
    root = tmp_path_factory.mktemp("discovery")
    for kind, upright in (("level", False), ("upright", True)):
        (root / "photos" / kind).mkdir(parents=True)
        for place, image in enumerate(stripes(16, int(upright), upright=upright)):
            save(image, root / "photos" / kind / f"{place:02d}.png")
    segae.save_encoder(encoder, root / "encoder.safetensors")
    save_autoencoder(autoencoder, root / "autoencoder.safetensors")
    return root


def run(folder: Path, command: str, out: Path) -> Path:
    words = re.sub(r" ENCODER\b", " --encoder encoder.safetensors --image-size 64", command).split()
    words = [str(folder / word) if (folder / word).exists() else word for word in words]
    main([*words, "--out", str(out), "--device", "cpu", "--threads", "1"])
    return out


@pytest.mark.parametrize("model", ["ENCODER", "--model autoencoder.safetensors"])
def test_anomaly_commands(folder: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = run(folder, f"anomaly fit photos/level {model} --held-out 0.5 --false-alarm-rate 0.1", tmp_path / "fit")
    assert "95 % interval" in capsys.readouterr().out
    detector = fitted / "detector.safetensors"
    scored = run(folder, f"anomaly score photos --detector {detector}", tmp_path / "scores")
    rows = pd.read_csv(scored / "scores.csv")
    assert rows["score"].is_monotonic_decreasing
    assert rows["image"][:12].str.contains("upright").all()
    assert rows["anomaly"][:12].all()
    assert len(list((scored / "heatmaps").glob("*.jpg"))) == 32
    assert Image.open(sorted((scored / "heatmaps").iterdir())[0]).size == (64, 64)
    assert Image.open(scored / "sheet.png").width > 100


def test_search_command(folder: Path, tmp_path: Path) -> None:
    first = run(folder, "search photos/upright/03.png --images photos ENCODER --k 4", tmp_path / "a")
    run(folder, "features photos ENCODER", tmp_path / "index.npz")
    index = tmp_path / "index.npz"
    second = run(folder, f"search photos/upright/03.png --index {index} ENCODER --k 4", tmp_path / "b")
    rows, again = (pd.read_csv(out / "hits.csv") for out in (first, second))
    assert rows["image"].str.contains("upright").all()
    assert rows["image"].tolist() == again["image"].tolist()
    assert Image.open(first / "sheet.png").width > 100


def test_cluster_and_map_commands(folder: Path, tmp_path: Path) -> None:
    (folder / "photos" / "level" / "broken.png").write_bytes(b"broken")
    out = run(folder, "cluster photos ENCODER --k 2", tmp_path / "clusters")
    rows = pd.read_csv(out / "clusters.csv")
    assert rows.groupby(rows["image"].str.contains("upright"))["cluster"].nunique().tolist() == [1, 1]
    assert sorted(path.name for path in out.glob("*.png")) == ["cluster_0.png", "cluster_1.png"]
    assert "broken.png" in (out / "skipped.csv").read_text()
    out = run(folder, "map photos ENCODER --how pca", tmp_path / "map")
    (folder / "photos" / "level" / "broken.png").unlink()
    assert pd.read_csv(out / "map.csv")["class"].value_counts().to_dict() == {"level": 16, "upright": 16}
    page = (out / "map.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 32
    assert "<script src" not in page.replace('<script type="text/javascript" src', "<script src")  # no network


@pytest.mark.parametrize(
    ("command", "hints"),
    [
        ("anomaly", ("anomaly fit",)),
        ("anomaly fit photos --held-out 0", ("held_out", "--held-out")),
        ("anomaly fit photos --model encoder.safetensors", ("autoencoder", "--model")),
        ("anomaly score photos", ("--detector",)),
        ("anomaly score photos --detector encoder.safetensors", ("anomaly_detector", "encoder")),
        ("search photos", ("images must be given",)),
        ("search photos --images photos --k 99 ENCODER", ("[1, 32]", "--k")),
        ("cluster photos --k 0", ("--k",)),
        ("map photos --how pcs", ("pcs", "--how")),
    ],
)
def test_a_mistake_is_named(
    folder: Path, tmp_path: Path, command: str, hints: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(folder, command, tmp_path / "out")
    said = capsys.readouterr().err
    assert leaving.value.code == 2
    assert all(hint in said for hint in hints), said
