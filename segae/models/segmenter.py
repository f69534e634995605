"""Encoder, decoder and per-pixel softmax head: any smp decoder by name, or a linear probe."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.models.described import load_described, save_described
from segae.models.encoder import build_encoder
from segae.models.weights import load_strictly

# name: what smp.create_model needs beyond its defaults so that the encoder is the one of every other stage
DECODERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "unet": {},
    "unetplusplus": {},
    "manet": {},
    "linknet": {},
    "fpn": {},
    "pspnet": {"encoder_depth": 5, "upsampling": 32},  # smp's default cuts the encoder at stride 8
    "pan": {},  # this and the next two dilate the encoder's last stages; the weights stay the same
    "deeplabv3": {},
    "deeplabv3plus": {},
    "upernet": {},
    "segformer": {},
}

# smp's PAN halves its stride-16 map three times more
_SMALLEST_IMAGE = {"pan": 128}


class LinearSegmenter(nn.Module):
    """A 1x1 convolution on the encoder's upsampled feature maps: how linear are the classes already?

    A 1x1 convolution commutes with bilinear upsampling, so each stage is mapped to class scores first and
    only these few channels are upsampled and summed: the same function as one 1x1 convolution on the
    concatenation of all upsampled maps, at a fraction of the memory.

    Args:
        encoder: A module of `segae.models.encoder.create_encoder`.
        classes: Number of classes.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        channels: list[int] = encoder.out_channels[1:]  # type: ignore[index,assignment]
        self.stages = [index for index, count in enumerate(channels, start=1) if count > 0]
        self.heads = nn.ModuleList(
            # one bias is enough for a sum
            nn.Conv2d(channels[stage - 1], classes, 1, bias=stage == self.stages[-1])
            for stage in self.stages
        )

    def forward(self, image_bchw: Tensor) -> Tensor:
        """Map normalised images (B, C, H, W) to logits (B, K, H, W)."""
        features = self.encoder(image_bchw)
        size = image_bchw.shape[-2:]
        scores = [
            functional.interpolate(head(features[stage]), size=size, mode="bilinear", align_corners=False)
            for stage, head in zip(self.stages, self.heads, strict=True)
        ]
        return sum(scores[1:], start=scores[0])


@dataclass(frozen=True)
class SegmenterDescription:
    """What prediction and evaluation must know about a segmenter; stored in the header of its file.

    Attributes:
        encoder: timm's name of the encoder.
        decoder: A name of `DECODERS`.
        classes: Names, in the order of the class indices.
        palette: One RGB colour in 0..255 per class.
        mask_values: Per class, its raw value in the data set's mask files; all of them if it was merged.
        in_channels: Channels of an input image.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, images are divided by it after that.
        image_size: Side in pixels it was trained at.
        details: Provenance: init, dataset, seed, epochs, commit and the like.
    """

    encoder: str
    decoder: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mask_values: tuple[int | tuple[int, ...], ...]
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    details: dict[str, str | int | float]


def create_segmenter(encoder: nn.Module, architecture: str, decoder: str, classes: int) -> nn.Module:
    """Build a segmenter whose encoder starts from the weights of `encoder`, every tensor of it.

    Args:
        encoder: A module of `segae.models.encoder.create_encoder`; it is copied, not changed.
        architecture: timm's name of the encoder.
        decoder: A name of `DECODERS`.
        classes: Number of classes.

    Returns:
        A module with attribute `encoder`, from normalised images (B, C, H, W) to logits (B, K, H, W).

    Raises:
        SegaeError: The decoder is unknown, or does not work with this encoder.
    """
    _check_decoder(decoder)
    if decoder == "linear":
        return LinearSegmenter(copy.deepcopy(encoder), classes)
    # not from the first convolution: some networks fold pixels into channels before it
    segmenter = build_smp(architecture, decoder, classes, encoder._in_channels)  # type: ignore[arg-type]
    load_strictly(segmenter.encoder, encoder.state_dict(), f"the encoder {architecture}")  # type: ignore[arg-type]
    return segmenter


def _check_decoder(decoder: str) -> None:
    if decoder in DECODERS:
        return
    if decoder == "dpt":
        reason = "needs a vision transformer, and the encoders here are convolutional"
    else:
        close = difflib.get_close_matches(decoder, DECODERS, n=1)
        reason = "is not known" + (f"; did you mean {close[0]}?" if close else "")
    raise SegaeError(f'decoder "{decoder}" {reason}. Use one of {", ".join(DECODERS)}.'.replace("?.", "?"))


def require_decoder_size(decoder: str, image_size: int) -> None:
    """Check that an image side in pixels is large enough for the decoder.

    Raises:
        SegaeError: It is smaller than the decoder's own pooling allows; names the smallest one.
    """
    smallest = _SMALLEST_IMAGE.get(decoder, 0)
    if image_size < smallest:
        raise SegaeError(
            f"decoder {decoder} needs images of {smallest} px or more, and the image size is {image_size}. "
            f"Use image size {smallest}, or another decoder such as unet."
        )


def build_smp(architecture: str, decoder: str, classes: int, in_channels: int) -> nn.Module:
    """Build smp's randomly initialised segmenter, with attributes `encoder`, `decoder` and `segmentation_head`.

    Raises:
        SegaeError: The decoder does not work with this encoder.
    """
    try:
        return smp.create_model(
            decoder,
            encoder_name=f"tu-{architecture}",
            encoder_weights=None,  # never False: smp reads that as "pretrained"
            in_channels=in_channels,
            classes=classes,
            **DECODERS[decoder],
        )
    except Exception as error:  # whatever timm or smp raise for a pair they cannot join
        raise SegaeError(
            f"decoder {decoder} does not work with encoder {architecture} ({error!r}). "
            "Use unet, fpn or linear, or another encoder."
        ) from error


def probabilities(logits_bkhw: Tensor) -> Tensor:
    """Softmax over the classes: (B, K, H, W) logits to values in [0, 1] that sum to one at each pixel."""
    return logits_bkhw.float().softmax(dim=1)


def save_segmenter(path: Path, model: nn.Module, description: SegmenterDescription) -> None:
    """Write a segmenter with its description in the header, and the same JSON beside it; all or nothing.

    Raises:
        SegaeError: It cannot be written; the old files survive.
    """
    save_described(path, "segmenter", model.state_dict(), description)


def load_segmenter(path: Path) -> tuple[nn.Module, SegmenterDescription]:
    """Rebuild a segmenter from its file alone, every tensor checked.

    Raises:
        SegaeError: No such file, a pickle, a damaged file, a file without description, an unknown encoder
            or decoder, or a tensor missing, unknown or of another shape.
    """
    state, description = load_described(path, "segmenter", SegmenterDescription)
    _check_decoder(description.decoder)
    classes = len(description.classes)
    encoder = build_encoder(description.encoder, description.in_channels)
    model = create_segmenter(encoder, description.encoder, description.decoder, classes)
    load_strictly(model, state, str(path))
    return model, description
