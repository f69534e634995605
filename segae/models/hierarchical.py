"""Mask tokens, and the light decoder of masked autoencoders that fills them in at every scale (SparK)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_STAGES = 4  # strides 4, 8, 16, 32: every encoder has them
_HEAD_STRIDE = 4
# From stride 32 to 4. Light on purpose: on a CPU a step spends less time here than in tf_efficientnet_lite0.
WIDTHS = (128, 96, 64, 48)


class MaskTokens(nn.Module):
    """One learned vector per feature map, for the positions where the image was hidden.

    Args:
        channels: Of each map, from shallow to deep.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.tokens_1c11 = nn.ParameterList(
            nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, 1, 1), std=0.02)) for count in channels
        )

    def forward(self, maps: Sequence[Tensor], hidden_b1hw: Tensor) -> list[Tensor]:
        """Put the tokens in place of maps (B, C, h, w) by the hidden share of each position.

        Args:
            maps: As many as there are tokens.
            hidden_b1hw: 1 = hidden, 0 = visible, at any resolution above the maps'; a position that is hidden
                in part takes that part of the token.
        """
        return [
            _mix(map_bchw, token_1c11, hidden_b1hw) for map_bchw, token_1c11 in zip(maps, self.tokens_1c11, strict=True)
        ]

    def added(self, maps: Sequence[Tensor], hidden_b1hw: Tensor) -> list[Tensor]:
        """Add the tokens to maps by the hidden share of each position; arguments as in `forward`."""
        return [
            map_bchw + _hidden_share(map_bchw, hidden_b1hw) * token_1c11.to(map_bchw.dtype)
            for map_bchw, token_1c11 in zip(maps, self.tokens_1c11, strict=True)
        ]


def _mix(map_bchw: Tensor, token_1c11: Tensor, hidden_b1hw: Tensor) -> Tensor:
    share_b1hw = _hidden_share(map_bchw, hidden_b1hw)
    return map_bchw * (1 - share_b1hw) + share_b1hw * token_1c11.to(map_bchw.dtype)


def _hidden_share(map_bchw: Tensor, hidden_b1hw: Tensor) -> Tensor:
    share_b1hw = functional.adaptive_avg_pool2d(hidden_b1hw.float(), map_bchw.shape[-2:])  # type: ignore[arg-type]
    return share_b1hw.to(map_bchw.dtype)


class HierarchicalDecoder(nn.Module):
    """A light U-Net decoder on feature maps with holes (SparK, arXiv 2301.03580).

    Each map of stride 32, 16, 8 and 4 is normalised over its channels, position by position, so that the holes
    have no part in it; the holes take the scale's mask token; a convolution brings the map to the decoder's width
    and it is added to what comes up from below. The last convolution works at stride 4 and its channels become
    pixels, which spares a CPU the two largest resolutions.

    Args:
        encoder_channels: Per feature map from the input to stride 32, as an encoder's `out_channels`.
        out_channels: Channels of the prediction.
        tokens: Whether there are mask tokens; without them `hidden_b1hw` must be None.
        widths: Channels of the decoder at stride 32, 16, 8 and 4.
    """

    def __init__(
        self, encoder_channels: Sequence[int], out_channels: int, tokens: bool = True, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        channels = list(encoder_channels)[-_STAGES:]
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        self.mask_tokens = MaskTokens(channels) if tokens else None
        self.projections = nn.ModuleList(
            # the deepest map goes through convolutions next, the others are added to something
            nn.Conv2d(count, width, 1 if stage == 0 else 3, padding=0 if stage == 0 else 1)
            for stage, (count, width) in enumerate(zip(reversed(channels), widths, strict=True))
        )
        self.blocks = nn.ModuleList(_doubling(inside, outside) for inside, outside in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], out_channels * _HEAD_STRIDE**2, 1)

    def forward(self, features: Sequence[Tensor], hidden_b1hw: Tensor | None = None) -> Tensor:
        """Predict (B, out_channels, H, W) from the feature maps of images (B, C, H, W).

        Args:
            features: From the input to stride 32.
            hidden_b1hw: 1 = hidden, 0 = visible, (B, 1, H, W); None where the maps have no holes.
        """
        maps = [
            # channels_last maps are normalised without a copy
            norm(map_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for norm, map_bchw in zip(self.norms, features[-_STAGES:], strict=True)
        ]
        if hidden_b1hw is not None and self.mask_tokens is not None:
            maps = self.mask_tokens(maps, hidden_b1hw)
        deepest, *shallower = (
            project(map_bchw) for project, map_bchw in zip(self.projections, reversed(maps), strict=True)
        )
        decoded = deepest
        for block, map_bchw in zip(self.blocks, shallower, strict=True):
            decoded = block(decoded) + map_bchw
        return functional.pixel_shuffle(self.head(decoded), _HEAD_STRIDE)


def _doubling(in_channels: int, out_channels: int) -> nn.Sequential:
    """Double the resolution, then two 3x3 convolutions: (B, in, H, W) to (B, out, 2H, 2W)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
