"""Encoder and decoder while they are pretrained: three ways to hide pixels from a CNN, any decoder."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.autoencoder import DECODER_CHANNELS, Upsampling, plain_decoder
from segae.models.encoder import require_size
from segae.models.hierarchical import HierarchicalDecoder, MaskTokens
from segae.models.segmenter import DECODERS, build_smp
from segae.models.sparse import SparseEncoder, make_trial
from segae.models.weights import load_strictly

Masking = Literal["dense", "sparse", "token"]
OWN_DECODERS = ("plain", "linear", "hierarchical")


class FromDeepest(nn.Module):
    """A decoder that sees the deepest feature map only.

    Args:
        layers: From (B, C, H/stride, W/stride) to the output.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode the last of the feature maps."""
        return self.layers(features[-1])


class Pretrainer(nn.Module):
    """An encoder with a decoder that predicts something for every pixel, hidden ones included.

    Made by `create_pretrainer`. The encoder stays a plain dense module: what hides pixels from it is done by
    hooks that exist while `forward` runs, and by parameters that are not its own.

    Args:
        encoder: A module of `segae.models.encoder.build_encoder`.
        decoder: From feature maps to (B, D, h, w); a `HierarchicalDecoder` is also given the mask.
        head: From the decoder's output to (B, out_channels, H, W).
        masking: `dense`, `sparse` or `token`, as in `create_pretrainer`.

    Raises:
        SegaeError: The encoder does not allow this masking.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, masking: Masking) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.masking = masking
        self.stride: int = encoder.output_stride  # type: ignore[assignment]
        channels: list[int] = encoder.out_channels  # type: ignore[assignment]
        self.mask_tokens: MaskTokens | None = None
        if masking == "sparse":
            self.spatial = SparseEncoder(encoder).spatial
            if isinstance(decoder, FromDeepest):
                self.mask_tokens = MaskTokens(channels[-1:])
            elif not isinstance(decoder, HierarchicalDecoder):  # which has its own
                self.mask_tokens = MaskTokens([count for count in channels[1:] if count > 0])
        elif masking == "token":
            self.token_module = find_token_module(encoder)
            self.mask_tokens = MaskTokens(channels[-2:-1])

    @property
    def has_skips(self) -> bool:
        """Whether the decoder is given more than the deepest feature map."""
        return not isinstance(self.decoder, FromDeepest)

    def forward(
        self,
        image_bchw: Tensor,
        hidden_b1hw: Tensor | None = None,
        cut_b: Tensor | None = None,
        visible: int | None = None,
    ) -> Tensor:
        """Predict (B, out_channels, H, W) from normalised images (B, C, H, W).

        Args:
            image_bchw: Sides are multiples of the encoder's stride.
            hidden_b1hw: (B, 1, H, W), 1 = hidden, 0 = visible. None is an ordinary dense pass without tokens, as
                for recalibrating BatchNorm on clean images.
            cut_b: (B,), true where the decoder gets zeros in place of all maps but the deepest; None cuts none.
            visible: Blocks of the encoder's stride that every image shows; None counts them, which a GPU waits for.

        Raises:
            SegaeError: A side is not a multiple of the stride, or the mask does not fit a sparse pass.
        """
        features = self.encode(image_bchw, hidden_b1hw, visible)
        if cut_b is not None:
            cut_b111 = cut_b.view(-1, 1, 1, 1)
            features = [*(map_bchw.masked_fill(cut_b111, 0.0) for map_bchw in features[:-1]), features[-1]]
        return self.decode(features, hidden_b1hw)

    def decode(self, features: Sequence[Tensor], hidden_b1hw: Tensor | None = None) -> Tensor:
        """Predict (B, out_channels, H, W) from what `encode` returned for the same mask."""
        if isinstance(self.decoder, HierarchicalDecoder):
            return self.head(self.decoder(features, hidden_b1hw if self.masking == "sparse" else None))
        return self.head(self.decoder(features))

    def encode(self, image_bchw: Tensor, hidden_b1hw: Tensor | None = None, visible: int | None = None) -> list[Tensor]:
        """The feature maps that the decoder is given, from the input to the deepest; arguments as in `forward`."""
        for side in image_bchw.shape[-2:]:
            require_size(side, self.stride)
        if hidden_b1hw is None or self.masking == "dense":
            return self.encoder(image_bchw)
        if self.masking == "token":
            with self._token_added(hidden_b1hw):
                return self.encoder(image_bchw)
        # built anew each time: kept, it would register the encoder twice
        features = SparseEncoder(self.encoder, self.spatial)(image_bchw, hidden_b1hw, visible)
        if self.mask_tokens is not None:
            count = len(self.mask_tokens.tokens_1c11)
            features[-count:] = self.mask_tokens(features[-count:], hidden_b1hw)
        return features

    @contextmanager
    def _token_added(self, hidden_b1hw: Tensor) -> Iterator[None]:
        """Add the token to the map of stride 16 where it was hidden; the encoder then goes on from there."""

        def add(module: nn.Module, inputs: tuple[Any, ...], output_bchw: Tensor) -> Tensor:  # noqa: ARG001
            assert self.mask_tokens is not None
            return self.mask_tokens.added([output_bchw], hidden_b1hw)[0]

        handle = self.encoder.get_submodule(self.token_module).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


@torch.no_grad()
def find_token_module(encoder: nn.Module) -> str:
    """Name the outermost module whose output is the encoder's map before the deepest one (stride 16).

    Raises:
        SegaeError: No module makes that map, or the deepest map does not come from it.
    """
    copied, image_bchw = make_trial(encoder)
    outputs: dict[str, Any] = {}
    for name, module in copied.named_modules():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
    *_, stage_bchw, deepest_bchw = copied(image_bchw)
    # outer modules come before the inner ones that end with them
    names = [name for name, _ in copied.named_modules() if outputs.get(name) is stage_bchw]
    if names:
        # swapping the images changes what follows, whatever normalisation comes next
        copied.get_submodule(names[0]).register_forward_hook(lambda _module, _inputs, output: output.flip(0))
        if not torch.equal(copied(image_bchw)[-1], deepest_bchw):
            return names[0]
    raise SegaeError(
        "no layer of this encoder makes the whole feature map of stride 16, so there is no place for a mask token. "
        "Use objective sparse_mask or mask, or another encoder such as tf_efficientnet_lite0, resnet18 or "
        "convnext_atto."
    )


def create_pretrainer(
    encoder: nn.Module,
    architecture: str,
    *,
    image_channels: int = 3,
    out_channels: int = 3,
    masking: Masking = "dense",
    decoder: str = "plain",
    upsampling: Upsampling = "nearest",
    code_channels: int | None = None,
) -> Pretrainer:
    """Join an encoder with a decoder for pretraining.

    Args:
        encoder: A module of `segae.models.encoder.create_encoder`. It becomes `.encoder` itself, but for the
            decoders that dilate an encoder (pan, deeplabv3, deeplabv3plus): they get a dilated copy, with the same
            keys.
        architecture: timm's name of the encoder.
        image_channels: Channels of an input image.
        out_channels: Channels of the prediction.
        masking: `dense` (the encoder sees the corrupted image as it is), `sparse` (it sees visible positions only,
            and learned tokens stand in the holes before decoding; SparK, arXiv 2301.03580) or `token` (a learned
            token is added to hidden positions at stride 16; A2MIM, arXiv 2205.13943).
        decoder: `plain` (no skips), `linear` (one 1x1 convolution), `hierarchical` (SparK's light one), or a
            decoder of `segae.models.segmenter`, which can go into a segmenter later.
        upsampling: For `plain`: `nearest` or `transposed`.
        code_channels: For `plain`: channels after a 1x1 bottleneck; None for no bottleneck.

    Returns:
        The pretrainer, with `.encoder`, `.decoder` and `.head`.

    Raises:
        SegaeError: An unknown or impossible choice.
    """
    _check_choices(masking, decoder, upsampling, code_channels)
    if decoder in OWN_DECODERS:
        own = _build_own(encoder, out_channels, decoder, masking, upsampling, code_channels)
        return Pretrainer(encoder, own, nn.Identity(), masking)
    segmenter = build_smp(architecture, decoder, out_channels, image_channels)
    if segmenter.encoder.output_stride != encoder.output_stride:  # type: ignore[union-attr]
        load_strictly(segmenter.encoder, encoder.state_dict(), f"the encoder {architecture}")  # type: ignore[arg-type]
        encoder = segmenter.encoder  # type: ignore[assignment]
    return Pretrainer(encoder, segmenter.decoder, segmenter.segmentation_head, masking)  # type: ignore[arg-type]


def _build_own(
    encoder: nn.Module,
    out_channels: int,
    decoder: str,
    masking: Masking,
    upsampling: Upsampling,
    code_channels: int | None,
) -> nn.Module:
    channels: list[int] = encoder.out_channels  # type: ignore[assignment]
    stride: int = encoder.output_stride  # type: ignore[assignment]
    if decoder == "hierarchical":
        return HierarchicalDecoder(channels, out_channels, tokens=masking == "sparse")
    if decoder == "linear":
        to_pixels = nn.Conv2d(channels[-1], out_channels * stride**2, 1)
        # begin near the mean colour: torch's weights on large features would begin with noise in every pixel
        nn.init.normal_(to_pixels.weight, std=0.01 / channels[-1] ** 0.5)
        return FromDeepest(nn.Sequential(to_pixels, nn.PixelShuffle(stride)))
    bottleneck = nn.Conv2d(channels[-1], code_channels, 1) if code_channels else nn.Identity()
    stack = plain_decoder(code_channels or channels[-1], out_channels, DECODER_CHANNELS, upsampling)
    return FromDeepest(nn.Sequential(bottleneck, stack))


def _check_choices(masking: str, decoder: str, upsampling: str, code_channels: int | None) -> None:
    decoders = (*OWN_DECODERS, *(name for name in DECODERS if name != "linear"))
    for what, seen, valid in (
        ("masking", masking, get_args(Masking)),
        ("decoder", decoder, decoders),
        ("upsampling", upsampling, get_args(Upsampling)),
    ):
        if seen not in valid:
            close = difflib.get_close_matches(seen, valid, n=1)
            hint = f"Did you mean {close[0]}? All: " if close else "Use one of "
            raise SegaeError(f'{what} "{seen}" is not known. {hint}{", ".join(valid)}.')
    if code_channels is not None and (code_channels < 1 or decoder != "plain"):
        raise SegaeError(
            f"code_channels is {code_channels} with decoder {decoder}; only plain has a bottleneck, of 1 channel or "
            "more. Leave code_channels out, or use decoder plain."
        )
