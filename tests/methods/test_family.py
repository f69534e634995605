"""The defining property of each member of the textbook's family, on images that are small enough for seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

import segae
from segae.errors import SegaeError
from segae.methods import (
    CRITERIA,
    create_autoencoder,
    create_method,
    criterion_loss,
    estimate_jacobian_norm,
    gaussian_kl,
    jacobian_norm,
    kl_to_rate,
)
from segae.models import create_segmenter

SIDE = 8


def squares(count: int = 256, side: int = SIDE, channels: int = 1, seed: int = 0) -> Tensor:
    """Bright squares of any place and brightness, which decides the color, on a dark ground, in [0, 1]."""
    draw = np.random.default_rng(seed)
    images = np.full((count, channels, side, side), 0.1)
    for image in images:
        (top, left), light = draw.integers(0, side // 2, 2), draw.uniform(0.4, 1)
        color = np.array([light, light**2, 1 - light])[:channels, None, None]
        image[:, top : top + side // 2, left : left + side // 2] = color
    return torch.from_numpy(images).float()


def train(model, method, images: Tensor, steps: int = 150, lr: float = 1e-2) -> float:
    """Plain torch: the loss and the penalty of a method; return the last loss."""
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    code: list[Tensor] = []
    if hasattr(model.decoder, "bottleneck"):
        model.bottleneck.register_forward_hook(lambda _module, _inputs, output: code.append(output))
    draw = "mean" if method.code == "gaussian" else None
    for _ in range(steps):
        corrupted = method.corrupt(images, generator)
        target = images if corrupted.target is None else corrupted.target
        loss = method.loss(model(corrupted.image, corrupted.mask), target, corrupted.mask)
        penalty = method.penalty(code[-1], lambda one: model.code(one, draw), corrupted.image) if code else None
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        schedule.step()
        code.clear()
    model.eval()
    return loss.item()


def build(name: str, method, channels: int = 1, side: int = SIDE, **choices):
    torch.manual_seed(0)
    return create_autoencoder(
        segae.create_encoder(name, in_channels=channels, image_size=side), method=method, **choices
    )


def test_a_linear_autoencoder_is_pca() -> None:
    images, method = squares(), create_method("reconstruct")
    model = build("linear_4", method)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = method.loss(model(images), images, None)
        loss.backward()
        return loss

    optimizer.step(step)
    flat = images.flatten(1).numpy()
    pca = PCA(4).fit(flat)
    best = np.square(flat - pca.inverse_transform(pca.transform(flat))).mean()
    assert (model.reconstruct(images) - images).square().mean() == pytest.approx(best, rel=0.02)
    columns = torch.eye(4)[:, :, None, None]
    with torch.no_grad():
        spanned = (model.from_code(columns) - model.from_code(0 * columns[:1])).flatten(1)
    assert np.degrees(subspace_angles(spanned.T.numpy(), pca.components_.T)).max() < 5


def test_more_numbers_than_pixels_learn_the_identity_unless_noise_or_a_penalty_forbids_it() -> None:
    random = torch.rand(64, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))  # nothing that was trained on
    error = {}
    for name, settings in {"reconstruct": {}, "denoise": {"sigma": 1.0}, "sparse": {"weight": 1.0}}.items():
        method = create_method(name, **settings)
        model = build("linear_96", method)
        train(model, method, torch.rand(256, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4)), steps=300)
        error[name] = float((model.reconstruct(random) - random).square().mean() / random.var())
    assert error["reconstruct"] < 0.05
    assert min(error["denoise"], error["sparse"]) > 0.3


@pytest.mark.parametrize(
    ("name", "code", "parameters"), [("conv_16_8_4", (4, 4, 4), 3221), ("linear_64", (64, 1, 1), 101200)]
)
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_small_encoders_have_the_textbooks_shapes(name: str, code: tuple, parameters: int, upsampling: str) -> None:
    model = build(name, "reconstruct", side=28, upsampling=upsampling, output_activation="sigmoid")
    images = torch.rand(2, 1, 28, 28)
    assert model.code(images).shape == (2, *code)
    assert torch.equal(model.from_code(model.code(images)), model(images))
    assert model(images).shape == images.shape
    assert 0 <= model(images).min() <= model(images).max() <= 1
    assert sum(one.numel() for one in model.parameters()) == parameters


@pytest.mark.parametrize("side", [8, 13, 28, 32])
@pytest.mark.parametrize("name", ["conv_8_4", "dense_32_16", "linear_5"])
def test_small_autoencoders_come_back_from_their_file(name: str, side: int, tmp_path) -> None:
    model = build(name, "reconstruct", side=side, bottleneck=3, upsampling="transposed").eval()
    path = segae.models.save_autoencoder(model, tmp_path / "model.safetensors")
    images = torch.rand(2, 1, side, side)
    assert torch.equal(segae.load(path)(images), model(images))


def test_what_small_encoders_cannot_do_is_refused() -> None:
    with pytest.raises(SegaeError, match=r"images must have shape \(B, 3, 28, 28\), got \(1, 3, 56, 56\)"):
        segae.create_encoder("linear_4")(torch.zeros(1, 3, 56, 56))
    with pytest.raises(SegaeError, match="one number after linear"):
        segae.create_encoder("linear_4_2")
    with pytest.raises(SegaeError, match="encoder must be a network of timm for decoder hierarchical"):
        create_autoencoder("conv_8", method="spark")
    with pytest.raises(SegaeError, match="decoder must be plain for encoder conv_8"):
        create_segmenter(segae.create_encoder("conv_8"), num_classes=2, image_size=28)
    with pytest.raises(SegaeError, match="decoder must be plain or linear for a code, got unet"):
        create_autoencoder("test_resnet", decoder="unet").code(torch.zeros(1, 3, 32, 32))


def test_the_code_gets_sparser_with_the_weight_of_l1() -> None:
    active = []
    for weight in (0.0, 0.3, 3.0):
        method = create_method("sparse", weight=weight)
        model = build("dense_32", method)
        train(model, method, squares())
        active.append(float((model.code(squares()) > 1e-3).float().mean()))
    assert active[0] > 1.3 * active[1] > 1.3 * active[2]


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_kl_reaches_its_rate(rate: float) -> None:
    method = create_method("sparse", penalty_kind="kl", rate=rate, weight=10.0)
    model = build("dense_32", method)
    train(model, method, squares(), steps=400)
    assert float(model.code(squares()).detach().mean()) == pytest.approx(rate, rel=0.1)
    assert kl_to_rate(torch.full((4, 2, 1, 1), rate), rate) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("jacobian", ["estimate", "exact"])
def test_the_jacobian_shrinks_with_the_weight(jacobian: str) -> None:
    norms = []
    for weight in (0.0, 0.02, 0.2):
        method = create_method("contractive", weight=weight, jacobian=jacobian)
        model = build("dense_16_4", method)
        train(model, method, squares(32), steps=60)
        norms.append(float(jacobian_norm(model.code, squares(64)).detach()))
    assert norms[0] > 1.5 * norms[1] > 1.5 * norms[2]


def test_exact_and_estimated_jacobian_agree_and_a_large_code_is_refused() -> None:
    torch.manual_seed(0)
    model = create_autoencoder("test_resnet", bottleneck=4).eval()
    images = torch.randn(4, 3, 32, 32)
    exact = float(jacobian_norm(model.code, images).detach())
    drawn = estimate_jacobian_norm(model.code, images.repeat(300, 1, 1, 1))  # 300 directions for each image
    assert float(drawn.detach()) == pytest.approx(exact, rel=0.05)
    linear = build("linear_4", "reconstruct")
    weight = linear.encoder.model.layers[0][0].weight
    assert float(jacobian_norm(linear.code, squares(3))) == pytest.approx(float(weight.square().sum()), rel=1e-4)
    with pytest.raises(SegaeError, match="jacobian must be estimated for a code of more than 256 numbers, got 300"):
        jacobian_norm(build("linear_300", "reconstruct").code, squares(2))


def test_a_variational_code_is_near_the_prior_and_drawn_while_training() -> None:
    moments = torch.randn(5, 6, 2, 2)
    mean, scale = moments[:, :3], (moments[:, 3:] / 2).exp()
    expected = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0)).flatten(1).sum(dim=1)
    assert torch.allclose(gaussian_kl(moments), expected, atol=1e-4)
    divergences = []
    for beta in (0.1, 10.0):
        method = create_method("variational", beta=beta)
        model = build("dense_32_4", method)
        train(model, method, squares())
        divergences.append(float(gaussian_kl(model.bottleneck(model.encode(squares())[-1])).mean().detach()))
    assert divergences[0] > 2 * divergences[1]
    images = squares(2)
    assert torch.equal(model.code(images, "mean"), model.code(images, "mean"))
    assert not torch.equal(model.code(images, "sample"), model.code(images, "mean"))
    assert torch.equal(model(images), model.from_code(model.code(images, "mean")))
    assert not torch.equal(model.train()(images), model(images))
    with pytest.raises(SegaeError, match="draw must be mean or sample for the code of this variational .*got None"):
        model.code(images)
    with pytest.raises(SegaeError, match="draw must be None for the code of this autoencoder, got mean"):
        build("dense_4", "reconstruct").code(images, "mean")


@pytest.mark.parametrize("name", ["denoise", "inpaint", "colorize", "super_resolution", "sharpen"])
def test_what_was_lost_comes_back_on_new_images(name: str) -> None:
    settings = {"inpaint": {"patch_size": 2, "mask_ratio": 0.25}}
    method = create_method(name, **settings.get(name, {}))
    model = build("dense_64_32", method, channels=3, decoder="plain")
    train(model, method, squares(channels=3))
    new = squares(64, channels=3, seed=1)
    corrupted = method.corrupt(new, torch.Generator().manual_seed(1))
    shown = method.to_image(model.reconstruct(corrupted.image), corrupted.image, new)
    counted = torch.ones(64, 1, SIDE, SIDE) if corrupted.mask is None else corrupted.mask
    before, after = (((one - new).square() * counted).mean() for one in (corrupted.image, shown))
    assert after < 0.4 * before


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_are_the_textbooks_and_can_be_trained(criterion: str) -> None:
    side = 192 if criterion == "ms_ssim" else 16
    target, other = squares(2, side), squares(2, side, seed=1)
    expected = {
        "mse": lambda: functional.mse_loss(other, target),
        "l1": lambda: functional.l1_loss(other, target),
        "binary_cross_entropy": lambda: functional.binary_cross_entropy(other, target),
        "ssim": lambda: 1 - ssim(other, target, data_range=1.0),
    }
    if criterion in expected:
        assert torch.allclose(criterion_loss(criterion, other, target), expected[criterion]())
    if criterion == "ms_ssim":
        assert criterion_loss(criterion, target, target) < 1e-4 < criterion_loss(criterion, other, target)
        return
    method, images = create_method("reconstruct", criterion=criterion), squares(64)
    if criterion == "ssim":
        images = squares(32, 16)
    model = build("dense_32", method, side=images.shape[-1])
    before = (method.to_image(model.reconstruct(images), images, images) - images).square().mean()
    train(model, method, images, steps=60)
    assert (method.to_image(model.reconstruct(images), images, images) - images).square().mean() < 0.5 * before


def test_values_outside_the_range_of_a_criterion_are_refused() -> None:
    images = squares(2)
    for criterion in ("binary_cross_entropy", "cross_entropy", "ssim"):
        prediction = images.repeat(1, 16, 1, 1) if criterion == "cross_entropy" else images
        with pytest.raises(SegaeError, match=rf"target must be in \[0, 1\] for criterion {criterion}, got 0.2 to 1"):
            criterion_loss(criterion, prediction, 2 * images)
    with pytest.raises(SegaeError, match="prediction must be in"):
        criterion_loss("binary_cross_entropy", images - 1, images)
    with pytest.raises(SegaeError, match="criterion must fit the image size, got ms_ssim"):
        criterion_loss("ms_ssim", images, images)
    with pytest.raises(SegaeError, match="criterion must be mse for target hog, got l1"):
        create_method("denoise", target="hog", criterion="l1")
    with pytest.raises(SegaeError, match="output_activation must be sigmoid"):
        build("dense_4", create_method("reconstruct", criterion="binary_cross_entropy"), output_activation="tanh")
    method = create_method("reconstruct", criterion="ssim")
    with pytest.raises(SegaeError, match=r"criterion must be mse or l1 for weights .* not in \[0, 1\] but normalized"):
        create_autoencoder(segae.load_encoder("pets_pseudo_masks"), method=method)
    encoder = segae.create_encoder("test_resnet")
    create_autoencoder(encoder, method=method)
    assert (encoder.info.mean, encoder.info.std) == ((0, 0, 0), (1, 1, 1))
