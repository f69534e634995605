"""Methods are what their names say, have the settings they list, and take a method of the user's own beside them."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from segae.errors import SegaeError
from segae.methods import (
    Corrupted,
    Method,
    PatchDifficulty,
    average_patches,
    create_autoencoder,
    create_method,
    list_methods,
    method_names,
    method_table,
    pixel_loss,
    register_method,
    setting,
    spread_patches,
)
from segae.methods import base as registry
from segae.methods.losses import mask_classes, normalize_patches, oriented_gradients
from segae.models import Weights, create_encoder
from tests.methods.scenes import disc, drawing

AUTOENCODING = (
    *("reconstruct", "denoise", "inpaint", "spark", "a2mim", "mixture", "colorize", "super_resolution", "sharpen"),
    *("sparse", "contractive", "variational", "ddep"),
)
NOT_DRAWN = ("reconstruct", "colorize", "super_resolution", "sharpen", "sparse", "contractive", "variational")
TARGETS = ("pixels", "patch_normalized", "hog", "frequency")
MASKED = ("inpaint", "spark", "a2mim")
SOURCES = ("color", "features", "brightness")
VARIANTS = [
    *((name, {}) for name in AUTOENCODING),
    *((name, {"target": target}) for name in AUTOENCODING[:6] for target in TARGETS),
    *(("pseudo_masks", {"source": source, "boundary": reach}) for source in SOURCES for reach in (None, 0.0)),
]


def images(method: Method | None = None, size: int = 64) -> Tensor:
    noise = torch.randn(4, 3, size, size, generator=drawing(9))
    return 0.02 * noise + 4 * disc(size, radius=0.2) if method and method.family == "pseudo_masks" else noise


def best_prediction(method: Method, target: Tensor) -> Tensor:
    if method.family == "pseudo_masks":
        classes = mask_classes(target[:, 3:], 0.0 if method.out_channels(3) == 5 else 1 / 48)
        return torch.cat([target[:, :3], classes.double().clamp(1e-20, 1).log()], dim=1)
    kind = getattr(method, "target", "pixels")
    if kind == "patch_normalized":
        return normalize_patches(target, method.mask_patch or 16)
    if kind == "hog":
        return torch.cat([target, spread_patches(oriented_gradients(target), 8, *target.shape[2:])], dim=1)
    return target


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_the_table_lists_every_method_with_a_line_and_its_own_settings() -> None:
    rows = {row.name: row for row in method_table()}
    ours = (*AUTOENCODING, "pseudo_masks")  # other tests may have registered more
    assert sorted(rows) == list_methods() == sorted(method_names())
    assert set(ours) <= set(rows)
    for name, family, summary, settings in (rows[name] for name in ours):
        assert family == ("pseudo_masks" if name == "pseudo_masks" else "autoencoding")
        assert summary == summary.rstrip(".") + "."
        assert create_method(name, **settings) == create_method(name)
    mse = {"criterion": "mse"}
    assert rows["reconstruct"].settings == {"target": "pixels", **mse}
    assert rows["denoise"].settings == {"sigma": 0.5, "residual": False, "target": "pixels", **mse}
    assert rows["inpaint"].settings == {"patch_size": 16, "mask_ratio": 0.6, "target": "pixels", **mse}
    assert rows["spark"].settings == {"patch_size": 32, "mask_ratio": 0.6, "target": "patch_normalized", **mse}
    assert rows["a2mim"].settings == {"patch_size": 32, "mask_ratio": 0.6, "target": "frequency", **mse}
    assert rows["mixture"].settings == {"patch_size": 16, "mask_ratio": 0.4, "sigma": 0.22, "target": "hog", **mse}
    assert rows["ddep"].settings == {"sigma": 0.22}
    assert rows["pseudo_masks"].settings == {"source": "color", "boundary": None}


def test_a_value_after_the_name_is_the_first_setting() -> None:
    weights = Weights.parse("imagenet+pseudo_masks:features+decoder", method_names())
    assert create_method(weights.method, **weights.method_args) == create_method("pseudo_masks", source="features")
    assert Weights.parse("random+denoise:0.3", method_names()).method_args == {"sigma": 0.3}


def test_every_method_brings_its_learning_rate_masking_and_decoder() -> None:
    own = {"spark": ("sparse", "hierarchical"), "a2mim": ("token", "linear")}
    own |= dict.fromkeys(
        ("mixture", "colorize", "super_resolution", "sharpen", "ddep", "pseudo_masks"), ("dense", "unet")
    )
    for name in list_methods():
        method = create_method(name)
        assert method.name == name
        assert method.lr == (2e-3 if name == "pseudo_masks" else 1e-3)
        assert (method.masking, method.decoder) == own.get(name, ("dense", "plain"))
        assert (method.frozen_encoder, method.crops) == (name == "ddep", name == "pseudo_masks")
        assert method.mask_patch == getattr(method, "patch_size", None)
        twin = pickle.loads(pickle.dumps(method))
        assert (twin, hash(twin)) == (method, hash(method))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("denoize", {}, r"method .*reconstruct.*got 'denoize'; did you mean denoise"),
        (None, {}, "method .*got None"),
        ("reconstruct", {"sigma": 0.5}, "reconstruct must be one of target, criterion, got sigma=0.5"),
        ("denoise", {"patch_size": 16}, "denoise must be one of sigma, target, criterion, residual, got patch_size=16"),
        ("pseudo_masks", {"target": "pixels"}, "pseudo_masks must be one of source, boundary, got target='pixels'"),
        ("inpaint", {"target": "gradient"}, "target must be one of pixels.*got 'gradient'"),
        ("inpaint", {"target": ["pixels"]}, "target must be one of pixels"),
        ("pseudo_masks", {"source": "colour"}, "source must be one of color, features, brightness, got 'colour'"),
    ],
)
def test_unknown_names_and_settings_are_refused(name, settings, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        create_method(name, **settings)


WRONG = {
    ("denoise", "sigma"): (0.0, -1.0),
    ("ddep", "sigma"): (0.0,),
    ("mixture", "sigma"): (0.0,),
    **{(name, "mask_ratio"): (0.0, 1.0, -0.1, 1.5) for name in MASKED},
    ("mixture", "mask_ratio"): (1.0, -0.1),
    **{(name, "patch_size"): (0, -8, 2.5) for name in (*MASKED, "mixture")},
    ("pseudo_masks", "boundary"): (0.5, -0.1),
}


@pytest.mark.parametrize(("name", "argument"), WRONG)
def test_every_number_is_checked(name: str, argument: str) -> None:
    for value in (*WRONG[name, argument], math.nan, math.inf, "8", True, [1]):
        with pytest.raises(SegaeError) as caught:
            create_method(name, **{argument: value})
        assert str(caught.value).startswith(f"{argument} must be ")
        assert str(caught.value).endswith(f"got {value!r}")
    assert create_method("mixture", mask_ratio=0.0).mask_ratio == 0
    assert create_method(name, **{argument: None}) == create_method(name)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_every_method_can_be_met_and_draws_from_the_generator_alone(name: str, settings: dict) -> None:
    method, state = create_method(name, **settings), torch.get_rng_state()
    clean = images(method)
    corrupted, again, other = (method.corrupt(clean, drawing(seed)) for seed in (1, 1, 2))
    assert torch.equal(corrupted.image, again.image)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clean, images(method))
    assert torch.equal(corrupted.image, other.image) == (name in NOT_DRAWN)
    target = clean if corrupted.target is None else corrupted.target
    best = best_prediction(method, target)
    assert best.shape[1] == method.out_channels(3)
    assert method.loss(best, target, corrupted.mask).item() < 1e-9
    assert method.loss(0 * best, target, corrupted.mask).item() > 0.5
    residual = getattr(method, "residual", False)
    assert method.predicts_pixels == (name in AUTOENCODING[:-1] and method.target == "pixels" and not residual)
    if name == "pseudo_masks":
        return
    assert torch.allclose(method.to_image(best, corrupted.image, clean), clean, atol=1e-3)
    assert method.object_probability(best) is None
    hidden = torch.zeros(4, 1, 64, 64) if corrupted.mask is None else corrupted.mask
    loss = method.loss(torch.where(hidden > 0, 1.0, 7.0) * best, target, corrupted.mask).item()
    assert loss < 1e-9 if name in MASKED else loss > 0.5  # visible pixels do not count where patches are filled
    if name in MASKED:
        with pytest.raises(SegaeError, match="mask must be given .*got None"):
            method.loss(best, target, None)


@pytest.mark.parametrize("name", [*MASKED, "mixture"])
def test_nothing_hidden_is_in_what_the_network_sees_and_difficult_patches_are_preferred(name: str) -> None:
    method, clean = create_method(name), images(size=96)
    seen = method.corrupt(clean, drawing(1))
    other = torch.where(seen.mask > 0, torch.full_like(clean, 50.0), clean)
    assert torch.equal(method.corrupt(other, drawing(1)).image, seen.image)
    rows = 96 // method.mask_patch
    hidden = seen.mask[:, 0, :: method.mask_patch, :: method.mask_patch].sum(dim=(1, 2))
    assert hidden.tolist() == [round(method.mask_ratio * rows**2)] * 4
    loss = torch.eye(rows).repeat(4, 1, 1)
    preferred = create_method(name, mask_ratio=1 / rows).corrupt(clean, drawing(), PatchDifficulty(loss, 1.0)).mask
    assert torch.equal(average_patches(preferred, method.mask_patch)[:, 0], loss)


def test_patches_of_spark_divide_the_image_and_errors_are_of_normalized_ones() -> None:
    with pytest.raises(SegaeError, match="patch_size must divide .*96 x 96.*got 64"):
        create_method("spark", patch_size=64).corrupt(images(size=96), drawing())
    method, clean = create_method("spark", patch_size=16), images()
    error = method.squared_error(torch.zeros_like(clean), clean)
    assert torch.allclose(error, normalize_patches(clean, 16).square())


@pytest.mark.parametrize("name", [*AUTOENCODING, "pseudo_masks"])
def test_the_autoencoder_of_a_method_learns_from_its_loss(name: str) -> None:
    method = create_method(name)
    model, clean = create_autoencoder("test_resnet", method=method), images(method)
    corrupted = method.corrupt(clean, drawing(1))
    assert (model.masking, model.info.decoder) == (method.masking, method.decoder)
    prediction = model(corrupted.image, corrupted.mask)
    assert prediction.shape == (4, method.out_channels(3), 64, 64)
    method.loss(prediction, clean if corrupted.target is None else corrupted.target, corrupted.mask).backward()
    assert sum(one.grad is not None and bool(one.grad.abs().max() > 0) for one in model.encoder.parameters()) > 5


def test_the_autoencoder_takes_the_encoder_and_choices_that_are_given() -> None:
    encoder = create_encoder("test_resnet", in_channels=1)
    model = create_autoencoder(encoder, decoder="unet", method="inpaint")
    assert model.encoder is encoder
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 64, 64)
    small = create_autoencoder("test_resnet", bottleneck=7, upsampling="transposed").info
    assert (small.decoder, small.masking, small.bottleneck, small.upsampling) == ("plain", "dense", 7, "transposed")


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_an_output_activation_bounds_pixels_and_nothing_else(activation: str) -> None:
    model = create_autoencoder("test_resnet", method="denoise", output_activation=activation)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.encoder.info.mean, model.encoder.info.std))
    pixels = model(100 * images()) * std + mean
    assert (pixels - 0.5).abs().max() < 0.5 + 1e-5
    for method in ("spark", "ddep", "pseudo_masks", create_method("denoise", target="hog")):
        with pytest.raises(SegaeError, match=f"output_activation must be none .*got '{activation}'"):
            create_autoencoder("test_resnet", method=method, output_activation=activation)


@pytest.mark.usefixtures("own_registry")
def test_a_method_from_a_script_trains_by_plain_torch() -> None:
    @register_method("salt")
    @dataclass(frozen=True)
    class Salt(Method):
        """Remove white pixels."""

        share: float = setting(0.1, low=0, high=1)
        strength: float = 1.0

        def corrupt(self, images, generator, difficulty=None):
            salted = torch.rand(images.shape, generator=generator) < self.share
            return Corrupted(images.masked_fill(salted, self.strength))

        def loss(self, prediction, target, mask):
            return pixel_loss(prediction, target)

    method = create_method("salt", share=0.2)
    assert method == Salt(0.2)
    assert method_table()[-1] == ("salt", "autoencoding", "Remove white pixels.", {"share": 0.1, "strength": 1.0})
    assert (method.lr, method.decoder, method.needs_pretrained_encoder) == (1e-3, "plain", False)
    for settings in ({"share": 1.5}, {"share": math.nan}, {"strength": math.inf}, {"strength": "1"}):
        with pytest.raises(SegaeError, match=f"{next(iter(settings))} must be .*got"):
            create_method("salt", **settings)

    torch.manual_seed(0)
    model, clean = create_autoencoder("test_resnet", method=method), images()
    before = [one.detach().clone() for one in model.encoder.parameters()]
    method.prepare(model.encoder, [clean])
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=method.lr), []
    for _ in range(3):
        corrupted = method.corrupt(clean, drawing(1))
        loss = method.loss(model(corrupted.image, corrupted.mask), clean, corrupted.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert any(not torch.equal(one, was) for one, was in zip(model.encoder.parameters(), before, strict=True))


@pytest.mark.usefixtures("own_registry")
def test_registration_refuses_what_could_not_work_and_takes_the_same_class_twice() -> None:
    def define(name: str, lr: float = 1e-3, **attributes: object) -> type:
        body = {"corrupt": lambda *_: None, "loss": lambda *_: None, "lr": lr, "__annotations__": {}, **attributes}
        return register_method(name)(type("Plain", (Method,), body))

    define("plain")
    define("plain")  # a notebook's cell runs again
    assert create_method("plain").out_channels(3) == 3
    for message, name, attributes in [
        ("name must be .*got 'denoise'", "denoise", {}),
        ("name must be .*got 'two words'", "two words", {}),
        (r"name must be .*got 'a\+b'", "a+b", {}),
        ("lr must be .*got nan", "fast", {"lr": math.nan}),
        ("half must be a subclass of Method with corrupt and loss", "half", {"loss": Method.loss}),
        ("strength must have a default", "unset", {"__annotations__": {"strength": "float"}}),
    ]:
        with pytest.raises(SegaeError, match=message):
            define(name, **attributes)
    with pytest.raises(SegaeError, match="text must be a subclass of Method"):
        register_method("text")(str)
    with pytest.raises(SegaeError, match="plain must be left out, got sigma=1"):
        create_method("plain", sigma=1)
