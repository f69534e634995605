"""Every masking with every decoder trains; hidden pixels reach nothing; the parts go on into a segmenter."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.encoder import build_encoder
from segae.models.hierarchical import HierarchicalDecoder, MaskTokens
from segae.models.pretrainer import Pretrainer, create_pretrainer, find_token_module
from segae.models.segmenter import DECODERS, create_segmenter
from segae.models.weights import load_strictly

FAMILIES = ("test_resnet", "test_convnext", "test_efficientnet")
MASKINGS = ("dense", "sparse", "token")
SKIPPING = tuple(name for name in DECODERS if name != "linear")
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def build_once(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(architecture)


def create(masking: str, decoder: str, architecture: str = "test_resnet", **choices) -> Pretrainer:
    encoder = copy.deepcopy(build_once(architecture))
    torch.manual_seed(0)
    return create_pretrainer(encoder, architecture, masking=masking, decoder=decoder, **choices)


def image(side: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def mask(side: int = 64) -> Tensor:
    """Half of the image hidden, the left one and the upper one."""
    hidden = torch.zeros(2, 1, side, side)
    hidden[0, :, :, : side // 2] = 1
    hidden[1, :, : side // 2] = 1
    return hidden


def check_a_step(model: Pretrainer, side: int = 64) -> None:
    prediction = model(image(side), mask(side))
    assert prediction.shape == (2, 3, side, side)
    (prediction * image(side, seed=1)).mean().backward()
    for part in (model.encoder, model.decoder):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("decoder", ["plain", "linear", "hierarchical", "unet", "fpn"])
def test_every_masking_trains_with_every_kind_of_decoder(architecture: str, masking: str, decoder: str) -> None:
    check_a_step(create(masking, decoder, architecture))


@pytest.mark.parametrize("masking", ["sparse", "token"])
@pytest.mark.parametrize("decoder", [name for name in SKIPPING if name not in ("unet", "fpn")])
def test_every_decoder_of_the_segmenter_trains(masking: str, decoder: str) -> None:
    check_a_step(create(masking, decoder), side=128 if decoder == "pan" else 64)


@pytest.mark.parametrize("decoder", ["plain", "hierarchical", "unet", "deeplabv3plus"])
def test_hidden_pixels_change_neither_prediction_nor_gradient(decoder: str) -> None:
    model = create("sparse", decoder)
    shown, hidden = image().requires_grad_(), mask()
    torch.manual_seed(1)  # DeepLab has dropout
    prediction = model(shown, hidden)
    (prediction * image(seed=1)).sum().backward()
    assert (shown.grad[hidden.expand_as(shown) > 0] == 0).all()
    assert shown.grad.abs().sum() > 0
    torch.manual_seed(1)
    assert torch.equal(model(torch.where(hidden > 0, torch.nan, image()), hidden), prediction)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(
    ("masking", "decoder"),
    [("sparse", "plain"), ("sparse", "hierarchical"), ("sparse", "unet"), ("token", "plain"), ("token", "unet")],
)
def test_tokens_are_learned_and_matter_where_something_is_hidden(architecture, masking, decoder) -> None:
    model = create(masking, decoder, architecture)
    tokens = [parameter for name, parameter in model.named_parameters() if "token" in name]
    assert tokens
    masked = model(image(), mask())
    (masked * image(seed=1)).sum().backward()
    assert all(token.grad.abs().sum() > 0 for token in tokens)
    dense = model(image())
    with torch.no_grad():
        for token in tokens:
            token.copy_(torch.randn(token.shape, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(model(image()), dense, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(image(), mask()), masked, atol=1e-3)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_token_is_added_where_it_is_hidden_and_flows_on_into_the_deepest_map(architecture: str) -> None:
    model = create("token", "linear", architecture).eval()
    hidden = torch.zeros(2, 1, 64, 64)
    hidden[:, :, :, :32] = 1
    with torch.no_grad():
        plain = model.encode(image())
        seen = []
        for seed in (0, 1):
            nn.init.normal_(model.mask_tokens.tokens_1c11[0], generator=torch.Generator().manual_seed(seed))
            features = model.encode(image(), hidden)
            token = model.mask_tokens.tokens_1c11[0].expand_as(features[-2])[..., :2]
            torch.testing.assert_close(features[-2][..., :2], plain[-2][..., :2] + token)
            assert torch.equal(features[-2][..., 2:], plain[-2][..., 2:])
            seen.append(features[-1])
    assert not torch.allclose(*seen, atol=1e-4)


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("decoder", ["hierarchical", "unet", "fpn", "deeplabv3plus"])
def test_an_image_whose_skips_are_cut_is_predicted_from_its_deepest_map_alone(masking: str, decoder: str) -> None:
    model = create(masking, decoder).eval()
    assert model.has_skips
    cut = torch.tensor([True, False])
    with torch.no_grad():
        whole, half = model(image(), mask()), model(image(), mask(), cut)
        torch.testing.assert_close(half[1], whole[1])
        assert not torch.allclose(half[0], whole[0], atol=1e-5)
        features = model.encode(image(), mask())
        others = [map_bchw.flip(0) for map_bchw in features[:-1]]
        kept = [torch.where(cut.view(-1, 1, 1, 1), 0 * map_bchw, map_bchw) for map_bchw in others]
        torch.testing.assert_close(model.decode([*kept, features[-1]], mask())[0], half[0])


def test_a_decoder_of_the_deepest_map_has_no_skips_to_cut() -> None:
    model = create("dense", "plain").eval()
    assert not model.has_skips
    with torch.no_grad():
        assert torch.equal(model(image(), None, torch.tensor([True, True])), model(image()))


class TwoBranches(nn.Module):
    """Its stride-16 map is made by a module, but the deepest one does not come from it."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.deep = nn.Conv2d(3, 4, 16, stride=16), nn.Conv2d(3, 8, 32, stride=32)
        self.output_stride, self.out_channels, self._in_channels = 32, [3, 0, 0, 0, 4, 8], 3

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        return [image_bchw, self.side(image_bchw), self.deep(image_bchw)]


class Unnamed(TwoBranches):
    """No module's output is the stride-16 map itself."""

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        return [map_bchw + 1 for map_bchw in super().forward(image_bchw)]


@pytest.mark.parametrize("kind", [TwoBranches, Unnamed])
def test_an_encoder_without_a_place_for_the_token_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(SegaeError, match="no place for a mask token. Use objective sparse_mask"):
        find_token_module(kind())


@pytest.mark.parametrize("decoder", SKIPPING)
def test_the_decoder_is_the_segmenters(decoder: str) -> None:
    model = create("dense", decoder)
    segmenter = create_segmenter(model.encoder, "test_resnet", decoder, classes=5)
    load_strictly(segmenter.decoder, model.decoder.state_dict(), "the pretrained decoder")
    segmenter.encoder.load_state_dict(model.encoder.state_dict(), strict=True)
    images = image(128 if decoder == "pan" else 64)
    decoded = [part.eval().decoder(part.encoder(images)) for part in (model, segmenter)]
    assert torch.equal(*decoded)


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("decoder", ["plain", "hierarchical", "unet"])
def test_the_encoder_is_registered_once_and_stays_itself(masking: str, decoder: str) -> None:
    encoder = copy.deepcopy(build_once("test_resnet"))
    keys = list(encoder.state_dict())
    model = create_pretrainer(encoder, "test_resnet", masking=masking, decoder=decoder)
    model(image(), mask()).square().mean().backward()
    assert model.encoder is encoder
    state = model.state_dict()
    assert [name.removeprefix("encoder.") for name in state if name.startswith("encoder.")] == keys
    assert all(name.split(".")[0] in ("encoder", "decoder", "head", "mask_tokens") for name in state)
    twin = copy.deepcopy(model)
    twin.load_state_dict(state, strict=True)
    assert twin.encoder is not encoder
    assert torch.equal(twin.eval()(image(), mask()), model.eval()(image(), mask()))


def test_a_dilated_decoder_gets_a_dilated_copy_of_the_encoder() -> None:
    encoder = copy.deepcopy(build_once("test_resnet"))
    model = create_pretrainer(encoder, "test_resnet", masking="sparse", decoder="deeplabv3plus")
    given, taken = encoder.state_dict(), model.encoder.state_dict()
    assert given.keys() == taken.keys()
    assert all(torch.equal(given[name], taken[name]) for name in given)
    assert model.encoder(image())[-1].shape[-1] > encoder(image())[-1].shape[-1]


@pytest.mark.parametrize("decoder", ["plain", "linear", "hierarchical", "unet"])
def test_channels_are_free(decoder: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("test_resnet", 1)
    model = create_pretrainer(
        encoder, "test_resnet", image_channels=1, out_channels=7, masking="sparse", decoder=decoder
    )
    assert model(image()[:, :1], mask()).shape == (2, 7, 64, 64)


def test_the_plain_decoder_has_a_bottleneck_and_both_upsamplings() -> None:
    narrow = create("dense", "plain", code_channels=4, upsampling="transposed")
    assert any(isinstance(module, nn.ConvTranspose2d) for module in narrow.decoder.modules())
    assert narrow.decoder.layers[0](narrow.encoder(image())[-1]).shape == (2, 4, 2, 2)
    assert narrow(image()).shape == (2, 3, 64, 64)


def test_the_hierarchical_decoder_uses_each_scale_and_hides_the_holes() -> None:
    torch.manual_seed(0)
    decoder = HierarchicalDecoder([3, 0, 8, 16, 24, 32], 3)
    sides = (64, 32, 16, 8, 4, 2)
    features = [
        torch.randn(2, count, side, side, requires_grad=True)
        for count, side in zip([3, 0, 8, 16, 24, 32], sides, strict=True)
    ]
    prediction = decoder(features, mask())
    (prediction * image(seed=1)).sum().backward()
    for map_bchw in features[2:]:
        hidden = mask()[:, :, :: 64 // map_bchw.shape[-1], :: 64 // map_bchw.shape[-1]].expand_as(map_bchw) > 0
        assert (map_bchw.grad[hidden] == 0).all()
        assert map_bchw.grad[~hidden].abs().sum() > 0


def test_tokens_take_the_hidden_share_of_a_position() -> None:
    tokens = MaskTokens([4])
    hidden = torch.zeros(1, 1, 4, 4)
    hidden[..., :1] = 1
    mixed = tokens([torch.ones(1, 4, 2, 2)], hidden)[0]
    torch.testing.assert_close(mixed[..., 0], 0.5 + 0.5 * tokens.tokens_1c11[0].expand(1, 4, 2, 1)[..., 0])
    assert torch.equal(mixed[..., 1], torch.ones(1, 4, 2))


def test_sparse_masking_learns_to_fill_holes() -> None:
    """Images of one colour: what is hidden can be told from what is visible."""
    colours = torch.randn(8, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    target = colours.expand(8, 3, 64, 64)
    hidden = mask().repeat(4, 1, 1, 1)
    model = create("sparse", "hierarchical")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        prediction = model(torch.where(hidden > 0, torch.nan, target), hidden)
        loss = ((prediction - target).square() * hidden).sum() / hidden.sum() / 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"masking": "sparce"}, 'masking "sparce" is not known. Did you mean sparse'),
        ({"decoder": "hierachical"}, "Did you mean hierarchical"),
        ({"upsampling": "bicubic"}, 'upsampling "bicubic" is not known'),
        ({"decoder": "unet", "code_channels": 8}, "code_channels is 8 with decoder unet; only plain"),
        ({"code_channels": 0}, "code_channels is 0"),
    ],
)
def test_choices_are_checked(choices: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        create(**{"masking": "dense", "decoder": "plain", **choices})


def test_sizes_and_masks_are_checked() -> None:
    with pytest.raises(SegaeError, match="image size 70 does not fit"):
        create("dense", "plain")(torch.randn(1, 3, 64, 70))
    hidden = torch.zeros(2, 1, 64, 64)
    hidden[:, :, :16, :16] = 1
    with pytest.raises(SegaeError, match="Use --patch 32"):
        create("sparse", "unet")(image(), hidden)
