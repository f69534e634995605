"""Features that tell object from ground are found from targets that err, and say better than they where it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.objectives.discriminant import WeightedSums
from segae.objectives.feature_layers import FeatureLayers
from segae.objectives.layer_cut import LayerCut
from segae.objectives.layers import split_layers
from tests.objectives.scenes import disc, overlap

SIZE = 64


class Averages(nn.Module):
    """Features of stride 1, 16 and 32 that are the image, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        pooled = [nn.functional.avg_pool2d(image_bchw, stride) for stride in (16, 32)]
        return [image_bchw, *(self.scale * one for one in pooled)]


def pictures(count: int = 12) -> tuple[Tensor, Tensor]:
    """Discs anywhere, told by their first channel; the others are noise of large blobs."""
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(count, 2, generator=generator) * 0.4 + 0.3
    shape = torch.cat([disc(SIZE, float(x), float(y), 0.22) for x, y in places])
    blobs = nn.functional.interpolate(torch.randn(count, 2, 4, 4, generator=generator), size=SIZE, mode="bilinear")
    noise = 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return torch.cat([shape, 2 * blobs], dim=1) + noise, shape


def errs(shape: Tensor, share: float = 0.3) -> Tensor:
    """The truth with a share of the images exchanged for something else."""
    wrong = int(len(shape) * share)
    return torch.cat([shape[:wrong].roll(SIZE // 2, 3), shape[wrong:]])


def test_the_errors_of_some_images_are_averaged_out() -> None:
    image, shape = pictures()
    said = errs(shape)
    find = FeatureLayers(lambda _: said).fit(Averages(), [image])
    found = find(image)
    assert found.shape == shape.shape
    assert found.dtype == torch.float32
    wrong = int(len(shape) * 0.3)
    assert overlap(found[:wrong], shape[:wrong]) > 0.55  # of maps of 8 x 8 positions
    assert overlap(found[:wrong], shape[:wrong]) > 3 * overlap(said[:wrong], shape[:wrong])
    assert overlap(LayerCut(find)(image), shape) > overlap(found, shape)


def test_the_direction_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    vector_nc = torch.randn(400, 5, generator=generator).double() @ torch.randn(5, 5, generator=generator).double()
    label_n = (vector_nc[:, 0] + torch.randn(400, generator=generator) > 0).double()
    sums = [WeightedSums(), WeightedSums()]
    for part in range(0, 400, 100):
        rows = slice(part, part + 100)
        for side, weight_n in zip(sums, (1 - label_n[rows], label_n[rows]), strict=True):
            side.add(vector_nc[rows], weight_n)
    ground, thing = sums
    direction_c = torch.linalg.solve((ground.scatter() + thing.scatter()) / 400, thing.mean() - ground.mean())
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(vector_nc.numpy(), label_n.numpy())
    ratio_c = direction_c / torch.from_numpy(theirs.coef_[0])
    assert torch.allclose(ratio_c, torch.ones(5, dtype=torch.float64), atol=1e-6)


def test_before_it_was_fitted_it_splits_by_colours() -> None:
    image, _ = pictures(2)
    assert torch.equal(FeatureLayers()(image), split_layers(image))


def test_the_encoder_it_keeps_is_that_of_the_start_and_at_rest() -> None:
    image, shape = pictures()
    encoder = create_encoder("test_resnet", "random")[0].train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    find = FeatureLayers(lambda _: shape).fit(encoder, [image])
    first = find(image[:2])
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(find(image[:2]), first)
    assert torch.allclose(find(image[:1]), first[:1], atol=1e-5)  # no image sees its neighbours


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_maps_of_stride_16_are_found_in_every_family(name: str) -> None:
    encoder = create_encoder(name, "random")[0].eval()
    image, shape = pictures(4)
    find = FeatureLayers(lambda _: shape).fit(encoder, [image])
    assert find._features(image).shape[2:] == (SIZE // 8, SIZE // 8)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_without_an_object_or_without_a_ground_are_refused(value: float) -> None:
    image, shape = pictures(2)
    find = FeatureLayers(lambda _: torch.full_like(shape, value))
    with pytest.raises(SegaeError, match="no direction tells object from ground.*objective layers"):
        find.fit(Averages(), [image])
    with pytest.raises(SegaeError, match="no direction tells object from ground"):
        FeatureLayers().fit(Averages(), [])
    assert torch.equal(find(image), split_layers(image))


@settings(max_examples=15, deadline=None)
@given(scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]), side=st.sampled_from([32, 48, 96]), seed=st.integers(0, 99))
def test_any_image_has_an_answer(scale: float, side: int, seed: int) -> None:
    image, shape = pictures()
    find = FeatureLayers(lambda _: shape).fit(Averages(), [image])
    noise = scale * torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    found = find(noise)
    assert found.shape == (2, 1, side, side)
    assert bool(((found >= 0) & (found <= 1)).all())
