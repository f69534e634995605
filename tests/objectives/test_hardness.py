"""Loss-driven masks hide the patches of highest loss, as many as they are asked to, and draw the rest."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.corruption import Hardness, PatchMask

PATCH = 4


def hidden_patches(mask: PatchMask, rows: int, columns: int, hardness: Hardness | None, seed: int) -> Tensor:
    """What the mask hides of each image: (B, rows * columns) of bool."""
    batch = 3 if hardness is None else len(hardness.loss_brc)
    image = torch.zeros(batch, 1, rows * PATCH - 1, columns * PATCH - 2)  # smaller patches at the edges
    hidden = mask(image, torch.Generator().manual_seed(seed), hardness).hidden_b1hw
    return hidden[:, 0, ::PATCH, ::PATCH].flatten(1).bool()


@st.composite
def cases(draw) -> tuple[PatchMask, Hardness, int]:
    rows, columns = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    ratio = draw(st.integers(1, rows * columns - 1)) / (rows * columns)
    # few different values: ties happen
    loss = st.sampled_from([math.nan, 0.0, 0.5, 1.0, 2.0, 3.0, math.inf])
    values = draw(st.lists(loss, min_size=3 * rows * columns, max_size=3 * rows * columns))
    share = draw(st.floats(0, 1))
    hardness = Hardness(torch.tensor(values).view(3, rows, columns), share)
    return PatchMask(PATCH, ratio), hardness, draw(st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_every_image_hides_its_share_and_the_hardest_are_among_them(case) -> None:
    mask, hardness, seed = case
    _, rows, columns = hardness.loss_brc.shape
    hidden = hidden_patches(mask, rows, columns, hardness, seed)
    count = round(mask.ratio * rows * columns)
    assert hidden.sum(1).tolist() == [count] * 3
    by_loss = round(hardness.share * count)
    for is_hidden, loss in zip(hidden, hardness.loss_brc.flatten(1), strict=True):
        loss = torch.where(loss.isnan(), -torch.inf, loss)
        wanted = loss.sort(descending=True).values[:by_loss]
        assert torch.equal(loss[is_hidden].sort(descending=True).values[:by_loss], wanted)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_share_0_and_unknown_losses_are_the_random_draw(case) -> None:
    mask, hardness, seed = case
    _, rows, columns = hardness.loss_brc.shape
    drawn = hidden_patches(mask, rows, columns, None, seed)
    assert torch.equal(hidden_patches(mask, rows, columns, Hardness(hardness.loss_brc, 0.0), seed), drawn)
    unknown = Hardness(torch.full_like(hardness.loss_brc, torch.nan), hardness.share)
    assert torch.equal(hidden_patches(mask, rows, columns, unknown, seed), drawn)


@pytest.mark.parametrize("fill", ["zero", "mean", "noise"])
def test_share_0_is_the_random_input_bit_for_bit(fill: str) -> None:
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    mask, easy = PatchMask(8, 0.5, fill), Hardness(torch.rand(4, 4, 4), 0.0)
    first, second = (mask(image, torch.Generator().manual_seed(1), hardness) for hardness in (None, easy))
    assert torch.equal(first.image_bchw, second.image_bchw)


def test_the_rest_is_drawn_evenly_among_the_others() -> None:
    loss = torch.arange(16.0).view(1, 4, 4).repeat(4000, 1, 1)
    hidden = hidden_patches(PatchMask(PATCH, 0.5), 4, 4, Hardness(loss, 0.5), 0).float().mean(dim=0)
    assert hidden[12:].tolist() == [1.0] * 4
    assert torch.allclose(hidden[:12], torch.tensor(4 / 12), atol=0.03)


def test_chance_decides_between_equal_losses() -> None:
    hidden = hidden_patches(PatchMask(PATCH, 0.5), 4, 4, Hardness(torch.ones(4000, 4, 4), 1.0), 0)
    assert torch.allclose(hidden.float().mean(dim=0), torch.tensor(0.5), atol=0.03)


def test_a_known_loss_comes_before_an_unknown_one() -> None:
    loss = torch.full((3, 4, 4), torch.nan)
    loss[:, 1, 2] = 0.0
    for seed in range(20):
        assert hidden_patches(PatchMask(PATCH, 0.25), 4, 4, Hardness(loss, 0.25), seed)[:, 6].all()


def test_wrong_hardness_is_refused() -> None:
    with pytest.raises(SegaeError, match=r"share is 1.5"):
        Hardness(torch.zeros(1, 2, 2), 1.5)
    with pytest.raises(SegaeError, match=r"share is nan"):
        Hardness(torch.zeros(1, 2, 2), math.nan)
    with pytest.raises(SegaeError, match=r"shape \(4, 4\)"):
        Hardness(torch.zeros(4, 4), 0.5)
    with pytest.raises(SegaeError, match=r"shape \(2, 4, 4\), but the mask has \(3, 4, 4\)"):
        PatchMask(8, 0.5)(torch.zeros(3, 3, 32, 32), torch.Generator(), Hardness(torch.zeros(2, 4, 4), 0.5))
