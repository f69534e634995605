"""Decoders, from an encoder's feature maps to pixels: plain, linear and hierarchical ones, and those of smp."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation

from segae.errors import SegaeError
from segae.image_format import ImageFormat, Size
from segae.models.classic import is_classic

# Light on purpose: on a CPU a training step spends 40 % as long here as in tf_efficientnet_lite0 at 128 px.
PLAIN_CHANNELS = (128, 64, 32, 16, 16)
HIERARCHICAL_CHANNELS = (128, 96, 64, 48)  # at strides 32, 16, 8 and 4

_CLASSIC = ("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3", "deeplabv3plus")
SMP_DECODERS = (*_CLASSIC, "upernet", "segformer")
_OPTIONS: dict[str, dict[str, Any]] = {"pspnet": {"encoder_depth": 5, "upsampling": 32}}  # smp's stop at stride 8
_SMALLEST_IMAGE = {"pan": 128}  # smp's PAN halves its stride-16 map three times more


def list_decoders() -> list[str]:
    """Names of a segmenter's decoders: those of smp, and `linear`, a 1x1 convolution on all feature maps."""
    return ["linear", *SMP_DECODERS]


class DeepestDecoder(nn.Module):
    """A decoder of the deepest feature map alone: without skip connections it cannot copy an uncorrupted input.

    The first layer makes the code, see `make_bottleneck`, and the second one decodes it.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    @property
    def bottleneck(self) -> nn.Module:
        """What makes the code of the deepest feature map."""
        return self.layers[0]

    def forward(self, features: Sequence[Tensor], *domain: Tensor | int) -> Tensor:
        """Decode the last of the feature maps: (B, C, h, w) to (B, out_channels, stride h, stride w)."""
        return self.from_code(self.bottleneck(features[-1]), *domain)

    def from_code(self, code: Tensor) -> Tensor:
        """Decode what `bottleneck` made of the deepest feature map, (B, K, h, w)."""
        return self.layers[1](code)


class GaussianCode(nn.Module):
    """A normal distribution for each number of a code (arXiv 1312.6114): in training a sample of it, else its mean."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.moments = nn.Conv2d(in_channels, 2 * channels, 1)  # means, then logarithms of the variances

    def forward(self, features: Tensor, sample: bool | None = None) -> Tensor:
        """Make a code (B, K, h, w) of features (B, C, h, w); ``sample`` None leaves it to the mode."""
        mean, log_variance = self.moments(features).chunk(2, dim=1)
        sample = self.training if sample is None else sample
        return mean + torch.randn_like(mean) * (log_variance / 2).exp() if sample else mean


def make_bottleneck(in_channels: int, channels: int | None, code: str) -> nn.Module:
    """Build what makes the code of the deepest map: a 1x1 convolution if it has ``channels``, and an activation."""
    if code == "gaussian":
        return GaussianCode(in_channels, channels or in_channels)
    reduce = nn.Conv2d(in_channels, channels, 1) if channels else nn.Identity()
    return reduce if code == "linear" else nn.Sequential(reduce, nn.ReLU() if code == "relu" else nn.Sigmoid())


class PlainDecoder(DeepestDecoder):
    """A bottleneck, then upsampling stages, by nearest neighbor or transposed convolution."""

    def __init__(
        self,
        encoder_channels: Sequence[int],
        out_channels: int,
        stride: int,
        upsampling: str,
        bottleneck: int | None,
        code: str = "linear",
    ) -> None:
        deepest = encoder_channels[-1]
        widths = (bottleneck or deepest, *PLAIN_CHANNELS[-(stride.bit_length() - 1) :])
        blocks = [_upsampling_block(inside, outside, upsampling) for inside, outside in pairwise(widths)]
        rest = nn.Sequential(*blocks, nn.Conv2d(widths[-1], out_channels, 3, padding=1))
        super().__init__(make_bottleneck(deepest, bottleneck, code), rest)


class DomainDecoders(DeepestDecoder):
    """A decoder for each domain behind one bottleneck; ``domain`` is an index for all images or one for each (B,)."""

    def __init__(self, first: Any, count: int) -> None:
        bottleneck, rest = first.layers
        super().__init__(bottleneck, nn.ModuleList(copy.deepcopy(rest) for _ in range(count)))

    def from_code(self, code: Tensor, domain: Tensor | int = 0) -> Tensor:
        """Decode a code (B, K, h, w)."""
        decoders: Any = self.layers[1]
        if isinstance(domain, int):
            return decoders[domain](code)
        order = domain.argsort()
        parts = code[order].split(domain.bincount(minlength=len(decoders)).tolist())
        made = [decoder(part) for decoder, part in zip(decoders, parts, strict=True) if len(part)]
        return torch.cat(made)[order.argsort()]


class LinearDecoder(DeepestDecoder):
    """One 1x1 convolution, whose channels become the pixels below each position."""

    def __init__(self, encoder_channels: Sequence[int], out_channels: int, stride: int) -> None:
        to_pixels = nn.Conv2d(encoder_channels[-1], out_channels * stride**2, 1)
        # begin near the mean color: torch's weights on large features would begin with noise in every pixel
        nn.init.normal_(to_pixels.weight, std=0.01 / encoder_channels[-1] ** 0.5)
        super().__init__(to_pixels, nn.PixelShuffle(stride))

    @property
    def bottleneck(self) -> nn.Module:
        """Nothing: the code is the deepest feature map."""
        return nn.Identity()

    def from_code(self, code: Tensor) -> Tensor:
        """Decode the deepest map (B, C, h, w)."""
        return self.layers(code)


class MaskTokens(nn.Module):
    """One learned vector per feature map, for the positions where the image was hidden."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.tokens_1c11 = nn.ParameterList(
            nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, 1, 1), std=0.02)) for count in channels
        )

    def forward(self, maps: Sequence[Tensor], mask: Tensor, *, add: bool = False) -> list[Tensor]:
        """Put the tokens in place of maps (B, C, h, w), or ``add`` them, by the hidden share of each position.

        The mask is (B, 1, H, W), 1 = hidden, 0 = visible, at any resolution above the maps'.
        """
        mixed = []
        for one, token in zip(maps, self.tokens_1c11, strict=True):
            share = functional.adaptive_avg_pool2d(mask.float(), one.shape[-2:]).to(one.dtype)  # type: ignore[arg-type]
            mixed.append((one if add else one * (1 - share)) + share * token.to(one.dtype))
        return mixed


class HierarchicalDecoder(nn.Module):
    """A light U-Net decoder on feature maps with holes (SparK, arXiv 2301.03580).

    Each map of stride 32, 16, 8 and 4 is normalized over its channels, position by position, so that the holes have no
    part in it, and the holes take the scale's mask token; without ``tokens`` the mask is not used. The last convolution
    works at stride 4 and its channels become pixels, which spares a CPU the two largest resolutions.
    """

    def __init__(self, encoder_channels: Sequence[int], out_channels: int, tokens: bool = True) -> None:
        super().__init__()
        widths = HIERARCHICAL_CHANNELS
        channels = list(encoder_channels)[-len(widths) :]
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        self.mask_tokens = MaskTokens(channels) if tokens else None
        self.projections = nn.ModuleList(
            # the deepest map goes through convolutions next, the others are added to something
            nn.Conv2d(count, width, size, padding=size // 2)
            for count, width, size in zip(reversed(channels), widths, (1, 3, 3, 3), strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*_upsampling_block(inside, outside), *Conv2dNormActivation(outside, outside))
            for inside, outside in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], out_channels * 4**2, 1)

    def forward(self, features: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """Predict (B, out_channels, H, W) from maps of stride 1 to 32; the mask is (B, 1, H, W), 1 = hidden."""
        maps = [
            # channels_last maps are normalized without a copy
            norm(one.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for norm, one in zip(self.norms, features[-len(self.norms) :], strict=True)
        ]
        if mask is not None and self.mask_tokens is not None:
            maps = self.mask_tokens(maps, mask)
        decoded, *shallower = (project(one) for project, one in zip(self.projections, reversed(maps), strict=True))
        for block, one in zip(self.blocks, shallower, strict=True):
            decoded = block(decoded) + one
        return functional.pixel_shuffle(self.head(decoded), 4)


class InputSkipDecoder(nn.Module):
    """The decoder of smp's U-Net, whose last block is also given the input: no map of an encoder has its resolution."""

    def __init__(self, unet: Any, in_channels: int) -> None:
        super().__init__()
        last = unet.blocks[-1].conv1[0]
        unet.blocks[-1] = UnetDecoderBlock(last.in_channels, in_channels, last.out_channels)
        self.unet = unet

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode maps of stride 1, which is the input, to the deepest: (B, C, H, W) each to (B, 16, H, W)."""
        return self.unet([features[0], *features])  # it leaves out the first


def _upsampling_block(in_channels: int, out_channels: int, upsampling: str = "nearest") -> nn.Sequential:
    """Double the resolution: (B, in, H, W) to (B, out, 2H, 2W), with BatchNorm and ReLU."""
    if upsampling == "nearest":
        return nn.Sequential(nn.Upsample(scale_factor=2), *Conv2dNormActivation(in_channels, out_channels))
    # kernel 4 at stride 2: every output pixel gets as many terms, so no checkerboard is built in
    transposed = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(transposed, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def build_smp(architecture: str, decoder: str, num_classes: int, in_channels: int) -> nn.Module:
    """Build smp's random model, with attributes `encoder`, `decoder` and `segmentation_head`, or raise SegaeError."""
    if is_classic(architecture):
        raise SegaeError(f"decoder must be plain for encoder {architecture}, a small network, got {decoder}")
    options = {"in_channels": in_channels, "classes": num_classes, **_OPTIONS.get(decoder, {})}
    try:
        # None and never False: smp reads that as "pretrained"
        return smp.create_model(decoder, f"tu-{architecture}", encoder_weights=None, **options)
    except Exception as error:  # whatever timm or smp raise for a pair they cannot join
        raise SegaeError(
            f"decoder must be one that works with encoder {architecture}, such as unet, fpn or linear, got {decoder} "
            f"({error!r})"
        ) from error


def require_decoder_size(decoder: str, image_size: Size) -> None:
    """Raise SegaeError if an image side in pixels is smaller than the decoder's own pooling allows."""
    smallest, side = _SMALLEST_IMAGE.get(decoder, 0), min(ImageFormat(image_size).shape)
    if side < smallest:
        raise SegaeError(f"image_size must be >= {smallest} for decoder {decoder}, got {side}")
