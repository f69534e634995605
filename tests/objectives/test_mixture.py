"""A mixture is its parts one after another, with one mask and one target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.corruption import GaussianNoise, Hardness, Identity, PatchMask, ScaledNoise
from segae.objectives.degradation import Blur, ColourRemoval
from segae.objectives.mixture import Mixture


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_the_parts_work_one_after_another_on_one_stream_of_numbers(image) -> None:
    parts = (ColourRemoval(0.5), Blur(0.5, (0.5, 2.0)), ScaledNoise(0.22, "image"), PatchMask(8, 0.5, "mean"))
    source, expected, hidden = generator(), image, None
    for part in parts:
        corrupted = part(expected, source)
        expected, hidden = corrupted.image_bchw, corrupted.hidden_b1hw
    mixed = Mixture(parts)(image, generator())
    assert torch.equal(mixed.image_bchw, expected)
    assert torch.equal(mixed.hidden_b1hw, hidden)
    assert mixed.target_bchw is None


def test_what_either_mask_hides_is_hidden(image) -> None:
    source = generator()
    first, second = PatchMask(8, 0.25)(image, source).hidden_b1hw, PatchMask(16, 0.5)(image, source).hidden_b1hw
    mixed = Mixture((PatchMask(8, 0.25), PatchMask(16, 0.5), GaussianNoise(0.1)))(image, generator())
    assert torch.equal(mixed.hidden_b1hw.bool(), first.bool() | second.bool())
    assert mixed.hidden_b1hw.sum() > max(first.sum(), second.sum())


def test_without_a_mask_nothing_is_hidden(image) -> None:
    assert Mixture((GaussianNoise(0.1), ColourRemoval(0.5)))(image, generator()).hidden_b1hw is None


def test_the_mask_gets_the_hardness(image) -> None:
    loss = torch.zeros(4, 4, 4)
    loss[:, 0, :] = 1  # the uppermost patches
    mixed = Mixture((GaussianNoise(0.1), PatchMask(8, 0.25)))
    hidden = mixed(image, generator(), Hardness(loss, 1.0)).hidden_b1hw
    assert hidden[:, :, :8].min() == 1
    assert hidden[:, :, 8:].max() == 0


def test_a_part_with_a_target_of_its_own_is_refused(image) -> None:
    with pytest.raises(SegaeError, match="one target only"):
        Mixture((Identity(), ScaledNoise(0.22, "noise")))(image, generator())


def test_no_parts_are_refused() -> None:
    with pytest.raises(SegaeError, match="has no parts"):
        Mixture(())
