"""Decoders: sizes, bottlenecks, mask tokens, and the decoders of smp that every encoder can be joined with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segae._io import require_choice
from segae.errors import SegaeError
from segae.models import require_decoder_size
from segae.models.decoders import SMP_DECODERS, HierarchicalDecoder, MaskTokens, PlainDecoder, build_smp

CHANNELS = [3, 0, 8, 16, 24, 32]


def features(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, count, 64 >> stage, 64 >> stage, generator=generator).requires_grad_()
        for stage, count in enumerate(CHANNELS)
    ]


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize("bottleneck", [None, 4])
@pytest.mark.parametrize("stride", [32, 8])
def test_the_plain_decoder_undoes_the_stride(upsampling: str, bottleneck: int | None, stride: int) -> None:
    decoder = PlainDecoder(CHANNELS, 5, stride, upsampling, bottleneck)
    maps = features()
    assert decoder(maps).shape == (2, 5, 2 * stride, 2 * stride)
    assert decoder.layers[0](maps[-1]).shape[1] == (bottleneck or CHANNELS[-1])
    transposed = any(isinstance(module, nn.ConvTranspose2d) for module in decoder.modules())
    assert transposed == (upsampling == "transposed")


def left_half() -> Tensor:
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., :32] = 1
    return mask


def test_the_hierarchical_decoder_uses_each_scale_and_no_hidden_position() -> None:
    torch.manual_seed(0)
    decoder, maps = HierarchicalDecoder(CHANNELS, 3), features()
    prediction = decoder(maps, left_half())
    assert prediction.shape == (2, 3, 64, 64)
    (prediction * torch.randn(prediction.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for one in maps[2:]:
        half = one.shape[-1] // 2
        assert (one.grad[..., :half] == 0).all()
        assert one.grad[..., half:].abs().sum() > 0
    assert all(token.grad.abs().sum() > 0 for token in decoder.mask_tokens.parameters())


def test_tokens_take_the_hidden_share_of_a_position() -> None:
    tokens, mask = MaskTokens([4]), torch.zeros(1, 1, 4, 4)
    mask[..., :1] = 1  # half of the left positions of a 2 x 2 map
    token = tokens.tokens_1c11[0].expand(1, 4, 2, 1)[..., 0]
    mixed, added = tokens([torch.ones(1, 4, 2, 2)], mask)[0], tokens([torch.ones(1, 4, 2, 2)], mask, add=True)[0]
    torch.testing.assert_close(mixed[..., 0], 0.5 + 0.5 * token)
    torch.testing.assert_close(added[..., 0], 1 + 0.5 * token)
    assert torch.equal(mixed[..., 1], torch.ones(1, 4, 2))
    assert torch.equal(added[..., 1], torch.ones(1, 4, 2))


@pytest.mark.parametrize("decoder", SMP_DECODERS)
def test_the_smallest_image_is_enough(decoder: str) -> None:
    """Pins the table of smallest sizes to what the decoders can do."""
    model, side = build_smp("test_resnet", decoder, 4, 3).eval(), 128 if decoder == "pan" else 32
    require_decoder_size(decoder, side)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 4, side, side)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SegaeError, match="image_size must be >= 128 for decoder pan, got 96"):
        require_decoder_size("pan", 96)
    with pytest.raises(SegaeError, match="ghostnet_050.*got deeplabv3"):
        build_smp("ghostnet_050", "deeplabv3", 3, 3)  # its timm model knows no dilation
    with pytest.raises(SegaeError, match="decoder must be one of unet, fpn, got 'unte'; did you mean unet"):
        require_choice("decoder", "unte", ("unet", "fpn"))
