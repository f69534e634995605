"""Named objectives are the compositions they are described as."""

from __future__ import annotations

import pytest
import torch

from segae.errors import SegaeError
from segae.objectives.corruption import GaussianNoise, Identity, PatchMask
from segae.objectives.presets import OBJECTIVES, Objective, make_objective
from segae.objectives.reconstruction import MeanAbsoluteError, MeanSquaredError

VALUES = {"noise_sigma": 0.3, "patch": 8, "mask_ratio": 0.5}


def loss_of(objective: Objective, guess: torch.Tensor) -> tuple[float, torch.Tensor | None]:
    clean = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    corrupted = objective.corruption(clean, torch.Generator().manual_seed(1))
    return objective.reconstruction(guess * clean, clean, corrupted.hidden_b1hw).item(), corrupted.hidden_b1hw


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_name_builds_an_objective_that_the_clean_image_satisfies(name: str) -> None:
    objective = make_objective(name, **VALUES)
    assert objective.name == name
    assert loss_of(objective, torch.tensor(1.0))[0] == 0
    assert loss_of(objective, torch.tensor(0.0))[0] == pytest.approx(1.0, abs=0.1)


def test_the_values_arrive() -> None:
    assert make_objective("reconstruct", **VALUES).corruption == Identity()
    assert make_objective("denoise", **VALUES).corruption == GaussianNoise(0.3)
    assert make_objective("mask", **VALUES).corruption == PatchMask(8, 0.5)


def test_mask_is_judged_where_it_hides() -> None:
    objective = make_objective("mask", **VALUES)
    _, hidden = loss_of(objective, torch.tensor(1.0))
    wrong_where_visible = torch.where(hidden > 0, 1.0, 7.0)
    assert loss_of(objective, wrong_where_visible)[0] == 0
    assert loss_of(make_objective("denoise", **VALUES), wrong_where_visible)[0] > 1


def test_parts_compose_freely() -> None:
    objective = Objective("mine", PatchMask(4, 0.25, "noise"), MeanAbsoluteError())
    assert loss_of(objective, torch.tensor(1.0))[0] == 0
    objective = Objective("mine", GaussianNoise(1.0), MeanSquaredError())
    assert loss_of(objective, torch.tensor(1.0))[0] == 0


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("denoize", {}, 'objective "denoize" is not known. Did you mean denoise[?] Use one of reconstruct'),
        ("xyz", {}, 'objective "xyz" is not known. Use one of'),
        ("denoise", {"noise_sigma": 0.0}, "noise sigma is 0.0"),
        ("mask", {"mask_ratio": 0.0}, "nothing to judge"),
        ("mask", {"mask_ratio": 1.5}, "mask ratio is 1.5"),
        ("mask", {"patch": 0}, "mask patch is 0"),
    ],
)
def test_names_and_values_are_checked(name: str, values: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        make_objective(name, **{**VALUES, **values})


def test_unused_values_are_not_checked() -> None:
    assert make_objective("reconstruct", noise_sigma=-1, patch=0, mask_ratio=9).corruption == Identity()
