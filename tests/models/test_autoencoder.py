"""Every masking with every decoder trains; hidden pixels reach nothing; the parts go on into a segmenter."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from segae import models
from segae.errors import SegaeError
from segae.models.autoencoder import find_token_module

FAMILIES = ("test_resnet", "test_convnext", "test_efficientnet")
MASKINGS = ("dense", "sparse", "token")


@functools.cache
def build_once(architecture: str) -> models.Encoder:
    torch.manual_seed(0)
    return models.create_encoder(architecture)


def build(
    masking: str = "dense", decoder: str = "plain", architecture: str = "test_resnet", **choices
) -> models.Autoencoder:
    encoder = copy.deepcopy(build_once(architecture))
    torch.manual_seed(0)
    return models.build_autoencoder(encoder, masking=masking, decoder=decoder, **choices)


def image(side: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def mask(side: int = 64) -> Tensor:
    """Half of the image hidden, the left one and the upper one."""
    hidden = torch.zeros(2, 1, side, side)
    hidden[0, :, :, : side // 2] = 1
    hidden[1, :, : side // 2] = 1
    return hidden


CASES = [(family, masking, decoder) for family in FAMILIES for masking in MASKINGS for decoder in ("plain", "unet")]
CASES += [("test_resnet", masking, decoder) for masking in MASKINGS for decoder in ("linear", "hierarchical")]
CASES += [("test_resnet", "dense", "unet_with_input")]
CASES += [("test_resnet", "sparse", decoder) for decoder in models.SMP_DECODERS if decoder != "unet"]


@pytest.mark.parametrize(("architecture", "masking", "decoder"), CASES)
def test_every_masking_trains_with_every_kind_of_decoder(architecture: str, masking: str, decoder: str) -> None:
    model, side = build(masking, decoder, architecture), 128 if decoder == "pan" else 64
    prediction = model(image(side), mask(side))
    assert prediction.shape == (2, 3, side, side)
    (prediction * image(side, seed=1)).mean().backward()
    for part in (model.encoder, model.decoder):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("decoder", ["plain", "hierarchical", "unet", "deeplabv3plus"])
def test_hidden_pixels_change_neither_prediction_nor_gradient(decoder: str) -> None:
    model, shown, hidden = build("sparse", decoder), image().requires_grad_(), mask()
    torch.manual_seed(1)  # DeepLab has dropout
    prediction = model(shown, hidden)
    (prediction * image(seed=1)).sum().backward()
    assert (shown.grad[hidden.expand_as(shown) > 0] == 0).all()
    assert shown.grad.abs().sum() > 0
    torch.manual_seed(1)
    assert torch.equal(model(torch.where(hidden > 0, torch.nan, image()), hidden), prediction)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(("masking", "decoder"), [("sparse", "plain"), ("sparse", "hierarchical"), ("token", "unet")])
def test_tokens_are_learned_and_matter_where_something_is_hidden(architecture, masking, decoder) -> None:
    model = build(masking, decoder, architecture)
    tokens = [parameter for name, parameter in model.named_parameters() if "token" in name]
    masked = model(image(), mask())
    (masked * image(seed=1)).sum().backward()
    assert tokens
    assert all(token.grad.abs().sum() > 0 for token in tokens)
    dense = model(image())
    with torch.no_grad():
        for token in tokens:
            token.copy_(torch.randn(token.shape, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(model(image()), dense, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(image(), mask()), masked, atol=1e-3)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_token_is_added_where_it_is_hidden_and_flows_on_into_the_deepest_map(architecture: str) -> None:
    model = build("token", "linear", architecture).eval()
    hidden = torch.zeros(2, 1, 64, 64)
    hidden[..., :32] = 1
    with torch.no_grad():
        plain, masked = model.encode(image()), model.encode(image(), hidden)
        token = model.mask_tokens.tokens_1c11[0].expand_as(masked[-2])[..., :2]
    torch.testing.assert_close(masked[-2][..., :2], plain[-2][..., :2] + token)
    assert torch.equal(masked[-2][..., 2:], plain[-2][..., 2:])
    assert not torch.equal(masked[-1], plain[-1])


@pytest.mark.parametrize(("masking", "decoder"), [("dense", "fpn"), ("sparse", "hierarchical"), ("token", "unet")])
def test_dropped_skips_leave_the_deepest_map_alone(masking: str, decoder: str) -> None:
    model, dropped = build(masking, decoder).eval(), torch.tensor([True, False])
    assert model.has_skips
    with torch.no_grad():
        whole, half = model(image(), mask()), model(image(), mask(), drop_skips=dropped)
        torch.testing.assert_close(half[1], whole[1])
        assert not torch.allclose(half[0], whole[0], atol=1e-5)
        features = model.encode(image(), mask())
        kept = [torch.where(dropped.view(-1, 1, 1, 1), 0.0, one) for one in features[:-1]]
        torch.testing.assert_close(model.decode([*kept, features[-1]], mask()), half)
    plain = build().eval()
    assert not plain.has_skips
    assert torch.equal(plain(image(), drop_skips=dropped), plain(image()))


def test_what_is_visible_may_be_given_in_whole_patches() -> None:
    model = build("sparse").eval()
    expected = model(image(), mask())
    for visible in (2, SimpleNamespace(side=32, count=2), SimpleNamespace(side=48, count=9)):
        assert torch.equal(model(image(), mask(), visible=visible), expected)


class TwoBranches(nn.Module):
    """Its stride-16 map is made by a module, but the deepest one does not come from it."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.deep = nn.Conv2d(3, 4, 16, stride=16), nn.Conv2d(3, 8, 32, stride=32)
        self.output_stride, self.out_channels, self._in_channels = 32, [3, 0, 0, 0, 4, 8], 3

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, self.side(images), self.deep(images)]


def test_an_encoder_without_a_place_for_the_token_is_refused() -> None:
    with pytest.raises(SegaeError, match="encoder must have a layer .* for masking token"):
        find_token_module(TwoBranches())


@pytest.mark.parametrize(("masking", "decoder"), [("sparse", "plain"), ("token", "unet"), ("dense", "hierarchical")])
def test_the_encoder_is_registered_once_and_stays_itself(masking: str, decoder: str) -> None:
    encoder = copy.deepcopy(build_once("test_resnet"))
    model = models.build_autoencoder(encoder, masking=masking, decoder=decoder)
    model(image(), mask()).square().mean().backward()
    assert model.encoder is encoder
    names = [name.removeprefix("encoder.") for name in model.state_dict() if name.startswith("encoder.")]
    assert names == list(encoder.state_dict())
    assert {name.split(".")[0] for name in model.state_dict()} <= {"encoder", "decoder", "head", "mask_tokens"}


@pytest.mark.parametrize(
    "choices",
    [
        {"decoder": "plain", "bottleneck": 4, "upsampling": "transposed", "output_activation": "tanh"},
        {"decoder": "hierarchical", "masking": "sparse"},
        {"decoder": "unet", "masking": "token", "out_channels": 7},
        {"decoder": "linear", "output_activation": "sigmoid"},
    ],
)
def test_a_file_gives_back_the_autoencoder(tmp_path: Path, choices: dict) -> None:
    model = build(**choices)
    model(image(), mask())  # moves the running statistics
    model.encoder.info = replace(model.encoder.info, weights=models.Weights("random", "denoise"))
    loaded = models.load_autoencoder(models.save_autoencoder(model, tmp_path / "a.safetensors"))
    assert loaded.info == replace(model.info, encoder=model.encoder.info)
    assert torch.equal(loaded.eval()(image(), mask()), model.eval()(image(), mask()))
    assert loaded.encoder.info.weights.method == "denoise"


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_bounded_output_is_an_image_in_normalized_space(activation: str) -> None:
    model, info = build(output_activation=activation), build_once("test_resnet").info
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    for scale in (1.0, 1e6):
        with torch.no_grad():
            model.decoder.layers[1][-1].weight.mul_(scale)
        pixels = model.reconstruct(image()) * std + mean
        assert -1e-5 < pixels.min() < pixels.max() < 1 + 1e-5
    assert pixels.max() - pixels.min() > 0.99
    assert model.training


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"masking": "sparce"}, "masking must be .*'sparce'.*sparse"),
        ({"decoder": "hierachical"}, "decoder must be .*'hierachical'.*hierarchical"),
        ({"upsampling": "bicubic"}, "upsampling must be .*'bicubic'"),
        ({"output_activation": "relu"}, "output_activation must be .*'relu'"),
        ({"decoder": "unet", "bottleneck": 8}, "decoder must be plain.*bottleneck=8.*unet"),
        ({"out_channels": 0}, "out_channels must be .*got 0"),
    ],
)
def test_choices_are_checked(choices: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        build(**choices)


def test_the_unet_with_input_sees_each_pixel_and_nothing_that_is_hidden() -> None:
    model = build("dense", "unet_with_input", "test_resnet").eval()
    features = model.encode(image())
    changed = [features[0].clone(), *features[1:]]
    changed[0][:, :, 20, 30] += 1
    rows, columns = torch.nonzero((model.decode(features) - model.decode(changed)).abs().sum(dim=(0, 1)), as_tuple=True)
    # three convolutions of 3 x 3 after the input was joined
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [17, 23, 27, 33]
    with pytest.raises(SegaeError, match="decoder must be another one for masking sparse, got unet_with_input"):
        build("sparse", "unet_with_input", "test_resnet")
