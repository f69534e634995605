"""Objects are found without a label, once for an image, and a crop is asked where they are."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.methods import WeightedSums, create_method, cut_out, within_covariance
from segae.methods.pseudo_masks import FeatureDiscriminant, GrabCut, segment_by_brightness, segment_by_color
from segae.models import create_encoder
from tests.methods.scenes import disc, drawing, overlap, scene


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each image that OpenCV cuts."""
    made: list[int] = []
    original = cv2.grabCut
    monkeypatch.setattr(cv2, "grabCut", lambda *given: (made.append(1), original(*given))[1])
    return made


@pytest.mark.parametrize("where", [{}, {"x": 0.4, "y": 0.6}, {"radius": 0.2}])
def test_an_object_of_its_own_colors_is_found_better_than_by_the_prior(where: dict[str, float]) -> None:
    image, mask = scene(**where)
    found, prior = segment_by_color(image), segment_by_color(torch.zeros_like(image))
    assert (found.shape, found.dtype) == ((2, 1, 96, 96), torch.float32)
    for one in found:
        assert overlap(one, mask[0]) > overlap(prior[0], mask[0]) + 0.08


def test_one_color_leaves_the_prior_and_scale_brightness_mirroring_and_other_images_do_not_matter() -> None:
    found = segment_by_color(torch.full((1, 3, 64, 80), 0.7))[0, 0]
    assert found[32, 40] > 0.7
    assert found[0, 0] < 0.2
    assert torch.allclose(found, found.flip(0, 1), atol=1e-5)
    image, _ = scene()
    found = segment_by_color(image)
    assert torch.allclose(segment_by_color(40 * image - 3), found, atol=1e-3)
    assert overlap(segment_by_color(image.flip(3)).flip(3), found) > 0.99
    assert torch.allclose(segment_by_color(image[:1]), found[:1], atol=1e-5)


@pytest.mark.parametrize("radius", [0.33, 0.36])
def test_the_cut_follows_the_edges_of_the_image(radius: float) -> None:
    image, mask = scene(radius=radius)
    found = GrabCut()(image)
    assert found.shape == (2, 1, 96, 96)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    for one, soft in zip(found, segment_by_color(image), strict=True):
        assert overlap(one, mask[0]) > max(overlap(soft, mask[0]), 0.99)


def test_an_image_and_its_mirror_image_are_cut_once_and_the_cache_has_an_end(cuts, monkeypatch) -> None:
    image, _ = scene(x=0.4)
    find = GrabCut()
    first = find(image)
    assert len(cuts) == 2
    assert torch.equal(find(image.flip(3)).flip(3), first)
    assert torch.equal(find(3 * image[1:] + 1), first[1:])
    assert torch.equal(find(torch.cat([image[1:], image[1:], image[:1]])), first[[1, 1, 0]])
    assert len(cuts) == 2
    monkeypatch.setattr("segae.methods.pseudo_masks._CACHED_CUTS", 1)
    find = GrabCut()
    assert torch.equal(torch.cat([find(image[:1]), find(image[1:])]), first)
    assert torch.equal(find(image), first)
    assert len(cuts) == 5  # of the two images the first was kept


SIZE = 64


class Averages(nn.Module):
    """Features of stride 1, 16 and 32 that are the image, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, *(self.scale * nn.functional.avg_pool2d(images, stride) for stride in (16, 32))]


def pictures(count: int = 12) -> tuple[Tensor, Tensor]:
    """Discs anywhere, bright in the first channel; the others are noise of large blobs."""
    generator = drawing()
    places = torch.rand(count, 2, generator=generator) * 0.4 + 0.3
    mask = torch.cat([disc(SIZE, float(x), float(y), 0.22) for x, y in places])
    blobs = nn.functional.interpolate(torch.randn(count, 2, 4, 4, generator=generator), size=SIZE, mode="bilinear")
    noise = 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return torch.cat([mask, 2 * blobs], dim=1) + noise, mask


def test_the_errors_of_some_images_are_averaged_out() -> None:
    image, mask = pictures()
    wrong = int(len(mask) * 0.3)
    guess = torch.cat([mask[:wrong].roll(SIZE // 2, 3), mask[wrong:]])
    find = FeatureDiscriminant(lambda _: guess).fit(Averages(), [image])
    found = find(image)
    assert (found.shape, found.dtype) == (mask.shape, torch.float32)
    assert overlap(found[:wrong], mask[:wrong]) > 0.55  # of maps of 8 x 8 positions
    assert overlap(found[:wrong], mask[:wrong]) > 3 * overlap(guess[:wrong], mask[:wrong])
    assert overlap(GrabCut(find)(image), mask) > overlap(found, mask)


def test_the_direction_is_that_of_scikit_learn() -> None:
    generator = drawing(1)
    vectors = torch.randn(400, 5, generator=generator).double() @ torch.randn(5, 5, generator=generator).double()
    labels = (vectors[:, 0] + torch.randn(400, generator=generator) > 0).double()
    sums = [WeightedSums(), WeightedSums()]
    for part in range(0, 400, 100):
        rows = slice(part, part + 100)
        for one, weights in zip(sums, (1 - labels[rows], labels[rows]), strict=True):
            one.add(vectors[rows], weights)
    scatter = (sums[0].scatter() + sums[1].scatter()) / 400
    direction = torch.linalg.solve(scatter, sums[1].mean() - sums[0].mean())
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(vectors.numpy(), labels.numpy())
    assert torch.allclose(direction / torch.from_numpy(theirs.coef_[0]), torch.ones(5).double(), atol=1e-6)
    assert torch.allclose(within_covariance(sums), scatter + 0.01 * scatter.diagonal().mean() * torch.eye(5))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_the_encoder_is_kept_as_it_was_in_evaluation_mode(name: str) -> None:
    image, mask = pictures(6)
    encoder = create_encoder(name).train()
    before = copy.deepcopy(encoder.state_dict())
    find = FeatureDiscriminant(lambda _: mask).fit(encoder, [image])
    first = find(image[:2])
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert overlap(find(image), mask) > overlap(segment_by_color(image), mask)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(find(image[:2]), first)
    assert torch.allclose(find(image[:1]), first[:1], atol=1e-5)  # no image sees its neighbors


def test_images_without_an_object_or_without_a_background_are_refused() -> None:
    image, mask = pictures(2)
    for batches, value in (([image], 0.0), ([image], 1.0), ([], 1.0)):
        with pytest.raises(SegaeError, match="batches must show objects and backgrounds, got"):
            FeatureDiscriminant(lambda _, value=value: torch.full_like(mask, value)).fit(Averages(), batches)


def slide(size: int = 96) -> tuple[Tensor, Tensor]:
    """Bright discs of several sizes, one cut off by the edge, on a dark ground with noise, and their mask."""
    places = [(0.2, 0.2, 0.1), (0.7, 0.3, 0.07), (1.0, 0.6, 0.12), (0.4, 0.8, 0.15)]
    mask = torch.stack([disc(size, x, y, radius) for x, y, radius in places]).amax(dim=0)
    return 0.1 + 0.5 * mask + 0.03 * torch.randn(1, 3, size, size, generator=drawing()).abs(), mask


def opencv_threshold(image: Tensor) -> Tensor:
    gray = (image.mean(dim=1)[0] * 200).round().clamp(0, 255).numpy().astype(np.uint8)
    return torch.from_numpy(cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]).float()[None, None]


def test_bright_and_dark_objects_are_found_where_light_falls_from_one_side_too() -> None:
    image, mask = slide()
    found = segment_by_brightness(torch.cat([image, 1 - image, 40 * image - 3]))
    assert (found.shape, found.dtype) == ((3, 1, 96, 96), torch.float32)
    assert [overlap(one, mask[0]) > 0.97 for one in found] == [True, True, True]
    assert overlap(found[:1], opencv_threshold(image)) > 0.97
    image = image + torch.linspace(0, 0.5, 96).view(1, 1, 1, -1)
    assert overlap(segment_by_brightness(image), mask) > 0.97
    assert overlap(opencv_threshold(image), mask) < 0.6
    for value in (0.0, 0.7, -3.0):
        assert segment_by_brightness(torch.full((2, 3, 32, 40), value)).sum() == 0


@pytest.mark.parametrize("find", [segment_by_color, GrabCut(), segment_by_brightness])
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(8, 64), st.integers(16, 64), st.sampled_from([0.0, 1e-4, 1.0, 1e4]))
def test_any_image_has_an_answer(find, channels: int, height: int, width: int, scale: float) -> None:
    found = find(scale * torch.randn(2, channels, height, width, generator=drawing(height)))
    assert found.shape == (2, 1, height, width)
    assert bool(((found >= 0) & (found <= 1)).all())
    if find is not segment_by_color:
        assert set(found.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("source", "boundary"), [("color", 1 / 48), ("features", 1 / 48), ("brightness", 1 / 96)])
def test_sources_have_boundaries_of_their_own(source: str, boundary: float) -> None:
    method = create_method("pseudo_masks", source=source)
    assert method.needs_pretrained_encoder == (source == "features")
    image, _ = scene()
    target = method.corrupt(image, drawing()).target
    prediction = torch.randn(2, 6, 96, 96, generator=drawing(1))
    same, other = (create_method("pseudo_masks", source=source, boundary=reach) for reach in (boundary, 0.1))
    assert torch.equal(method.loss(prediction, target, None), same.loss(prediction, target, None))
    assert not torch.equal(method.loss(prediction, target, None), other.loss(prediction, target, None))
    assert create_method("pseudo_masks", source=source, boundary=0).out_channels(3) == 5


def test_the_target_is_the_crop_in_its_own_light_and_its_mask() -> None:
    image, _ = scene(radius=0.33)
    seen = create_method("pseudo_masks").corrupt(image, drawing(3))
    crop, mask = seen.target.split([3, 1], dim=1)
    assert (seen.mask, seen.image.shape, mask.shape) == (None, (2, 3, 96, 96), (2, 1, 96, 96))
    assert overlap((crop[:, :1] > crop[:, 2:]).float(), mask) > 0.95  # the disc is redder than the ground
    assert (seen.image - crop).abs().mean() > 0.03
    assert torch.corrcoef(torch.stack([seen.image[0, 0].flatten(), crop[0, 0].flatten()]))[0, 1] > 0.9


def test_epochs_share_the_cuts_and_source_features_starts_over_when_prepared(cuts: list[int]) -> None:
    image, _ = scene()
    color, features = (create_method("pseudo_masks", source=source) for source in ("color", "features"))
    for seed in range(3):
        color.corrupt(image, drawing(seed))
    assert len(cuts) == 2
    before = features.corrupt(image, drawing()).target[:, 3:]
    assert torch.equal(before, color.corrupt(image, drawing()).target[:, 3:])  # not prepared: color decides
    cuts.clear()
    color.prepare(create_encoder("test_resnet"), [image])
    color.corrupt(image, drawing())
    assert not cuts
    features.prepare(Averages(), [image])
    features.corrupt(image, drawing())
    assert len(cuts) == 4  # two while it was prepared, two after


@pytest.mark.parametrize("boundary", [0.0, 0.05])
def test_the_object_of_a_prediction_counts_half_of_the_boundary(boundary: float) -> None:
    method = create_method("pseudo_masks", boundary=boundary)
    classes = method.out_channels(3) - 3
    index = torch.randint(classes, (2, 8, 8), generator=drawing())
    logits = 100 * nn.functional.one_hot(index, classes).movedim(3, 1).float()
    found = method.object_probability(torch.cat([torch.zeros(2, 3, 8, 8), logits], dim=1))
    assert torch.allclose(found[:, 0], torch.tensor([0.0, 1.0, 0.5])[index], atol=1e-5)


def test_the_object_is_cut_out_on_the_mean_color() -> None:
    image, mask = scene()
    picture = cut_out(image, mask)
    inside = mask.expand(2, 3, -1, -1) > 0
    assert torch.allclose(picture[inside], image[inside], atol=1e-6)
    ground = torch.where(inside, torch.nan, picture).flatten(2)
    assert torch.allclose(ground.nanmean(2), image.mean((2, 3)), atol=1e-5)
