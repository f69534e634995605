"""The small encoders of textbooks, by names that say their layers, and the decoders that mirror them.

``linear_64`` is one linear map of all pixels to 64 numbers, ``dense_256_64`` two dense layers with ReLU between, and
``conv_16_8_4`` three 3x3 convolutions with ReLU between, each followed by 2x2 max pooling. Images have the one size
that a network was made for, such as 28 x 28.
"""

import re
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from segae.errors import SegaeError

DEFAULT_SIZE = 28  # of Fashion-MNIST
_NAME = re.compile(r"(linear|dense|conv)((?:_[1-9]\d{0,5}){1,8})")


def is_classic(name: str) -> bool:
    """Whether it names one of the networks here, such as ``conv_16_8_4``."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _layout(name: str, in_channels: int, image_size: int) -> tuple[str, list[int], list[int]]:
    """The kind, the channels and the sides of all maps, from the image on; dense layers are maps of 1 x 1."""
    kind, numbers = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    widths = [int(number) for number in numbers[1:].split("_")]
    if kind == "linear" and len(widths) > 1:
        raise SegaeError(f"name must have one number after linear, such as linear_64, got {name!r}")
    sides = [image_size, *(1 if kind != "conv" else -(-image_size // 2 ** (step + 1)) for step in range(len(widths)))]
    return kind, [in_channels, *widths], sides


class ClassicLayers(nn.Module):
    """The layers of an encoder; returns one map (B, C, h, w) for each, the last being the code."""

    def __init__(self, name: str, in_channels: int, image_size: int) -> None:
        super().__init__()
        kind, self.channels, sides = _layout(name, in_channels, image_size)
        self.shape = (in_channels, image_size, image_size)
        self.layers = nn.ModuleList()
        for place, (inside, outside) in enumerate(pairwise(self.channels)):
            # a convolution over the whole map is a dense layer
            size, padding = (3, 1) if kind == "conv" else (sides[place], 0)
            layer = nn.Sequential(nn.Conv2d(inside, outside, size, padding=padding))
            if place < len(self.channels) - 2:  # the code has no activation of its own: a bottleneck may add one
                layer.append(nn.ReLU())
            if kind == "conv":
                layer.append(nn.MaxPool2d(2, ceil_mode=True))  # 28, 14, 7, 4
            self.layers.append(layer)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of images (B, C, S, S)."""
        if images.shape[1:] != self.shape:
            raise SegaeError(f"images must have shape (B, {', '.join(map(str, self.shape))}), got {(*images.shape,)}")
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[1:]


def mirrored_layers(encoder: Any, out_channels: int, code_channels: int, upsampling: str) -> nn.Sequential:
    """Build the decoder from a code of ``code_channels`` channels: the layers of an encoder's info in reverse."""
    kind, channels, sides = _layout(encoder.architecture, encoder.in_channels, encoder.image_size)
    channels = [out_channels, *channels[1:-1], code_channels]
    layers: list[nn.Module] = []
    for place in range(len(channels) - 1, 0, -1):
        inside, outside, side = channels[place], channels[place - 1], sides[place - 1]
        if kind != "conv":
            layers += [nn.Conv2d(inside, outside * side**2, 1), nn.PixelShuffle(side)]
        elif upsampling == "nearest":
            layers += [nn.Upsample(size=(side, side)), nn.Conv2d(inside, outside, 3, padding=1)]
        else:
            more = side + 1 - 2 * sides[place]  # 4, 7, 14, 28
            layers.append(nn.ConvTranspose2d(inside, outside, 3, 2, 1, output_padding=more))
        layers += [nn.ReLU()] if place > 1 else []
    return nn.Sequential(*layers)
