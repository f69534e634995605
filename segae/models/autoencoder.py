"""A convolutional autoencoder around a shared encoder: encode, decode, reconstruct, and no skips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.encoder import require_size

Upsampling = Literal["nearest", "transposed"]
OutputActivation = Literal["none", "sigmoid", "tanh"]
# Light on purpose: on a CPU a training step spends 40 % as long here as in tf_efficientnet_lite0 at 128 px.
DECODER_CHANNELS = (128, 64, 32, 16, 16)


class Autoencoder(nn.Module):
    """Encoder, optional bottleneck, and a decoder that sees nothing but the code.

    There are no skip connections: with them the decoder copies the input and the encoder learns nothing.
    Input and output live in the normalised image space (x - mean) / std of x in [0, 1].

    Args:
        encoder: A module of `segae.models.encoder.create_encoder`; its deepest map is the code.
        mean: Per channel, of the encoder's description.
        std: Per channel, of the encoder's description.
        upsampling: `nearest` (nearest neighbour, then a 3x3 convolution) or `transposed` (4x4, stride 2).
        output_activation: `none`, or `sigmoid` / `tanh` to bound the output to images in [0, 1].
        code_channels: Channels after a 1x1 bottleneck convolution; None keeps the encoder's.
        decoder_channels: Channels after each doubling, from the code to full resolution.

    Raises:
        SegaeError: An unknown choice, or a number of decoder stages that does not undo the stride.
    """

    def __init__(
        self,
        encoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        upsampling: Upsampling = "nearest",
        output_activation: OutputActivation = "none",
        code_channels: int | None = None,
        decoder_channels: Sequence[int] = DECODER_CHANNELS,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.stride: int = encoder.output_stride  # type: ignore[assignment]
        _check(upsampling, output_activation, code_channels, decoder_channels, self.stride)
        deepest: int = encoder.out_channels[-1]  # type: ignore[index,assignment]
        self.code_channels = code_channels or deepest
        self.bottleneck = nn.Conv2d(deepest, code_channels, 1) if code_channels else nn.Identity()
        self.decoder = plain_decoder(self.code_channels, len(mean), decoder_channels, upsampling)
        self.image_range = ImageRange(output_activation, mean, std)

    def encode(self, image_bchw: Tensor) -> Tensor:
        """Map normalised images (B, C, H, W) to codes (B, code_channels, H/stride, W/stride).

        Raises:
            SegaeError: A side is not a multiple of the stride; names the next valid size.
        """
        for side in image_bchw.shape[-2:]:
            require_size(side, self.stride)
        return self.bottleneck(self.encoder(image_bchw)[-1])

    def decode(self, code_bchw: Tensor) -> Tensor:
        """Map codes to images (B, C, H, W) in normalised image space."""
        return self.image_range(self.decoder(code_bchw))

    def forward(self, image_bchw: Tensor) -> Tensor:
        """Reconstruct normalised images (B, C, H, W) through the code."""
        return self.decode(self.encode(image_bchw))


class ImageRange(nn.Module):
    """Bound an output to images in [0, 1], expressed in normalised image space.

    Args:
        activation: `sigmoid`, `tanh`, or `none` to leave the output as it is.
        mean: Per channel, of the encoder's description.
        std: Per channel, of the encoder's description.
    """

    mean_1c11: Tensor
    std_1c11: Tensor

    def __init__(self, activation: OutputActivation, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("mean_1c11", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std_1c11", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, output_bchw: Tensor) -> Tensor:
        """Map any (B, C, H, W) into the range."""
        if self.activation == "none":
            return output_bchw
        pixels_bchw = output_bchw.sigmoid() if self.activation == "sigmoid" else (output_bchw.tanh() + 1) / 2
        return (pixels_bchw - self.mean_1c11) / self.std_1c11


def plain_decoder(
    code_channels: int,
    out_channels: int,
    decoder_channels: Sequence[int] = DECODER_CHANNELS,
    upsampling: Upsampling = "nearest",
) -> nn.Sequential:
    """Build the decoder without skips: (B, code_channels, H, W) to (B, out_channels, 2**n H, 2**n W).

    Args:
        code_channels: Channels of the code.
        out_channels: Channels of the output.
        decoder_channels: Channels after each of the n doublings.
        upsampling: `nearest` or `transposed`, as in `Autoencoder`.
    """
    widths = (code_channels, *decoder_channels)
    return nn.Sequential(
        *(upsampling_block(inside, outside, upsampling) for inside, outside in pairwise(widths)),
        nn.Conv2d(widths[-1], out_channels, 3, padding=1),
    )


def upsampling_block(in_channels: int, out_channels: int, upsampling: Upsampling) -> nn.Sequential:
    """Double the resolution: (B, in, H, W) to (B, out, 2H, 2W), with BatchNorm and ReLU."""
    layers: list[nn.Module]
    if upsampling == "nearest":
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        layers = [nn.Upsample(scale_factor=2, mode="nearest"), conv]
    else:
        # kernel 4 at stride 2: every output pixel gets as many terms, so no checkerboard is built in
        layers = [nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _check(
    upsampling: str,
    output_activation: str,
    code_channels: int | None,
    decoder_channels: Sequence[int],
    stride: int,
) -> None:
    choices = (
        ("upsampling", upsampling, ("nearest", "transposed")),
        ("output activation", output_activation, ("none", "sigmoid", "tanh")),
    )
    for what, seen, valid in choices:
        if seen not in valid:
            raise SegaeError(f'unknown {what} "{seen}". Use {" or ".join(valid)}.')
    if code_channels is not None and code_channels < 1:
        raise SegaeError(f"code_channels is {code_channels}; use 1 or more, or None for the encoder's own.")
    stages = int(math.log2(stride))
    if len(decoder_channels) != stages or min(decoder_channels) < 1:
        raise SegaeError(
            f"decoder_channels {tuple(decoder_channels)} does not undo the encoder's stride of {stride}: "
            f"give {stages} numbers of 1 or more, such as {DECODER_CHANNELS[-stages:]}."
        )
