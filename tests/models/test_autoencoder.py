"""The autoencoder has no way round its code, and learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.autoencoder import Autoencoder
from segae.models.encoder import create_encoder

UPSAMPLINGS = ("nearest", "transposed")


def build(architecture: str = "test_resnet", **choices) -> Autoencoder:
    torch.manual_seed(0)
    encoder, description = create_encoder(architecture)
    return Autoencoder(encoder, description.mean, description.std, **choices)


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_images_go_through_a_code_of_the_stride(architecture: str, upsampling: str) -> None:
    model = build(architecture, upsampling=upsampling)
    code = model.encode(images())
    assert code.shape == (2, model.code_channels, 2, 2)
    assert model.decode(code).shape == (2, 3, 64, 64)


def test_sides_may_differ() -> None:
    assert build()(torch.randn(2, 3, 64, 96)).shape == (2, 3, 64, 96)


class OnlyTheCode(nn.Module):
    """An encoder whose maps are not numbers, but for the deepest."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.out_channels, self.output_stride = encoder, encoder.out_channels, encoder.output_stride

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        *shallow, deepest = self.encoder(image_bchw)
        return [*(torch.full_like(map_bchw, torch.nan) for map_bchw in shallow), deepest]


def test_the_decoder_sees_nothing_but_the_code() -> None:
    model = build().eval()
    expected = model(images())
    assert torch.equal(model.decode(model.encode(images())), expected)
    model.encoder = OnlyTheCode(model.encoder)
    assert torch.equal(model(images()), expected)


def test_equal_codes_give_equal_images_whatever_the_input() -> None:
    model = build(code_channels=4).eval()
    nn.init.zeros_(model.bottleneck.weight)
    first, second = model(images()), model(images() + 1)
    assert torch.equal(first, second)


def test_a_bottleneck_narrows_the_code() -> None:
    assert build(code_channels=7).encode(images()).shape == (2, 7, 2, 2)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_bounded_output_is_an_image_in_normalised_space(activation: str) -> None:
    model = build(output_activation=activation).eval()
    for scale in (1.0, 1e6):  # ordinary values, and both ends
        output = model.decode(scale * torch.randn(2, model.code_channels, 2, 2))
        pixels = output * model.image_range.std_1c11 + model.image_range.mean_1c11
        assert pixels.min() >= -1e-5
        assert pixels.max() <= 1 + 1e-5
    assert pixels.max() > 0.99
    assert pixels.min() < 0.01


def test_an_unbounded_output_is_left_alone() -> None:
    model = build().eval()
    code = torch.randn(2, model.code_channels, 2, 2)
    assert torch.equal(model.decode(code), model.decoder(code))


def test_the_activations_choose_the_output_only() -> None:
    plain, bounded = build().eval(), build(output_activation="sigmoid").eval()
    expected = (plain(images()).sigmoid() - plain.image_range.mean_1c11) / plain.image_range.std_1c11
    assert torch.allclose(bounded(images()), expected)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_it_learns_to_reconstruct(upsampling: str) -> None:
    """Smooth images: a few steps must do far better than the mean colour, whose error is 1."""
    target = nn.functional.interpolate(images(4, 4), size=64, mode="bilinear")
    target = (target - target.mean()) / target.std()
    model = build(upsampling=upsampling)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = nn.functional.mse_loss(model(target), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4


@pytest.mark.parametrize("parameter", ["encoder", "decoder"])
def test_gradients_reach_both_ends(parameter: str) -> None:
    model = build()
    model(images()).square().mean().backward()
    first = next(getattr(model, parameter).parameters())
    assert first.grad.abs().sum() > 0


def test_only_the_encoder_is_shared() -> None:
    """The encoder keeps its identity and its keys: saving it after pretraining saves what was trained."""
    encoder, description = create_encoder("test_resnet")
    keys = list(encoder.state_dict())
    model = Autoencoder(encoder, description.mean, description.std)
    assert model.encoder is encoder
    assert list(encoder.state_dict()) == keys


@pytest.mark.parametrize("side", [70, 16])
def test_a_size_off_the_stride_names_the_next(side: int) -> None:
    with pytest.raises(SegaeError, match=f"image size {side} .*multiple of 32"):
        build().encode(torch.randn(1, 3, 64, side))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"upsampling": "bilinear"}, 'unknown upsampling "bilinear". Use nearest or transposed'),
        ({"output_activation": "relu"}, 'unknown output activation "relu"'),
        ({"code_channels": 0}, "code_channels is 0"),
        ({"decoder_channels": (32, 16)}, "does not undo the encoder's stride of 32: give 5 numbers"),
        ({"decoder_channels": (32, 16, 8, 8, 0)}, "does not undo"),
    ],
)
def test_choices_are_checked(choices: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        build(**choices)
