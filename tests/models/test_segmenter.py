"""Every decoder takes the encoder's weights whole and gives logits per pixel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.encoder import create_encoder, save_encoder
from segae.models.segmenter import (
    DECODERS,
    LinearSegmenter,
    SegmenterDescription,
    create_segmenter,
    load_segmenter,
    probabilities,
    require_decoder_size,
    save_segmenter,
)


def image(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def describe(decoder: str, architecture: str = "test_resnet") -> SegmenterDescription:
    return SegmenterDescription(
        encoder=architecture,
        decoder=decoder,
        classes=("pet", "background", "border"),
        palette=((255, 0, 0), (0, 0, 0), (0, 0, 255)),
        mask_values=(1, 2, 3),
        in_channels=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        image_size=64,
        details={"seed": 3, "init": "random", "lr": 1e-3},
    )


def smallest(decoder: str) -> int:
    return 128 if decoder == "pan" else 64


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_starts_from_the_given_encoder(decoder: str) -> None:
    encoder, _ = create_encoder("test_resnet")
    model = create_segmenter(encoder, "test_resnet", decoder, classes=4)
    given, taken = encoder.state_dict(), model.encoder.state_dict()
    assert given.keys() == taken.keys()
    assert all(torch.equal(given[name], taken[name]) for name in given)
    side = smallest(decoder)
    logits = model(image(side))
    assert logits.shape == (2, 4, side, side)
    logits.square().mean().backward()
    assert next(model.encoder.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("architecture", ["test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("decoder", ["linear", "unet", "linknet", "deeplabv3plus", "upernet"])
def test_encoders_of_other_families(architecture: str, decoder: str) -> None:
    encoder, _ = create_encoder(architecture)
    assert create_segmenter(encoder, architecture, decoder, 3)(image()).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("decoder", ["linear", "unet"])
def test_training_the_segmenter_leaves_the_given_encoder(decoder: str) -> None:
    encoder, _ = create_encoder("test_resnet")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    model = create_segmenter(encoder, "test_resnet", decoder, 3)
    model(image()).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert not torch.equal(next(iter(model.encoder.parameters())), next(iter(encoder.parameters())))


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext"])
def test_linear_is_one_1x1_convolution_on_all_upsampled_maps(architecture: str) -> None:
    encoder, _ = create_encoder(architecture)
    model = LinearSegmenter(encoder.eval(), 3)
    maps = [map_ for map_ in encoder(image())[1:] if map_.shape[1] > 0]
    upsampled = [nn.functional.interpolate(map_, size=(64, 64), mode="bilinear") for map_ in maps]
    stacked = torch.cat(upsampled, dim=1)
    one = nn.Conv2d(stacked.shape[1], 3, 1)
    one.weight.data = torch.cat([head.weight for head in model.heads], dim=1)
    one.bias.data = model.heads[-1].bias.data
    assert torch.allclose(model(image()), one(stacked), atol=1e-4)


def test_linear_is_linear_in_the_features() -> None:
    encoder, _ = create_encoder("test_resnet")
    model = LinearSegmenter(encoder.eval(), 3)
    nn.init.zeros_(model.heads[-1].bias)
    expected = 2 * model(image())
    features = encoder(image())
    encoder.forward = lambda _: [2 * map_ for map_ in features]
    assert torch.allclose(model(image()), expected, atol=1e-4)


def test_probabilities_sum_to_one_at_each_pixel() -> None:
    logits = 20 * torch.randn(2, 3, 8, 8).half()
    values = probabilities(logits)
    assert torch.allclose(values.sum(dim=1), torch.ones(2, 8, 8))
    assert values.min() >= 0
    assert torch.equal(values.argmax(dim=1), logits.argmax(dim=1))


@pytest.mark.parametrize("decoder", ["linear", "unet", "deeplabv3plus", "pspnet"])
def test_a_file_gives_back_the_segmenter(tmp_path: Path, decoder: str) -> None:
    encoder, _ = create_encoder("test_resnet")
    model = create_segmenter(encoder, "test_resnet", decoder, 3)
    model.train()(image())  # moves the running statistics
    save_segmenter(tmp_path / "s.safetensors", model, describe(decoder))
    loaded, read = load_segmenter(tmp_path / "s.safetensors")
    assert read == describe(decoder)
    assert torch.equal(loaded.eval()(image()), model.eval()(image()))
    assert json.loads((tmp_path / "s.json").read_text())["classes"] == ["pet", "background", "border"]


def test_one_damaged_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    model = create_segmenter(create_encoder("test_resnet")[0], "test_resnet", "unet", 3)
    save_segmenter(path, model, describe("unet"))
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = safetensors.torch.load_file(path)
    del state["segmentation_head.0.bias"]
    safetensors.torch.save_file(state, path, metadata=metadata)
    with pytest.raises(SegaeError, match=r"does not fit Unet.*1 missing \(segmentation_head.0.bias\)"):
        load_segmenter(path)


def test_an_encoder_file_is_no_segmenter(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder.safetensors", *create_encoder("test_resnet"))
    with pytest.raises(SegaeError, match="not a segae segmenter file: its kind is encoder"):
        load_segmenter(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("unte", "did you mean unet[?] Use one of linear, unet,"),
        ("transformer9000", "is not known. Use one of"),
        ("dpt", "needs a vision transformer"),
    ],
)
def test_an_unknown_decoder_names_the_valid_ones(decoder: str, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        create_segmenter(create_encoder("test_resnet")[0], "test_resnet", decoder, 3)


def test_a_pair_that_cannot_be_joined_is_one_clear_error() -> None:
    encoder, _ = create_encoder("ghostnet_050")  # its timm model knows no dilation
    with pytest.raises(SegaeError, match="decoder deeplabv3 does not work with encoder ghostnet_050"):
        create_segmenter(encoder, "ghostnet_050", "deeplabv3", 3)


def test_the_encoder_must_be_of_the_named_architecture() -> None:
    encoder, _ = create_encoder("test_convnext")
    with pytest.raises(SegaeError, match="the encoder test_resnet does not fit"):
        create_segmenter(encoder, "test_resnet", "unet", 3)


def test_the_smallest_image_of_a_decoder_is_named() -> None:
    require_decoder_size("pan", 128)
    require_decoder_size("unet", 32)
    with pytest.raises(SegaeError, match="decoder pan needs images of 128 px or more"):
        require_decoder_size("pan", 96)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_smallest_image_is_enough(decoder: str) -> None:
    """Pins the table of smallest sizes to what the decoders can do."""
    encoder, _ = create_encoder("test_resnet")
    model = create_segmenter(encoder, "test_resnet", decoder, 3).eval()
    side = 128 if decoder == "pan" else 32
    require_decoder_size(decoder, side)
    assert model(image(side)).shape == (2, 3, side, side)
