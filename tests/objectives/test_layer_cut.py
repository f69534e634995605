"""The cut follows the edges, is made once for an image, and does not fail where there is nothing to cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segae.objectives import layer_cut
from segae.objectives.layer_cut import LayerCut
from segae.objectives.layers import split_layers
from tests.objectives.scenes import overlap, scene


@pytest.mark.parametrize("radius", [0.33, 0.36])
def test_the_boundary_is_where_the_image_has_it(radius: float) -> None:
    image, shape = scene(radius=radius)
    found = LayerCut()(image)
    assert found.shape == (2, 1, 96, 96)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    for one, soft in zip(found, split_layers(image), strict=True):
        assert overlap(one, shape[0]) > overlap(soft, shape[0])
        assert overlap(one, shape[0]) > 0.99


def test_an_image_and_its_mirror_image_are_cut_once_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = scene(x=0.4)
    cuts: list[int] = []
    grab = layer_cut._grab
    monkeypatch.setattr(layer_cut, "_grab", lambda *given: (cuts.append(1), grab(*given))[1])
    find = LayerCut()
    first = find(image)
    assert len(cuts) == 2
    assert torch.equal(find(image.flip(3)).flip(3), first)
    assert torch.equal(find(3 * image[1:] + 1), first[1:])
    assert torch.equal(find(torch.cat([image[1:], image[1:], image[:1]])), first[[1, 1, 0]])
    assert len(cuts) == 2
    assert torch.equal(LayerCut()(image), first)
    assert len(cuts) == 4


def test_what_is_kept_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = scene()
    monkeypatch.setattr(layer_cut, "_KEPT", 1)
    find = LayerCut()
    first = [find(image[index : index + 1]) for index in (0, 1)]
    assert len(find._kept) == 1
    assert torch.equal(find(image), torch.cat(first))


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_any_image_has_an_answer(channels: int, height: int, width: int, scale: float, seed: int) -> None:
    image = scale * torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    found = LayerCut()(image)
    assert found.shape == (2, 1, height, width)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
