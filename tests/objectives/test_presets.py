"""Named objectives are the compositions they are described as."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.corruption import GaussianNoise, Identity, PatchMask, ScaledNoise
from segae.objectives.degradation import Blur, ColourRemoval, LightChange, Shrink
from segae.objectives.frequency import FrequencyError
from segae.objectives.gradients import PixelsAndGradients, oriented_gradients
from segae.objectives.mixture import Mixture
from segae.objectives.object_crop import CropOfLayers, LayersAndPixels
from segae.objectives.patches import spread_patches
from segae.objectives.presets import DEFAULTS, OBJECTIVES, TARGETS, Objective, make_objective
from segae.objectives.reconstruction import (
    MeanAbsoluteError,
    MeanSquaredError,
    PatchNormalisedError,
    normalise_patches,
)
from tests.objectives.scenes import disc

VALUES = {"noise_sigma": 0.3, "patch": 8, "mask_ratio": 0.5, "boundary": 0.05}
MASKED = {"mask", "sparse_mask", "a2mim"}
OWN_TARGET = {"decoder_denoise", "layers", "feature_layers", "otsu"}


def batch(objective: Objective) -> tuple[Tensor, Tensor | None]:
    """Target and hidden mask of some images."""
    clean = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if isinstance(objective.reconstruction, LayersAndPixels):  # images that have an object with an edge
        clean = 0.02 * clean + 4 * disc(32, radius=0.2)
    corrupted = objective.corruption(clean, torch.Generator().manual_seed(1))
    target = clean if corrupted.target_bchw is None else corrupted.target_bchw
    return target, corrupted.hidden_b1hw


def perfect(objective: Objective, target: Tensor) -> Tensor:
    """What the decoder should give."""
    score = objective.reconstruction
    if isinstance(score, PatchNormalisedError):
        return normalise_patches(target, score.patch)
    if isinstance(score, PixelsAndGradients):
        histogram = oriented_gradients(target, score.cell, score.bins)
        return torch.cat([target, spread_patches(histogram, score.cell, 32, 32)], dim=1)
    if isinstance(score, LayersAndPixels):
        return torch.cat([target[:, :3], score.layers_of(target[:, 3:]).double().clamp(1e-20, 1).log()], dim=1)
    return target


@pytest.mark.parametrize("target_name", [None, *TARGETS])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_name_and_target_builds_an_objective_that_can_be_met(name: str, target_name: str | None) -> None:
    if name in OWN_TARGET and target_name is not None:
        pytest.skip("has its own target only")
    objective = make_objective(name, **VALUES, target=target_name)
    assert objective.name == name
    target, hidden = batch(objective)
    best = perfect(objective, target)
    assert best.shape[1] == objective.reconstruction.out_channels(3)
    assert objective.reconstruction(best, target, hidden).item() < 1e-9
    assert objective.reconstruction(0 * best, target, hidden).item() > 0.5


@pytest.mark.parametrize("target_name", [None, *TARGETS])
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in OWN_TARGET])
def test_masks_are_judged_where_they_hide_and_others_everywhere(name: str, target_name: str | None) -> None:
    objective = make_objective(name, **VALUES, target=target_name)
    target, hidden = batch(objective)
    right = torch.zeros(4, 1, 32, 32) if hidden is None else hidden
    wrong_where_visible = torch.where(right > 0, 1.0, 7.0) * perfect(objective, target)
    loss = objective.reconstruction(wrong_where_visible, target, hidden).item()
    assert loss < 1e-9 if name in MASKED else loss > 0.5


def test_the_values_arrive() -> None:
    assert make_objective("reconstruct", **VALUES) == Objective("reconstruct", Identity(), MeanSquaredError())
    assert make_objective("denoise", **VALUES) == Objective("denoise", GaussianNoise(0.3), MeanSquaredError())
    assert make_objective("mask", **VALUES) == Objective("mask", PatchMask(8, 0.5), MeanSquaredError("hidden"))
    assert make_objective("sparse_mask", **VALUES) == Objective(
        "sparse_mask", PatchMask(8, 0.5, "zero"), PatchNormalisedError(8, "hidden"), "sparse", "hierarchical"
    )
    assert make_objective("a2mim", **VALUES) == Objective(
        "a2mim", PatchMask(8, 0.5, "mean"), FrequencyError(0.5, "hidden"), "token", "linear"
    )
    parts = (
        PatchMask(8, 0.5, "mean"),
        ColourRemoval(0.3),
        Blur(0.3, (0.5, 2.0)),
        Shrink(0.3, (2, 4)),
        ScaledNoise(0.3, "image"),
    )
    assert make_objective("mixture", **VALUES) == Objective(
        "mixture", Mixture(parts), PixelsAndGradients(where="all"), "dense", "unet"
    )
    assert make_objective("layers", **VALUES) == Objective(
        "layers",
        CropOfLayers((0.5, 1.0), LightChange()),
        LayersAndPixels(0.1, 0.05),
        "dense",
        "unet",
        crops=True,
    )
    for name in ("feature_layers", "otsu"):
        assert make_objective(name, **VALUES).reconstruction == LayersAndPixels(0.1, 0.05)
    assert make_objective("decoder_denoise", **VALUES) == Objective(
        "decoder_denoise", ScaledNoise(0.3, "noise"), MeanSquaredError(), "dense", "unet", frozen_encoder=True
    )


@pytest.mark.parametrize("name", ["mask", "sparse_mask", "a2mim", "mixture"])
def test_nothing_hidden_is_in_what_the_network_sees(name: str) -> None:
    corruption = make_objective(name).corruption
    clean = torch.randn(6, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    seen = corruption(clean, torch.Generator().manual_seed(1))
    assert seen.hidden_b1hw is not None
    other = torch.where(seen.hidden_b1hw > 0, torch.full_like(clean, 50.0), clean)
    assert torch.equal(corruption(other, torch.Generator().manual_seed(1)).image_bchw, seen.image_bchw)


def test_values_that_are_left_out_are_the_objectives_own() -> None:
    assert make_objective("denoise").corruption == GaussianNoise(0.5)
    assert make_objective("mask").corruption == PatchMask(16, 0.6)
    assert make_objective("sparse_mask").corruption == PatchMask(32, 0.6)
    assert make_objective("sparse_mask").reconstruction == PatchNormalisedError(32)
    assert make_objective("a2mim").corruption == PatchMask(32, 0.6, "mean")
    parts = make_objective("mixture").corruption.parts
    assert (parts[0], parts[-1]) == (PatchMask(16, 0.4, "mean"), ScaledNoise(0.22, "image"))
    assert make_objective("decoder_denoise").corruption == ScaledNoise(0.22)
    for name, reach in (("layers", 1 / 48), ("feature_layers", 1 / 48), ("otsu", 1 / 96)):
        assert make_objective(name).reconstruction == LayersAndPixels(0.1, reach)
    assert make_objective("mask", mask_ratio=0.25).corruption == PatchMask(16, 0.25)
    for name in OBJECTIVES:
        assert make_objective(name, **DEFAULTS[name]) == make_objective(name, noise_sigma=None, patch=None)


@pytest.mark.parametrize("size", [96, 128])
@pytest.mark.parametrize("name", ["sparse_mask", "a2mim"])
def test_large_patches_fit_small_images(name: str, size: int) -> None:
    hidden = make_objective(name).corruption(torch.zeros(2, 3, size, size), torch.Generator()).hidden_b1hw
    patches = (size // 32) ** 2
    assert hidden[:, 0, ::32, ::32].sum(dim=(1, 2)).tolist() == [round(0.6 * patches)] * 2


def test_parts_compose_freely() -> None:
    for objective in (
        Objective("mine", PatchMask(4, 0.25, "noise"), MeanAbsoluteError()),
        Objective("mine", GaussianNoise(1.0), MeanSquaredError()),
    ):
        target, hidden = batch(objective)
        assert objective.reconstruction(target, target, hidden) == 0


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("denoize", {}, 'objective "denoize" is not known. Did you mean denoise[?] Use one of reconstruct'),
        ("xyz", {}, 'objective "xyz" is not known. Use one of'),
        ("denoise", {"noise_sigma": 0.0}, "noise sigma is 0.0"),
        ("decoder_denoise", {"noise_sigma": 0.0}, "noise sigma is 0.0"),
        ("mask", {"mask_ratio": 0.0}, "objective mask would have nothing to judge"),
        ("sparse_mask", {"mask_ratio": 0.0}, "nothing to judge"),
        ("a2mim", {"mask_ratio": 0.0}, "nothing to judge"),
        ("mask", {"mask_ratio": 1.5}, "mask ratio is 1.5"),
        ("mask", {"patch": 0}, "mask patch is 0"),
        ("mixture", {"patch": 0}, "mask patch is 0"),
        ("mask", {"target": "gradient"}, 'target "gradient" is not known. Did you mean gradients[?] Use one of pixels'),
        ("layers", {"target": "pixels"}, "says layers; target pixels does not go with it"),
        ("decoder_denoise", {"target": "pixels"}, "predicts the noise; target pixels does not go with it"),
    ],
)
def test_names_and_values_are_checked(name: str, values: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        make_objective(name, **{**VALUES, **values})


def test_unknown_masking_is_refused() -> None:
    with pytest.raises(SegaeError, match='masking "sparce" is not known. Did you mean sparse'):
        Objective("mine", Identity(), MeanSquaredError(), masking="sparce")


def test_unused_values_are_not_checked() -> None:
    assert make_objective("reconstruct", noise_sigma=-1, patch=0, mask_ratio=9).corruption == Identity()


def test_names_come_with_one_line_each_and_without_torch() -> None:
    assert list(OBJECTIVES) == list(DEFAULTS)
    assert list(OBJECTIVES)[:3] == ["reconstruct", "denoise", "mask"]
    for sentence in (*OBJECTIVES.values(), *TARGETS.values()):
        assert sentence
        assert "\n" not in sentence
    code = "import sys, segae.objectives.catalogue; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
