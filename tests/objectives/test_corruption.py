"""Corruptions do what they say to the input, and nothing that the generator did not say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.objectives.corruption import GaussianNoise, Hardness, Identity, PatchMask, ScaledNoise
from segae.objectives.degradation import Blur, ColourRemoval, Shrink
from segae.objectives.mixture import Mixture

DEGRADATIONS = [ColourRemoval(0.5), Blur(0.5, (0.5, 2.0)), Shrink(0.5, (2, 4))]
MASKS = [PatchMask(8, 0.6), PatchMask(8, 0.6, "mean"), PatchMask(8, 0.6, "noise")]
NOISES = [GaussianNoise(0.5), ScaledNoise(0.22), ScaledNoise(0.22, "image")]
MIXED = Mixture((*DEGRADATIONS, ScaledNoise(0.22, "image"), PatchMask(8, 0.6, "mean")))
ALL = [Identity(), *NOISES, *MASKS, *DEGRADATIONS, MIXED]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(height: int = 32, width: int = 32) -> Tensor:
    return 5 + torch.randn(4, 3, height, width, generator=generator(9))


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_the_generator_alone_decides(corruption) -> None:
    torch.manual_seed(0)
    first = corruption(images(), generator(1))
    torch.manual_seed(1)
    second = corruption(images(), generator(1))
    assert torch.equal(first.image_bchw, second.image_bchw)
    state = torch.get_rng_state()
    corruption(images(), generator(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("corruption", ALL[1:], ids=repr)
def test_another_seed_and_another_draw_differ(corruption) -> None:
    source = generator(1)
    first, second = corruption(images(), source), corruption(images(), source)
    other = corruption(images(), generator(2))
    assert not torch.equal(first.image_bchw, second.image_bchw)
    assert not torch.equal(first.image_bchw, other.image_bchw)


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_the_clean_image_is_left_alone(corruption) -> None:
    clean = images()
    corruption(clean, generator())
    assert torch.equal(clean, images())


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_the_memory_format_is_kept_and_changes_nothing(corruption) -> None:
    plain = corruption(images(), generator(1)).image_bchw
    assert plain.is_contiguous()
    last = corruption(images().to(memory_format=torch.channels_last), generator(1)).image_bchw
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain, last, atol=1e-5)


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_half_precision_stays_half_and_autocast_changes_nothing(corruption) -> None:
    assert corruption(images().bfloat16(), generator()).image_bchw.dtype == torch.bfloat16
    expected = corruption(images(), generator()).image_bchw
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(corruption(images(), generator()).image_bchw, expected)


@pytest.mark.parametrize("corruption", [part for part in ALL if part != NOISES[1]], ids=repr)
def test_the_target_is_the_clean_image(corruption) -> None:
    assert corruption(images(), generator()).target_bchw is None


def test_identity_is_the_image() -> None:
    corrupted = Identity()(images(), generator())
    assert torch.equal(corrupted.image_bchw, images())
    assert corrupted.hidden_b1hw is None


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_noise_has_its_sigma_and_no_mean(sigma: float) -> None:
    clean = torch.zeros(8, 3, 64, 64)
    noise = GaussianNoise(sigma)(clean, generator()).image_bchw
    assert noise.std().item() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean().item()) < 0.02 * sigma


@pytest.mark.parametrize("sigma", [0.22, 1.0])
def test_scaled_noise_and_its_target_give_the_image_back(sigma: float) -> None:
    corrupted = ScaledNoise(sigma)(images(), generator())
    restored = corrupted.image_bchw * (1 + sigma**2) ** 0.5 - sigma * corrupted.target_bchw
    assert torch.allclose(restored, images(), atol=1e-5)
    assert corrupted.target_bchw.std().item() == pytest.approx(1.0, abs=0.03)
    assert corrupted.hidden_b1hw is None


def test_scaled_noise_keeps_the_variance() -> None:
    clean = torch.randn(8, 3, 64, 64, generator=generator(3))
    noisy = ScaledNoise(1.5)(clean, generator()).image_bchw
    assert noisy.std().item() == pytest.approx(clean.std().item(), rel=0.02)


def test_what_is_predicted_does_not_change_the_input() -> None:
    noise, image = (ScaledNoise(0.22, predict)(images(), generator()) for predict in ("noise", "image"))
    assert torch.equal(noise.image_bchw, image.image_bchw)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 0.95])
def test_every_image_hides_exactly_its_share_of_patches(ratio: float) -> None:
    hidden = PatchMask(8, ratio)(images(), generator()).hidden_b1hw
    assert hidden.shape == (4, 1, 32, 32)
    assert set(hidden.unique().tolist()) <= {0.0, 1.0}
    blocks = hidden.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    assert torch.equal(blocks.amin(-1), blocks.amax(-1))  # a patch is hidden whole or not at all
    assert blocks[..., 0].flatten(1).sum(1).tolist() == [round(ratio * 16)] * 4


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 0.99])
@pytest.mark.parametrize("hard", [False, True])
def test_what_a_mask_leaves_is_known_without_counting(patch: int, ratio: float, hard: bool) -> None:
    hardness = Hardness(torch.rand(4, 32 // patch, 32 // patch, generator=generator(4)), 0.5) if hard else None
    corrupted = PatchMask(patch, ratio)(images(), generator(), hardness)
    corners = corrupted.hidden_b1hw[:, 0, ::patch, ::patch]
    assert corrupted.visible.side == patch
    assert (corners == 0).flatten(1).sum(1).tolist() == [corrupted.visible.count] * 4


def test_nothing_is_said_of_a_mask_with_smaller_patches_at_the_edge() -> None:
    assert PatchMask(8, 0.5)(images(20, 32), generator()).visible is None
    assert PatchMask(8, 0.5)(images(32, 30), generator()).visible is None


def test_images_of_a_batch_hide_different_patches() -> None:
    hidden = PatchMask(4, 0.5)(images(), generator()).hidden_b1hw
    assert not torch.equal(hidden[0], hidden[1])


def test_every_patch_is_as_likely() -> None:
    hidden = PatchMask(16, 0.5)(torch.zeros(2000, 1, 32, 32), generator()).hidden_b1hw
    assert torch.allclose(hidden.mean(dim=0), torch.tensor(0.5), atol=0.05)


@pytest.mark.parametrize("fill", ["zero", "mean", "noise"])
def test_hidden_pixels_do_not_influence_the_input(fill: str) -> None:
    mask = PatchMask(8, 0.6, fill)
    hidden = mask(images(), generator()).hidden_b1hw
    other = torch.where(hidden > 0, torch.full_like(images(), torch.inf), images())
    first, second = mask(images(), generator()), mask(other, generator())
    assert torch.equal(first.hidden_b1hw, second.hidden_b1hw)
    assert torch.equal(first.image_bchw, second.image_bchw)


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_visible_pixels_stay_and_hidden_ones_are_filled(fill: str) -> None:
    corrupted = PatchMask(8, 0.6, fill)(images(), generator())
    hidden = corrupted.hidden_b1hw.bool().expand_as(images())
    assert torch.equal(corrupted.image_bchw[~hidden], images()[~hidden])
    filled = corrupted.image_bchw[hidden]  # the images' mean is 5
    assert abs(filled.mean().item()) < 0.1
    assert filled.std().item() == pytest.approx(0.0 if fill == "zero" else 1.0, abs=0.1)


def test_the_mean_fill_is_each_images_mean_of_what_is_visible() -> None:
    clean = images() * torch.tensor([1.0, 2.0, 3.0, -4.0]).view(4, 1, 1, 1)
    corrupted = PatchMask(8, 0.6, "mean")(clean, generator())
    for image, hidden, seen in zip(clean, corrupted.hidden_b1hw.bool(), corrupted.image_bchw, strict=True):
        for channel in range(3):
            assert torch.allclose(seen[channel][hidden[0]], image[channel][~hidden[0]].mean(), atol=1e-5)


def test_patches_at_the_edge_are_smaller() -> None:
    hidden = PatchMask(8, 0.5)(images(20, 30), generator()).hidden_b1hw
    assert hidden.shape == (4, 1, 20, 30)
    corners = hidden[:, 0, ::8, ::8]
    assert corners.shape == (4, 3, 4)
    assert corners.flatten(1).sum(1).tolist() == [6.0] * 4
    for row in range(20):
        for column in range(30):
            assert torch.equal(hidden[:, 0, row, column], corners[:, row // 8, column // 8])


def test_one_patch_stays_visible() -> None:
    hidden = PatchMask(16, 0.99)(images(), generator()).hidden_b1hw
    assert hidden.mean().item() == 0.75


def test_a_mask_that_hides_nothing_is_an_error() -> None:
    with pytest.raises(SegaeError, match=r"ratio 0.6 of 1 patches of 64 px .* hides nothing"):
        PatchMask(64, 0.6)(images(), generator())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(0.0), "noise sigma is 0.0"),
        (lambda: GaussianNoise(-1.0), "noise sigma is -1.0"),
        (lambda: GaussianNoise(float("nan")), "noise sigma is nan"),
        (lambda: ScaledNoise(0.0), "noise sigma is 0.0"),
        (lambda: ScaledNoise(0.2, "clean"), '"clean" cannot be predicted'),
        (lambda: PatchMask(0, 0.5), "mask patch is 0 px"),
        (lambda: PatchMask(8, 1.0), "mask ratio is 1.0"),
        (lambda: PatchMask(8, -0.1), "mask ratio is -0.1"),
        (lambda: PatchMask(8, 0.5, "blue"), 'mask fill "blue"'),
    ],
)
def test_values_are_checked(build, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        build()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_a_cpu_generator_draws_the_same_on_a_gpu(corruption) -> None:
    there = corruption(images().cuda(), generator())
    assert there.image_bchw.is_cuda
    here = corruption(images(), generator())
    assert torch.allclose(there.image_bchw.cpu(), here.image_bchw, atol=1e-5)
