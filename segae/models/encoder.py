"""The contract between the stages: build an encoder, describe it, save it, load it.

Every stage builds its encoder here and nowhere else, so weights load with `strict=True` and no key is ever
renamed. The file is `encoder.safetensors`; its header holds the description, and the same JSON stands beside
it for people to read. It needs no segae to be used:

Into plain timm (its feature extractors have the file's keys without the leading `model.`; checked for
some sixty architectures)::

    state = safetensors.torch.load_file("encoder.safetensors")
    state = {key.removeprefix("model."): value for key, value in state.items()}
    model = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False)
    model.load_state_dict(state, strict=True)
    features = model(images)

Into segmentation_models.pytorch::

    state = safetensors.torch.load_file("encoder.safetensors")
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=3)
    model.encoder.load_state_dict(state, strict=True)
    logits = model(images)

Into segae's segmenter::

    encoder, description = load_encoder(Path("encoder.safetensors"))
    model = create_segmenter(encoder, description.architecture, "unet", classes=3)
    logits = model(images)
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from segae.errors import SegaeError
from segae.models.described import load_described, save_described
from segae.models.imagenet import load_imagenet
from segae.models.published import encoder_file, published_encoders
from segae.models.weights import load_strictly

_DEPTH = 5  # smp's encoders give the input and five stages; the deepest has stride 32


@dataclass(frozen=True)
class EncoderDescription:
    """What a later stage must know about an encoder; stored in the header of its file.

    Attributes:
        architecture: timm's name of the network.
        in_channels: Channels of an input image.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, images are divided by it after that.
        image_size: Side in pixels that the weights were made for.
        init: `random`, `imagenet`, `ae:<objective>` or `imagenet+ae:<objective>`; a second pretraining adds another
            `+ae:<objective>`.
        source: In words, where the weights came from.
        pretraining: Objective, dataset, images, epochs, images_seen, seed, split_hash, commit, versions,
            final_loss; empty where there was no pretraining.
    """

    architecture: str
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    init: str
    source: str
    pretraining: dict[str, str | int | float] = field(default_factory=dict)


def create_encoder(
    architecture: str, init: str = "random", *, in_channels: int = 3
) -> tuple[nn.Module, EncoderDescription]:
    """Build the encoder that every stage shares: smp's universal encoder around a timm CNN.

    Its forward takes (B, C, H, W) with sides divisible by 32 and returns six feature maps, from the input
    itself to stride 32; `out_channels` lists their channels (0 for a stage the network does not have) and
    `output_stride` is 32.

    Args:
        architecture: A timm name, such as `tf_efficientnet_lite0` or `resnet18`.
        init: `random`, `imagenet`, the path of an encoder's .safetensors file, or the name of a published encoder.
        in_channels: Channels of an input image.

    Returns:
        The encoder and its description.

    Raises:
        SegaeError: timm has no such network, it is no convolutional one, its weights cannot be had, or the
            file holds another architecture.

    Example:
        >>> encoder, description = create_encoder("tf_efficientnet_lite0", "imagenet")
    """
    if init not in ("random", "imagenet"):
        return _create_from_file(architecture, encoder_file(init), in_channels)
    encoder = build_encoder(architecture, in_channels)
    source = "random initialisation"
    if init == "imagenet":
        source = load_imagenet(encoder, architecture, in_channels)
    mean, std, image_size = _normalisation(architecture, in_channels)
    return encoder, EncoderDescription(architecture, in_channels, mean, std, image_size, init, source)


def build_encoder(architecture: str, in_channels: int = 3) -> nn.Module:
    """Build the randomly initialised encoder module of `architecture`.

    Raises:
        SegaeError: timm has no such network, or it does not give maps of stride 4 to 32 at any image size.
    """
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.5)
        hint = f"Did you mean {', '.join(close)}?" if close else "Try tf_efficientnet_lite0 or resnet18."
        raise SegaeError(
            f'timm has no network called "{architecture}". {hint} '
            "All names: python -c \"import timm; print('\\n'.join(timm.list_models()))\"."
        )
    try:
        # None, never False: smp reads False as "give me the pretrained weights"
        encoder = smp.encoders.get_encoder(f"tu-{architecture}", weights=None, depth=_DEPTH, in_channels=in_channels)
        stride = _measure_stride(encoder, in_channels)
    except Exception as error:  # timm and smp raise a dozen kinds for networks without feature maps
        raise _not_convolutional(architecture, repr(error)) from error
    if stride != encoder.output_stride:
        raise _not_convolutional(architecture, f"its deepest map has stride {stride}")
    return encoder


def _not_convolutional(architecture: str, reason: str) -> SegaeError:
    return SegaeError(
        f'"{architecture}" cannot be an encoder here: a convolutional network with feature maps of stride 4, '
        f"8, 16 and 32 at any image size is wanted, and this one is not ({reason}). "
        "Choose another, such as tf_efficientnet_lite0, resnet18 or convnext_atto."
    )


@torch.no_grad()
def _measure_stride(encoder: nn.Module, in_channels: int) -> int:
    """Pixels of the input per pixel of the deepest map; fails for networks of one fixed image size."""
    side = 2 * 2**_DEPTH
    was_training = encoder.training
    deepest = encoder.eval()(torch.zeros(1, in_channels, side, side))[-1]
    encoder.train(was_training)
    return side // deepest.shape[-1]


def _normalisation(architecture: str, in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean, std and image size of timm's pretrained configuration, fitted to the number of channels."""
    config = timm.get_pretrained_cfg(architecture)
    return _fit(config.mean, in_channels), _fit(config.std, in_channels), int(config.input_size[-1])


def _fit(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value per channel, following how timm adapts the first convolution: grey sums, more repeat."""
    if channels == 1:
        return (sum(rgb) / len(rgb),)
    return tuple(rgb[index % len(rgb)] for index in range(channels))


def save_encoder(path: Path, encoder: nn.Module, description: EncoderDescription) -> None:
    """Write the encoder with its description in the header, and the same JSON beside it; all or nothing.

    Args:
        path: The .safetensors file; the JSON takes its name with the suffix .json.
        encoder: A module of `create_encoder`, on any device.
        description: What `load_encoder` will return with it.

    Raises:
        SegaeError: It cannot be written; the old files survive.
    """
    save_described(path, "encoder", encoder.state_dict(), description)


def load_encoder(path: Path | str) -> tuple[nn.Module, EncoderDescription]:
    """Rebuild an encoder from its file alone, every tensor checked.

    Args:
        path: The .safetensors file, or the name of a published encoder (data/weights/README.md lists them).

    Raises:
        SegaeError: No such file, a pickle, a damaged file, a file without description, an unknown
            architecture, or a tensor missing, unknown or of another shape.
    """
    path = encoder_file(path)
    state, description = load_described(path, "encoder", EncoderDescription)
    encoder = build_encoder(description.architecture, description.in_channels)
    load_strictly(encoder, state, str(path))
    return encoder, description


def _create_from_file(architecture: str, path: Path, in_channels: int) -> tuple[nn.Module, EncoderDescription]:
    if not path.is_file():
        raise SegaeError(
            f'"{path}" is no initialisation: it is neither random nor imagenet, and no such file exists. '
            "Give random, imagenet, the path of an encoder.safetensors that pretraining wrote, or the name of a "
            f"published encoder ({', '.join(published_encoders()) or 'there is none here'})."
        )
    encoder, description = load_encoder(path)
    for name, seen, wanted in (
        ("architecture", description.architecture, architecture),
        ("in_channels", description.in_channels, in_channels),
    ):
        if seen != wanted:
            raise SegaeError(
                f"{path} holds an encoder with {name} {seen}, but {wanted} was asked for. "
                f"Ask for {seen}, or pretrain one with {wanted}."
            )
    return encoder, description


def require_size(image_size: int, stride: int) -> None:
    """Check that an image side fits the encoder.

    Args:
        image_size: Side in pixels.
        stride: Pixels of the input per pixel of the deepest map.

    Raises:
        SegaeError: The side is smaller than the stride or not a multiple of it; names the next valid size.
    """
    if image_size >= stride and image_size % stride == 0:
        return
    above = max(stride, -(-image_size // stride) * stride)
    below = image_size // stride * stride
    choice = f"{below} or {above}" if below > 0 else str(above)
    raise SegaeError(
        f"image size {image_size} does not fit an encoder of stride {stride}: "
        f"each side must be a multiple of {stride}. Use {choice}."
    )


def output_stride(encoder: nn.Module) -> int:
    """Pixels of the input per pixel of the encoder's deepest feature map."""
    return int(encoder.output_stride)  # type: ignore[arg-type]
