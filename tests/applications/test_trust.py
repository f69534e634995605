"""``TrustScore``: images unlike the training images are told apart, at the rate that held-out images promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import segae
from segae.applications.trust import FLAGGED_BELOW, TrustScore, compute_statistics
from tests.fabricate import drawings, save


def pictures(count: int, seed: int) -> np.ndarray:
    return np.stack([image for image, _ in drawings(count, 32, 2, seed)])


@pytest.fixture(scope="module")
def model() -> segae.Segmenter:
    torch.manual_seed(0)
    return segae.create_segmenter("test_resnet", num_classes=2, image_size=32)


@pytest.fixture(scope="module")
def trust(model: segae.Segmenter) -> TrustScore:
    return TrustScore.fit(model, pictures(120, 0), pictures(60, 1))


def test_strange_images_are_flagged_and_others_seldom(model: segae.Segmenter, trust: TrustScore) -> None:
    strange = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    assert (trust.scores(compute_statistics(model, strange)) < FLAGGED_BELOW).all()
    alike = trust.scores(compute_statistics(model, pictures(100, 2)))
    assert (alike < FLAGGED_BELOW).mean() < 0.15
    assert 0.3 < alike.mean() < 0.7  # about uniform
    assert alike.min() > 0
    assert alike.max() <= 1


def test_a_training_image_is_nearer_than_its_kind(model: segae.Segmenter, trust: TrustScore) -> None:
    seen, new = (trust.distances(compute_statistics(model, images)) for images in (pictures(60, 0), pictures(60, 3)))
    assert seen.mean() < new.mean()


def test_a_file_gives_the_same_and_refuses_another_model(
    model: segae.Segmenter, trust: TrustScore, tmp_path: Path
) -> None:
    trust.save(tmp_path / "trust.npz")
    features = compute_statistics(model, pictures(30, 4), batch_size=7)
    loaded = TrustScore.load(tmp_path / "trust.npz", model)
    np.testing.assert_allclose(loaded.distances(features), trust.distances(features), atol=1e-3)
    other = segae.create_segmenter("test_resnet", num_classes=2, image_size=32)
    with pytest.raises(segae.CheckpointError, match="of this model"):
        TrustScore.load(tmp_path / "trust.npz", other)
    (tmp_path / "trust.npz").write_bytes(b"damaged")
    with pytest.raises(segae.CheckpointError, match="path must be"):
        TrustScore.load(tmp_path / "trust.npz", model)


def test_no_held_out_images_are_refused(model: segae.Segmenter) -> None:
    with pytest.raises(segae.SegaeError, match="one or more each, got 4 and 0"):
        TrustScore.fit(model, pictures(4, 0), pictures(4, 0)[:0])


@pytest.fixture
def model_file(model: segae.Segmenter, trust: TrustScore, tmp_path: Path) -> Path:
    """A model with its trust score beside it, as a fine-tuning leaves them."""
    trust.save(tmp_path / "run" / "trust.npz")
    return segae.save_segmenter(model, tmp_path / "run" / "model.safetensors")


@pytest.mark.parametrize("settings", [{}, {"batch_size": 2}, {"tile": 32}, {"tta": True}])
def test_predict_flags_strange_images(
    model_file: Path, tmp_path: Path, settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    strange = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for place, image in enumerate([*pictures(3, 2), *strange]):
        save(image, tmp_path / "in" / f"{place}.png")
    segae.predict(model_file, tmp_path / "in", out=tmp_path / "out", device="cpu", **settings)
    found = pd.read_csv(tmp_path / "out" / "predictions.csv")["trust"]
    model = segae.load_segmenter(model_file)
    expected = TrustScore.load(model_file.with_name("trust.npz"), model).scores(
        compute_statistics(model, np.concatenate([pictures(3, 2), strange]))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[3:] < FLAGGED_BELOW).all()
    assert f"{(found < FLAGGED_BELOW).sum()} of 5 images are unlike the training images" in caplog.text


def test_predict_goes_on_without_a_score_of_another_model(
    model_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(9)
    segae.save_segmenter(segae.create_segmenter("test_resnet", num_classes=2, image_size=32), model_file)
    (tmp_path / "in").mkdir()
    save(pictures(1, 2)[0], tmp_path / "in" / "0.png")
    segae.predict(model_file, tmp_path / "in", out=tmp_path / "out", device="cpu")
    assert "trust" not in pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert "no trust scores" in caplog.text
