"""Tiles give what the whole image gives, their seams cannot be seen, and augmentation averages probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segae.data import resize_image
from segae.errors import SegaeError
from segae.models import Segmenter, create_segmenter
from segae.models.inference import predict_images
from tests.fabricate import draw


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> tuple[Segmenter, nn.Module]:
    """A segmenter whose logits depend on pixels at most 3 away, and the layers that compute them."""
    torch.manual_seed(0)
    model = create_segmenter("test_resnet", num_classes=3, image_size=64)
    layers = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    monkeypatch.setattr(model, "forward", layers.forward)
    return model, layers


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return draw(np.random.default_rng(3), 256)[0][:height, :width]


def whole_probabilities(model: Segmenter, layers: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (model.info.encoder.mean, model.info.encoder.std))
    with torch.no_grad():
        return layers(((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std)[None]).softmax(dim=1)[0].numpy()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("height", "width"), [(200, 150), (64, 250), (65, 64), (130, 40)])
def test_tiles_at_native_resolution_give_the_whole_image_s_result_away_from_seams(
    local: tuple[Segmenter, nn.Module], height: int, width: int, overlap: float
) -> None:
    model, layers = local
    image = picture(height, width)
    if width < 64:  # such a tile is not a square and would be resized
        image = np.pad(image, ((0, 0), (0, 64 - width), (0, 0)))
    found = model.predict(image, return_probabilities=True, tile=64, overlap=overlap, batch_size=3)
    expected = whole_probabilities(model, layers, image)
    step = round(64 * (1 - overlap))
    away = [np.ones(side, bool) for side in image.shape[:2]]
    for side, clear in zip(image.shape[:2], away, strict=True):
        for start in [*range(0, side - 64, step), side - 64]:
            for seam in {start, start + 64} - {0, side}:
                clear[max(0, seam - 3) : seam + 3] = False
    clear = np.outer(*away)
    assert clear.mean() > 0.5
    np.testing.assert_allclose(found[:, clear], expected[:, clear], atol=1e-5)
    assert np.array_equal(model.predict(image, tile=64, overlap=overlap), found.argmax(axis=0))


def test_a_real_network_changes_little_with_tiles() -> None:
    torch.manual_seed(0)
    model = create_segmenter("test_resnet", num_classes=2, image_size=128)
    image = picture(128, 256)
    whole = np.concatenate(
        [model.predict(image[:, start : start + 128], return_probabilities=True) for start in (0, 128)], 2
    )
    tiled = model.predict(image, tile=128, overlap=0.0, return_probabilities=True)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_seams_are_ramps() -> None:
    """Tiles of opposite certainty: between neighboring pixels the logit moves by no more than a linear ramp's step."""

    def network(images: NDArray[np.uint8]) -> Tensor:
        logits = torch.zeros(len(images), 2, 64, 64)
        logits[:, 0] = torch.tensor([1.0 if image.mean() > 127 else -1.0 for image in images])[:, None, None]
        return logits

    image = np.zeros((112, 112, 3), np.uint8)
    image[:, 56:] = 255
    (found,) = predict_images(network, [image], image_size=64, tile=64, overlap=0.25, probabilities=torch.float32)
    logits = np.log(found.probabilities[0] / found.probabilities[1])
    assert logits[:, 0] == pytest.approx(-1, abs=1e-4)
    assert logits[:, -1] == pytest.approx(1, abs=1e-4)
    steps = np.abs(np.diff(logits, axis=1))
    assert steps.max() < 2 / 16 + 0.01
    assert np.abs(np.diff(logits, axis=0)).max() < 1e-4


@pytest.mark.parametrize("tile", [96, 128])
def test_an_image_that_fits_into_a_tile_is_predicted_whole(tile: int) -> None:
    torch.manual_seed(0)
    model, image = create_segmenter("test_resnet", num_classes=3, image_size=64), picture(96, 80)
    given = model.predict(image, tile=tile, return_probabilities=True)
    np.testing.assert_allclose(given, model.predict(image, return_probabilities=True), atol=1e-5)


@pytest.mark.parametrize("tile", [None, 128])
def test_augmentation_averages_probabilities_over_mirror_images_and_scales(tile: int | None) -> None:
    torch.manual_seed(0)
    model, image = create_segmenter("test_resnet", num_classes=3, image_size=128).eval(), picture(128, 128)
    found = model.predict(image, return_probabilities=True, tta=True, tile=tile)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (model.info.encoder.mean, model.info.encoder.std))
    expected = []
    for side in (128, 160):  # 96 is below the smallest
        scaled = (torch.from_numpy(resize_image(image, side)).permute(2, 0, 1) / 255 - mean) / std
        for flip in (False, True):
            with torch.no_grad():
                logits = model((scaled.flip(-1) if flip else scaled)[None])
            logits = nn.functional.interpolate(logits.flip(-1) if flip else logits, size=(128, 128), mode="bilinear")
            expected.append(logits.softmax(dim=1)[0])
    np.testing.assert_allclose(found, torch.stack(expected).mean(dim=0), atol=1e-5)
    mirrored = model.predict(image[:, ::-1], return_probabilities=True, tta=True, tile=tile)
    np.testing.assert_allclose(mirrored[:, :, ::-1], found, atol=1e-3)  # a mirrored enlargement differs by rounding
    assert np.abs(found - model.predict(image, return_probabilities=True)).max() > 1e-3


@pytest.mark.parametrize("tile", [None, 64])
def test_confidence_is_the_largest_probability(tile: int | None) -> None:
    torch.manual_seed(0)
    model, images = create_segmenter("test_resnet", num_classes=3, image_size=64).eval(), [picture(150, 90)]

    def network(batch: NDArray[np.uint8]) -> Tensor:
        with torch.no_grad():
            return 5 * model(torch.from_numpy(batch).permute(0, 3, 1, 2) / 255)

    how = {"image_size": 64, "tile": tile, "confidence": True, "probabilities": torch.float16}
    (found,) = predict_images(network, images, **how)
    largest = found.probabilities.astype(np.float32).max(axis=0)
    assert found.probabilities.dtype == np.float16
    assert largest.std() > 0.01
    np.testing.assert_allclose(found.confidence / 255, largest, atol=0.003)
    assert found.mean_confidence == pytest.approx(largest[::4, ::4].mean(), abs=1e-3)
    (bare,) = predict_images(network, images, image_size=64, tile=tile)
    assert (bare.confidence, bare.probabilities) == (None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tile": 0}, "tile must be .*got 0"), ({"tile": 64, "overlap": 1.0}, "overlap must be .*got 1.0")],
)
def test_impossible_tiles_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        create_segmenter("test_resnet", num_classes=2, image_size=64).predict(picture(70, 70), **settings)
