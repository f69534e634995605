"""torchgeo and anomalib read an exported folder by its name; both take seconds to import, so they are in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import segae


@pytest.fixture(scope="module")
def encoder() -> segae.Encoder:
    torch.manual_seed(1)
    encoder = segae.create_encoder("test_resnet")
    encoder.train()(torch.randn(4, 3, 64, 64))
    return encoder.eval()


@torch.no_grad()
def test_torchgeo_starts_a_segmentation_from_the_folder(encoder: segae.Encoder, tmp_path: Path) -> None:
    from torchgeo.trainers import SemanticSegmentationTask

    folder, images = segae.export(encoder, to="torchgeo", out=tmp_path / "folder"), torch.randn(2, 3, 64, 64)
    task = SemanticSegmentationTask("unet", f"tu-local-dir:{folder}", True, in_channels=3, num_classes=2).eval()
    for found, expected in zip(task.model.encoder(images), encoder(images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert task(images).shape == (2, 2, 64, 64)


def test_anomalib_extracts_features_with_the_folder(encoder: segae.Encoder, tmp_path: Path) -> None:
    from anomalib.models.components import TimmFeatureExtractor

    folder, images = segae.export(encoder, to="anomalib", out=tmp_path / "folder"), torch.randn(2, 3, 64, 64)
    extractor = TimmFeatureExtractor(f"local-dir:{folder}", layers=["layer1", "layer3"])
    with torch.no_grad():
        expected = encoder(images)
    found = extractor(images)
    torch.testing.assert_close(found["layer1"], expected[2], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["layer3"], expected[4], atol=1e-4, rtol=0)
