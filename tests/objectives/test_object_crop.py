"""The object is looked for in the whole image, asked for in a crop, and what the loss wants is it."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from segae.errors import SegaeError
from segae.objectives.corruption import GaussianNoise, ScaledNoise
from segae.objectives.layer_cut import LayerCut
from segae.objectives.object_crop import CropOfLayers, LayersAndPixels, cut_out
from tests.objectives.scenes import disc, overlap, scene


def test_a_crop_shows_image_and_layers_at_the_same_place() -> None:
    image, shape = scene(radius=0.35)
    crop = CropOfLayers(area=(0.4, 0.4))
    seen = crop(image, torch.Generator().manual_seed(3))
    assert seen.hidden_b1hw is None
    assert seen.target_bchw is not None
    assert seen.target_bchw.shape == (2, 4, 96, 96)
    assert torch.equal(seen.image_bchw, seen.target_bchw[:, :3])
    whole = CropOfLayers(area=(1.0, 1.0))(image, torch.Generator())
    assert whole.target_bchw is not None
    assert torch.allclose(whole.target_bchw, torch.cat([image, LayerCut()(image)], dim=1), atol=1e-3)
    # the disc lights one channel up: where the crop shows it, its layer is the object
    lit = torch.cat([shape, 0 * shape, 0 * shape], dim=1).expand(2, -1, -1, -1)
    of_lit = crop(lit, torch.Generator().manual_seed(3)).target_bchw
    assert of_lit is not None
    for both in of_lit:
        assert overlap(both[:1], both[3:]) > 0.9
    assert not torch.equal(of_lit[0, :1], of_lit[1, :1])  # each image has a crop of its own
    assert of_lit[:, 0].mean() > 1.2 * shape.mean()  # and sees it larger


def test_the_same_generator_gives_the_same_crop() -> None:
    image, _ = scene()
    first, again, other = (CropOfLayers()(image, torch.Generator().manual_seed(seed)).image_bchw for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_done_to_the_crop_is_not_in_its_target() -> None:
    image, _ = scene()
    seen = CropOfLayers((1.0, 1.0), GaussianNoise(0.5))(image, torch.Generator().manual_seed(0))
    assert seen.target_bchw is not None
    assert torch.allclose(seen.target_bchw[:, :3], image, atol=1e-3)
    assert (seen.image_bchw - image).std() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(SegaeError, match="asks for another target"):
        CropOfLayers(then=ScaledNoise(0.2, "noise"))(image, torch.Generator())


def test_the_loss_moves_the_logits_towards_the_layers() -> None:
    image, shape = scene()
    target = torch.cat([image, shape.expand(2, -1, -1, -1)], dim=1)
    logits = torch.cat([4 * (1 - 2 * shape), 0 * shape], dim=1).expand(2, -1, -1, -1)
    score = LayersAndPixels(pixel_weight=0)
    assert score.out_channels(3) == 2
    assert score(logits, target, None) < 0.02 * score(-logits, target, None)
    prediction = torch.zeros(2, 2, 96, 96, requires_grad=True)
    (slope,) = torch.autograd.grad(score(prediction, target, None), prediction)
    assert overlap((slope[:, 1:] < 0).float(), shape.expand(2, -1, -1, -1)) == 1
    assert torch.allclose(slope[:, 0], -slope[:, 1], atol=1e-9)


@pytest.mark.parametrize("reach", [1, 3])
def test_the_boundary_is_a_layer_of_its_own_on_both_sides_of_the_edge(reach: int) -> None:
    shape = disc(96, radius=0.3)
    score = LayersAndPixels(boundary=reach / 96)
    assert score.out_channels(3) == 6
    layers = score.layers_of(shape)
    assert torch.equal(layers.sum(dim=1), torch.ones(1, 96, 96))
    ground, thing, boundary = (layers[0, index].numpy().astype(np.uint8) for index in range(3))
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    inside = shape[0, 0].numpy().astype(np.uint8)
    wider, narrower = cv2.dilate(inside, square), cv2.erode(inside, square)
    assert np.array_equal(boundary, wider - narrower)
    assert np.array_equal(thing, narrower)
    assert np.array_equal(ground, 1 - wider)
    prediction = torch.cat([torch.zeros(1, 3, 96, 96), 100 * layers], dim=1)
    assert torch.allclose(score.object_said(prediction), layers[:, 1:2] + layers[:, 2:] / 2)
    assert torch.equal(LayersAndPixels().layers_of(shape), torch.cat([1 - shape, shape], dim=1))


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_pixels_are_asked_for_by_their_weight(weight: float) -> None:
    image, shape = scene()
    target = torch.cat([image, shape.expand(2, -1, -1, -1)], dim=1)
    right = torch.cat([image, torch.zeros(2, 2, 96, 96)], dim=1)
    off = right + torch.cat([torch.ones(2, 3, 96, 96), torch.zeros(2, 2, 96, 96)], dim=1)
    score = LayersAndPixels(pixel_weight=weight)
    assert score.out_channels(3) == 5
    assert float(score(off, target, None) - score(right, target, None)) == pytest.approx(weight, abs=1e-5)
    assert float(score(right, target, None)) == pytest.approx(float(LayersAndPixels(0)(right[:, 3:], target, None)))


def test_the_object_is_cut_out_on_the_mean_colour() -> None:
    image, shape = scene()
    picture = cut_out(image, shape.expand(2, -1, -1, -1))
    inside = shape.expand(2, 3, -1, -1) > 0
    assert torch.allclose(picture[inside], image[inside], atol=1e-6)
    ground = torch.where(inside, torch.nan, picture).flatten(2)
    assert torch.allclose(ground.nanmean(2), image.mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LayersAndPixels(pixel_weight=-1.0), "pixel weight is -1.0"),
        (lambda: LayersAndPixels(boundary=0.5), "boundary is 0.5"),
        (lambda: CropOfLayers(area=(0.0, 1.0)), "area of the crop is"),
        (lambda: CropOfLayers(area=(0.9, 0.5)), "area of the crop is"),
        (lambda: LayersAndPixels()(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), None), "the prediction has shape"),
    ],
)
def test_values_are_checked(build: Callable[[], object], message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        build()
