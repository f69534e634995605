"""The model that is pretrained: an encoder, a decoder that predicts every pixel, and three ways to hide pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segae._io import check_range, require_choice
from segae._notebook import ShownInNotebooks
from segae.errors import SegaeError
from segae.models import decoders
from segae.models.checkpoint import Info, PathLike, load_model, save_described
from segae.models.classic import is_classic, mirrored_layers
from segae.models.decoders import DeepestDecoder, GaussianCode, HierarchicalDecoder, MaskTokens
from segae.models.encoder import (
    Encoder,
    EncoderInfo,
    count_parameters,
    encoder_facts,
    evaluation_mode,
    require_image_size,
)
from segae.models.spark import encode_visible, find_spatial_modules, make_trial

INPUT_SKIP = "unet_with_input"


@dataclass(frozen=True)
class AutoencoderInfo(Info):
    """What an autoencoder consists of, stored in the header of its file; see also `segae.create_autoencoder`.

    Attributes:
        encoder: what its encoder is and began with.
        out_channels: channels of the prediction.
        masking: `dense` (the encoder sees the corrupted image), `sparse` (it sees visible positions only, and learned
            tokens fill the holes before decoding; SparK, arXiv 2301.03580) or `token` (a learned token is added to
            hidden positions at stride 16; A2MIM, arXiv 2205.13943).
        code: of decoder `plain`: `linear`, `relu`, `sigmoid`, or `gaussian`, of which training draws samples.
    """

    encoder: EncoderInfo
    out_channels: int = 3
    masking: str = "dense"
    decoder: str = "plain"
    upsampling: str = "nearest"
    bottleneck: int | None = None
    output_activation: str = "none"
    code: str = "linear"
    domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_choice("masking", self.masking, ("dense", "sparse", "token"))
        require_choice("decoder", self.decoder, ("plain", "linear", "hierarchical", INPUT_SKIP, *decoders.SMP_DECODERS))
        require_choice("upsampling", self.upsampling, ("nearest", "transposed"))
        require_choice("output_activation", self.output_activation, ("none", "sigmoid", "tanh"))
        check_range("out_channels", self.out_channels, low=1, high=4096, integer=True)
        if self.bottleneck is not None:
            check_range("bottleneck", self.bottleneck, low=1, high=1 << 16, integer=True)
        require_choice("code", self.code, ("linear", "relu", "sigmoid", "gaussian"))
        if is_classic(self.encoder.architecture) and (self.decoder, self.masking) != ("plain", "dense"):
            given = f"decoder {self.decoder} and masking {self.masking}"
            raise SegaeError(f"encoder must be a network of timm for {given}, got {self.encoder.architecture}")
        if self.decoder == INPUT_SKIP and self.masking != "dense":  # it would see what is hidden
            raise SegaeError(f"decoder must be another one for masking {self.masking}, got {INPUT_SKIP}")
        if len(self.domains) == 1 or (self.domains and self.decoder != "plain"):
            raise SegaeError(f"domains must be two or more with decoder plain, got {self.domains} with {self.decoder}")
        if self.decoder != "plain" and (self.bottleneck, self.upsampling, self.code) != (None, "nearest", "linear"):
            given = f"bottleneck={self.bottleneck}, upsampling={self.upsampling} and code={self.code}"
            raise SegaeError(f"decoder must be plain, which alone can have {given}, got {self.decoder}")

    def build(self) -> "Autoencoder":
        """Build the autoencoder that this describes, with random weights."""
        settings = {name: value for name, value in vars(self).items() if name != "encoder"}
        return build_autoencoder(self.encoder.build(), **settings)


class Autoencoder(ShownInNotebooks, nn.Module):
    """An encoder with a decoder that predicts something for every pixel, hidden ones included.

    Made by `build_autoencoder`. The encoder stays a plain dense module: pixels are hidden from it by hooks that exist
    while `forward` runs, and by parameters that are not its own. A mask is (B, 1, H, W), 1 = hidden, 0 = visible.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, head: nn.Module, info: AutoencoderInfo) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head, self.info = encoder, decoder, head, info
        self.masking, self.stride = info.masking, encoder.output_stride
        self.has_skips = not isinstance(decoder, DeepestDecoder)  # whether it is given more than the deepest map
        self.mask_tokens: MaskTokens | None = None
        if self.masking == "sparse":
            self.spatial = find_spatial_modules(encoder)
            if not self.has_skips:
                self.mask_tokens = MaskTokens(encoder.out_channels[-1:])
            elif not isinstance(decoder, HierarchicalDecoder):  # which has its own
                self.mask_tokens = MaskTokens([count for count in encoder.out_channels[1:] if count > 0])
        elif self.masking == "token":
            self.token_module = find_token_module(encoder)
            self.mask_tokens = MaskTokens(encoder.out_channels[-2:-1])
        for name, values in (("mean_1c11", info.encoder.mean), ("std_1c11", info.encoder.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def _facts(self) -> dict[str, Any]:
        info = self.info
        facts = {"encoder": info.encoder.architecture, "decoder": info.decoder, "masking": info.masking}
        return facts | {"parameters": count_parameters(self)} | encoder_facts(info.encoder)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        drop_skips: Tensor | None = None,
        visible: Any = None,
        domain: Tensor | int = 0,
    ) -> Tensor:
        """Predict (B, out_channels, H, W) from normalized images (B, C, H, W).

        Args:
            images: sides are multiples of the encoder's stride.
            mask: 1 = hidden, 0 = visible. None is an ordinary dense pass without tokens.
            drop_skips: (B,), true where the decoder gets zeros in place of all maps but the deepest; None drops none.
            visible: for sparse masking, how many blocks of the stride every image shows, or an object with the `count`
                and `side` in pixels of whole patches; None counts them, which a GPU waits for.
            domain: index of the decoder, for all images or for each (B,), if there is one for each of ``info.domains``.
        """
        features = self.encode(images, mask, visible)
        if drop_skips is not None:
            dropped = drop_skips.view(-1, 1, 1, 1)
            features = [*(one.masked_fill(dropped, 0.0) for one in features[:-1]), features[-1]]
        return self.decode(features, mask, domain)

    def encode(self, images: Tensor, mask: Tensor | None = None, visible: Any = None) -> list[Tensor]:
        """Compute the feature maps for the decoder, from the input to the deepest; arguments as in `forward`."""
        for side in images.shape[-2:]:
            require_image_size(side, self.stride)
        if mask is None or self.masking == "dense":
            return self.encoder(images)
        if self.masking == "token":
            # the token is added to the map of stride 16 where it was hidden; the encoder then goes on from there
            tokens: Any = self.mask_tokens
            stage = self.encoder.get_submodule(self.token_module)
            with stage.register_forward_hook(lambda _, _inputs, output: tokens([output], mask, add=True)[0]):
                return self.encoder(images)
        if visible is not None and not isinstance(visible, int):
            blocks, rest = divmod(visible.side, self.stride)
            visible = None if rest else visible.count * blocks**2
        features = encode_visible(self.encoder, self.spatial, images, mask, visible)
        if self.mask_tokens is not None:
            count = len(self.mask_tokens.tokens_1c11)
            features[-count:] = self.mask_tokens(features[-count:], mask)
        return features

    def decode(self, features: Sequence[Tensor], mask: Tensor | None = None, domain: Tensor | int = 0) -> Tensor:
        """Predict (B, out_channels, H, W) from what `encode` returned for the same mask."""
        if isinstance(domain, int):
            check_range("domain", domain, low=0, high=max(len(self.info.domains) - 1, 0), integer=True)
        hierarchical = isinstance(self.decoder, HierarchicalDecoder) and self.masking == "sparse"
        more = (mask,) if hierarchical else (domain,) if self.info.domains else ()
        return self._activate(self.head(self.decoder(features, *more)))

    def _activate(self, output: Any) -> Tensor:
        if self.info.output_activation == "none":
            return output
        pixels = output.sigmoid() if self.info.output_activation == "sigmoid" else (output.tanh() + 1) / 2
        return (pixels - self.mean_1c11) / self.std_1c11

    @property
    def bottleneck(self) -> nn.Module:
        """The layer that makes the code; of a Gaussian code the one that makes its moments (B, 2K, h, w)."""
        layer = self._without_skips().bottleneck
        return layer.moments if isinstance(layer, GaussianCode) else layer

    def code(self, images: Tensor, draw: str | None = None) -> Tensor:
        """Compute the code (B, K, h, w) of normalized images (B, C, H, W): all that the decoder is given.

        A variational autoencoder has two: ``draw`` is ``mean`` or ``sample``; of others it must be None.
        """
        layer, deepest = self._without_skips().bottleneck, self.encode(images)[-1]
        variational = isinstance(layer, GaussianCode)
        if draw not in (("mean", "sample") if variational else (None,)):
            what = "mean or sample for the code of this variational" if variational else "None for the code of this"
            raise SegaeError(f"draw must be {what} autoencoder, got {draw}")
        return layer(deepest, sample=draw == "sample") if variational else layer(deepest)

    def from_code(self, code: Tensor) -> Tensor:
        """Predict (B, out_channels, H, W) from a code (B, K, h, w)."""
        return self._activate(self._without_skips().from_code(code))

    def _without_skips(self) -> DeepestDecoder:
        if not isinstance(self.decoder, DeepestDecoder):
            raise SegaeError(f"decoder must be plain or linear for a code, got {self.info.decoder}, which has skips")
        return self.decoder

    def reconstruct(self, images: Tensor, domain: Tensor | int = 0) -> Tensor:
        """Predict from whole normalized images (B, C, H, W), in evaluation mode and without gradients."""
        with evaluation_mode(self), torch.no_grad():
            return self(images, domain=domain)


@torch.no_grad()
def find_token_module(encoder: nn.Module) -> str:
    """Name the outermost module whose output is the encoder's map of stride 16, from which the deepest one comes."""
    copied, images = make_trial(encoder)
    outputs: dict[str, Any] = {}
    for name, module in copied.named_modules():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
    *_, stage, deepest = copied(images)
    # outer modules come before the inner ones that end with them
    names = [name for name, _ in copied.named_modules() if outputs.get(name) is stage]
    if names:
        # swapping the images changes what follows, whatever normalization comes next
        copied.get_submodule(names[0]).register_forward_hook(lambda _module, _inputs, output: output.flip(0))
        if not torch.equal(copied(images)[-1], deepest):
            return names[0]
    needed = "a layer that makes the whole map of stride 16 for masking token"
    raise SegaeError(f"encoder must have {needed}: use another one")


def build_autoencoder(encoder: Encoder, **settings: Any) -> Autoencoder:
    """Join an encoder with a random decoder for pretraining; `segae.create_autoencoder` chooses by the method.

    The settings are the fields of `AutoencoderInfo`; SegaeError if one is unknown or impossible. The encoder becomes
    ``.encoder`` itself; a decoder that dilates it (pan, deeplabv3, deeplabv3plus) gets a copy.
    """
    info, channels, stride = AutoencoderInfo(encoder.info, **settings), encoder.out_channels, encoder.output_stride
    about, out_channels, head = encoder.info, info.out_channels, nn.Identity()
    decoder: nn.Module
    if info.decoder == "hierarchical":
        decoder = HierarchicalDecoder(channels, out_channels, tokens=info.masking == "sparse")
    elif is_classic(about.architecture):
        bottleneck = decoders.make_bottleneck(channels[-1], info.bottleneck, info.code)
        width = info.bottleneck or channels[-1]
        decoder = DeepestDecoder(bottleneck, mirrored_layers(about, out_channels, width, info.upsampling))
    elif info.decoder == "linear":
        decoder = decoders.LinearDecoder(channels, out_channels, stride)
    elif info.decoder == "plain":
        how = info.upsampling, info.bottleneck, info.code
        decoder = decoders.PlainDecoder(channels, out_channels, stride, *how)
    else:
        name = "unet" if info.decoder == INPUT_SKIP else info.decoder
        model: Any = decoders.build_smp(about.architecture, name, out_channels, about.in_channels)
        encoder = encoder.with_stride(model.encoder.output_stride)
        decoder, head = model.decoder, model.segmentation_head
        decoder = decoders.InputSkipDecoder(decoder, about.in_channels) if info.decoder == INPUT_SKIP else decoder
    decoder = decoders.DomainDecoders(decoder, len(info.domains)) if info.domains else decoder
    return Autoencoder(encoder, decoder, head, info)


def save_autoencoder(model: Autoencoder, path: PathLike) -> Path:
    """Write an autoencoder with its info as `segae.models.save_encoder` does."""
    return save_described(path, "autoencoder", model.state_dict(), replace(model.info, encoder=model.encoder.info))


def load_autoencoder(path: PathLike) -> Autoencoder:
    """Rebuild an autoencoder from its file alone, every tensor checked; errors as in `segae.models.load_encoder`."""
    return load_model(path, "autoencoder", AutoencoderInfo)
