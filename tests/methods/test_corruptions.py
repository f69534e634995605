"""Corruptions change what they should, and nothing that the generator did not draw."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.methods.corruptions import (
    PatchDifficulty,
    add_noise,
    add_scaled_noise,
    blur,
    change_light,
    crop_with_mask,
    hide_patches,
    reduce_resolution,
    remove_color,
)
from tests.methods.scenes import disc, drawing, overlap

DRAWN = {
    "color": lambda image, generator, probability=0.5: remove_color(image, generator, probability),
    "blur": lambda image, generator, probability=0.5: blur(image, generator, probability, (0.8, 0.8)),
    "resolution": lambda image, generator, probability=0.5: reduce_resolution(image, generator, probability, (2, 4)),
}
ALL = {
    **DRAWN,
    "noise": lambda image, generator: add_noise(image, generator, 0.5),
    "scaled noise": lambda image, generator: add_scaled_noise(image, generator, 0.22)[0],
    "light": change_light,
    "zero": lambda image, generator: hide_patches(image, generator, 8, 0.6).image,
    "mean": lambda image, generator: hide_patches(image, generator, 8, 0.6, fill="mean").image,
}


def images(count: int = 4, channels: int = 3, height: int = 32, width: int = 32, mean: float = 5.0) -> Tensor:
    return mean + torch.randn(count, channels, height, width, generator=drawing(9))


@pytest.mark.parametrize("name", ALL)
def test_the_generator_alone_decides_and_the_clean_image_stays(name: str) -> None:
    clean, corrupt, state = images(), ALL[name], torch.get_rng_state()
    source = drawing(1)
    first, second = corrupt(clean, source), corrupt(clean, source)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clean, images())
    assert torch.equal(corrupt(clean, drawing(1)), first)
    assert not torch.equal(second, first)
    assert not torch.equal(corrupt(clean, drawing(2)), first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(corrupt(clean, drawing(1)), first)
    assert corrupt(clean.bfloat16(), drawing()).dtype == torch.bfloat16
    last = corrupt(clean.to(memory_format=torch.channels_last), drawing(1))
    assert first.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(first, last, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_a_cpu_generator_draws_the_same_on_a_gpu(name: str) -> None:
    there = ALL[name](images().cuda(), drawing())
    assert there.is_cuda
    assert torch.allclose(there.cpu(), ALL[name](images(), drawing()), atol=1e-5)


@pytest.mark.parametrize("sigma", [0.22, 1.5])
def test_noise_has_its_sigma_and_scaled_noise_keeps_the_variance_and_gives_the_image_back(sigma: float) -> None:
    clean = images(8, height=64, width=64, mean=0)
    plain = add_noise(clean, drawing(), sigma) - clean
    assert plain.std().item() == pytest.approx(sigma, rel=0.02)
    assert abs(plain.mean().item()) < 0.02 * sigma
    noisy, noise = add_scaled_noise(clean, drawing(), sigma)
    assert torch.allclose(noisy * (1 + sigma**2) ** 0.5 - sigma * noise, clean, atol=1e-5)
    assert noise.std().item() == pytest.approx(1.0, abs=0.03)
    assert noisy.std().item() == pytest.approx(clean.std().item(), rel=0.02)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 0.99])
@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("hard", [False, True])
def test_every_image_hides_the_same_number_of_whole_patches(ratio: float, patch: int, hard: bool) -> None:
    side = 32 // patch
    difficulty = PatchDifficulty(torch.rand(4, side, side, generator=drawing(4)), 0.5) if hard else None
    corrupted = hide_patches(images(), drawing(), patch, ratio, difficulty=difficulty)
    assert corrupted.mask.shape == (4, 1, 32, 32)
    assert set(corrupted.mask.unique().tolist()) <= {0.0, 1.0}
    blocks = corrupted.mask.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4)
    assert torch.equal(blocks.amin(-1), blocks.amax(-1))  # a patch is hidden whole or not at all
    hidden = min(round(ratio * side**2), side**2 - 1)  # one stays visible
    assert blocks[..., 0].flatten(1).sum(1).tolist() == [hidden] * 4
    assert (corrupted.visible.side, corrupted.visible.count) == (patch, side**2 - hidden)


def test_patches_at_the_edge_are_smaller_and_every_patch_is_as_likely() -> None:
    corrupted = hide_patches(images(height=20, width=30), drawing(), 8, 0.5)
    corners = corrupted.mask[:, :, ::8, ::8]
    assert corners.flatten(1).sum(1).tolist() == [6.0] * 4
    assert torch.equal(corrupted.mask, corners.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :20, :30])
    assert corrupted.visible is None
    mask = hide_patches(torch.zeros(2000, 1, 32, 32), drawing(), 16, 0.5).mask
    assert torch.allclose(mask.mean(dim=0), torch.tensor(0.5), atol=0.05)


def test_visible_pixels_stay_and_hidden_ones_without_influence_become_zero_or_the_visible_mean() -> None:
    clean = images() * torch.tensor([1.0, 2.0, 3.0, -4.0]).view(4, 1, 1, 1)
    zero, mean = (hide_patches(clean, drawing(), 8, 0.6, fill=fill) for fill in ("zero", "mean"))
    other = torch.where(zero.mask > 0, torch.full_like(clean, torch.inf), clean)
    assert torch.equal(hide_patches(other, drawing(), 8, 0.6).image, zero.image)
    assert torch.equal(hide_patches(other, drawing(), 8, 0.6, fill="mean").image, mean.image)
    hidden = zero.mask.bool().expand_as(clean)
    assert torch.equal(zero.image[~hidden], clean[~hidden])
    assert torch.equal(mean.image[~hidden], clean[~hidden])
    assert zero.image[hidden].abs().max() == 0
    visible_mean = clean.masked_fill(hidden, torch.nan).flatten(2).nanmean(2)[..., None, None].expand_as(clean)
    assert torch.allclose(mean.image[hidden], visible_mean[hidden], atol=1e-5)
    with pytest.raises(SegaeError, match=r"patch_size .*0\.6.*got 64"):
        hide_patches(images(), drawing(), 64, 0.6)


def hidden_patches(ratio: float, difficulty: PatchDifficulty | None, shape: tuple[int, ...], seed: int) -> Tensor:
    """What is hidden of each image: bool (B, rows * columns)."""
    batch, rows, columns = shape
    image = torch.zeros(batch, 1, rows * 4 - 1, columns * 4 - 2)  # smaller patches at the edges
    mask = hide_patches(image, drawing(seed), 4, ratio, difficulty=difficulty).mask
    return mask[:, 0, ::4, ::4].flatten(1).bool()


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.floats(0.2, 0.85), st.floats(0, 1), st.integers(0, 99))
def test_the_most_difficult_patches_are_hidden_and_fraction_0_is_random(rows, columns, ratio, fraction, seed) -> None:
    shape, values = (3, rows, columns), torch.tensor([math.nan, 0.0, 0.5, 1.0, 2.0, math.inf])  # few: ties happen
    difficulty = PatchDifficulty(values[torch.randint(6, shape, generator=drawing(seed))], fraction)
    hidden = hidden_patches(ratio, difficulty, shape, seed)
    count = round(ratio * rows * columns)
    assert hidden.sum(1).tolist() == [count] * 3
    by_loss = round(difficulty.fraction * count)
    for is_hidden, loss in zip(hidden, difficulty.loss.flatten(1), strict=True):
        loss = torch.where(loss.isnan(), -torch.inf, loss)
        expected = loss.sort(descending=True).values[:by_loss]
        assert torch.equal(loss[is_hidden].sort(descending=True).values[:by_loss], expected)
    drawn = hidden_patches(ratio, None, shape, seed)
    assert torch.equal(hidden_patches(ratio, PatchDifficulty(difficulty.loss, 0.0), shape, seed), drawn)
    unknown = PatchDifficulty(torch.full(shape, torch.nan), difficulty.fraction)
    assert torch.equal(hidden_patches(ratio, unknown, shape, seed), drawn)


def test_chance_decides_among_the_others_and_between_equal_losses() -> None:
    loss = torch.arange(16.0).view(1, 4, 4).repeat(4000, 1, 1)
    hidden = hidden_patches(0.5, PatchDifficulty(loss, 0.5), (4000, 4, 4), 0).float().mean(dim=0)
    assert hidden[12:].tolist() == [1.0] * 4
    assert torch.allclose(hidden[:12], torch.tensor(4 / 12), atol=0.03)
    equal = hidden_patches(0.5, PatchDifficulty(torch.ones(4000, 4, 4), 1.0), (4000, 4, 4), 0)
    assert torch.allclose(equal.float().mean(dim=0), torch.tensor(0.5), atol=0.03)


def test_wrong_difficulty_is_refused() -> None:
    for fraction in (1.5, -0.1, math.nan):
        with pytest.raises(SegaeError, match=f"fraction .*got {fraction}"):
            PatchDifficulty(torch.zeros(1, 2, 2), fraction)
    with pytest.raises(SegaeError, match=r"loss .*got \(4, 4\)"):
        PatchDifficulty(torch.zeros(4, 4), 0.5)
    with pytest.raises(SegaeError, match=r"loss .*\(4, 4, 4\).*got \(2, 4, 4\)"):
        hide_patches(images(), drawing(), 8, 0.5, difficulty=PatchDifficulty(torch.zeros(2, 4, 4), 0.5))


@pytest.mark.parametrize("name", DRAWN)
def test_each_image_is_drawn_on_its_own(name: str) -> None:
    clean = images(400, height=8, width=8)
    changed = [(DRAWN[name](clean, drawing(), share) != clean).flatten(1).any(1) for share in (0.0, 0.3, 1.0)]
    assert (bool(changed[0].any()), bool(changed[2].all())) == (False, True)
    assert 0.22 < changed[1].float().mean().item() < 0.38
    other = clean.clone()
    other[1:] += 1
    assert torch.equal(DRAWN[name](clean, drawing(), 1.0)[0], DRAWN[name](other, drawing(), 1.0)[0])
    even = torch.full((2, 3, 17, 30), 2.5)
    assert torch.allclose(DRAWN[name](even, drawing(), 1.0), even, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gray_is_the_luminance_in_every_channel(channels: int) -> None:
    clean = images(channels=channels)
    weights = torch.tensor([0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels)
    expected = (clean * weights.view(1, -1, 1, 1)).sum(dim=1, keepdim=True).expand_as(clean)
    assert torch.allclose(remove_color(clean, drawing(), 1.0), expected, atol=1e-5)


def test_blur_spreads_a_point_into_a_gaussian_of_a_width_of_its_own() -> None:
    point = torch.zeros(300, 1, 31, 31)
    point[:, :, 15, 15] = 1
    blurred = blur(point, drawing(), 1.0, (1.3, 1.3))[0, 0]
    squared = (torch.arange(31.0) - 15).square()
    gaussian = torch.exp(-(squared[:, None] + squared) / (2 * 1.3**2)) / (2 * math.pi * 1.3**2)
    assert torch.allclose(blurred, gaussian, atol=1e-4)
    many = blur(point, drawing(), 1.0, (1.0, 2.0))
    width = (many.sum(dim=2).squeeze(1) * squared).sum(dim=1).sqrt()
    assert 0.99 < width.min() < 1.05
    assert 1.95 < width.max() < 2.01
    assert width.std().item() == pytest.approx(1 / 12**0.5, rel=0.15)  # that of an even distribution


@pytest.mark.parametrize(("height", "width"), [(24, 32), (23, 31)])
def test_reduced_resolution_is_area_averaging_and_bilinear_growth_by_one_of_the_factors(height, width) -> None:
    clean = images(height=height, width=width)
    many, same = reduce_resolution(clean.repeat(50, 1, 1, 1), drawing(), 1.0, (2, 4)), []
    for factor in (2, 4):
        small = functional.interpolate(clean, size=(math.ceil(height / factor), math.ceil(width / factor)), mode="area")
        expected = functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
        same.append((many - expected.repeat(50, 1, 1, 1)).abs().amax(dim=(1, 2, 3)) < 1e-4)
    assert torch.equal(same[0], ~same[1])
    assert 0.35 < same[0].float().mean().item() < 0.65


@pytest.mark.parametrize("name", ["contrast", "saturation", "brightness", "tint"])
def test_every_image_gets_a_light_of_its_own_in_units_of_its_deviation(name: str) -> None:
    clean, amounts = images(300, mean=0), dict.fromkeys(("contrast", "saturation", "brightness", "tint"), 0.0)
    assert torch.allclose(change_light(clean, drawing(), **amounts), clean, atol=1e-5)
    changed = (change_light(40 * clean + 3, drawing(), **(amounts | {name: 0.4})) - 3) / 40
    if name in ("contrast", "saturation"):
        kept = (1, 2, 3) if name == "contrast" else 1  # the mean over these stays
        assert torch.allclose(changed.mean(kept), clean.mean(kept), atol=1e-4)
        away = [(one - one.mean(kept, keepdim=True)).flatten(1).norm(dim=1) for one in (changed, clean)]
        measure = away[0] / away[1] - 1
    else:
        shift = (changed - clean).mean((2, 3)) / clean.flatten(1).std(1)[:, None]
        assert bool((shift.std(1) > 0.01).any()) == (name == "tint")
        measure = shift[:, 0]
    assert -0.41 < measure.min().item() < -0.35
    assert 0.35 < measure.max().item() < 0.41


def test_a_crop_shows_image_and_mask_at_the_same_place() -> None:
    mask = disc(96, radius=0.35).expand(4, -1, -1, -1)
    lit = torch.cat([mask, 0 * mask, 0 * mask], dim=1)
    cropped = crop_with_mask(lit, mask, drawing(3), area=(0.4, 0.4))
    assert cropped.shape == (4, 4, 96, 96)
    for one in cropped:
        assert overlap(one[:1], one[3:]) > 0.99
    assert not torch.equal(cropped[0], cropped[1])  # each image has a crop of its own
    whole = crop_with_mask(lit, mask, drawing(), area=(1.0, 1.0))
    assert torch.allclose(whole, torch.cat([lit, mask], dim=1), atol=1e-3)


def test_crops_stay_inside_the_image_and_have_their_area() -> None:
    rows = torch.arange(1, 128, 2).expand(1, 64, 64) / 64 - 1  # centers of the pixels in [-1, 1]
    place = torch.stack([rows.mT, rows], dim=1).repeat(200, 1, 1, 1)
    cropped = crop_with_mask(place, torch.zeros(200, 1, 64, 64), drawing(), area=(0.25, 1.0))
    side = cropped[:, 0, 48, 32] - cropped[:, 0, 16, 32]  # of the middle: half of the crop's side, in half sides
    assert torch.allclose(side, cropped[:, 1, 32, 48] - cropped[:, 1, 32, 16], atol=1e-4)
    assert torch.allclose(torch.stack(side.aminmax()), torch.tensor([0.5, 1.0]), atol=0.02)
    assert cropped[:, :2].abs().max() <= 1
