"""Segmenters: an encoder, a decoder of smp or a linear one, and logits per pixel; they know classes and image size."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from segae._io import check_range, require_choice, write_json
from segae._notebook import ShownInNotebooks, html_classes, html_picture, list_names
from segae.data.datasets import drawn_pets, find_images, make_palette
from segae.data.image_io import as_image, read_resized
from segae.errors import SegaeError
from segae.image_format import IGNORE_INDEX, ImageFormat, Size
from segae.models.checkpoint import Info, PathLike, load_decoder_into, load_model, save_described
from segae.models.decoders import build_smp, list_decoders, require_decoder_size
from segae.models.encoder import (
    Encoder,
    EncoderInfo,
    count_parameters,
    create_encoder,
    encoder_facts,
    require_image_size,
)
from segae.models.hub import CONFIG_FILE, MODEL_FILE, HubModel
from segae.models.inference import augment_network, make_network, predict_images

_PICTURE = 96  # pixels: side of what a notebook shows


@dataclass(frozen=True)
class SegmenterInfo(Info):
    """What prediction and evaluation must know about a segmenter; stored in the header of its file.

    Attributes:
        encoder: what its encoder is and began with.
        decoder: a name of `list_decoders`.
        classes: names, in the order of the class indices, 255 at most.
        palette: one RGB color in 0-255 per class.
        mask_values: per class, its value in the data set's mask files; all of them if it was merged.
        image_size: side in pixels that it was made for, or height and width.
        training: provenance: data set, seed, epochs, commit and the like.
        resize: how images of other sizes are fitted to it.
    """

    encoder: EncoderInfo
    decoder: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mask_values: tuple[int | tuple[int, ...], ...]
    image_size: Size
    training: dict[str, Any] = field(default_factory=dict, hash=False)
    resize: str = "squash"

    def __post_init__(self) -> None:
        require_choice("decoder", self.decoder, list_decoders())
        check_range("num_classes", len(self.classes), low=1, high=IGNORE_INDEX, integer=True)
        _ = self.format  # checks what belongs to it
        for name, values in (("palette", self.palette), ("mask_values", self.mask_values)):
            if len(values) != len(self.classes):
                raise SegaeError(f"{name} must have one entry per class ({len(self.classes)}), got {len(values)}")
        for value in (value for color in self.palette for value in color):
            check_range("palette", value, low=0, high=255, integer=True)

    @property
    def format(self) -> ImageFormat:
        """The images that it takes."""
        return replace(self.encoder.format, size=self.image_size, resize=self.resize)

    def build(self) -> "Segmenter":
        """Build the segmenter that this describes, with random weights."""
        return _build(self.encoder.build(), self)


class Segmenter(ShownInNotebooks, nn.Module, HubModel):
    """An encoder, a decoder and a head, made by `create_segmenter`; its tensors have the names that smp gives them."""

    _from_file = classmethod(lambda _, path: load_segmenter(path))

    def __init__(self, encoder: Encoder, decoder: nn.Module, segmentation_head: nn.Module, info: SegmenterInfo) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head, self.info = encoder, decoder, segmentation_head, info
        self.num_classes = len(info.classes)

    def _facts(self) -> dict[str, Any]:
        info = self.info
        facts = {"encoder": info.encoder.architecture, "decoder": info.decoder, "classes": list_names(info.classes)}
        facts |= {"parameters": count_parameters(self)} | encoder_facts(info.encoder) | {"image size": info.image_size}
        labels, place = info.training.get("labels"), info.training.get("dataset")
        return facts | ({"training": f"{labels} images of {place}"} if labels and place else {})

    def _pictures(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"classes": html_classes(self.info.classes, self.info.palette)}
        if "pet" in self.info.classes and self.info.encoder.in_channels == 3:
            image = read_resized(find_images([drawn_pets() / "images"])[0], _PICTURE)
            painted = np.asarray(self.info.palette, np.uint8)[self.predict(image)]
            shown["a drawn pet"] = html_picture(np.hstack([image, painted]))
        return shown

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (B, C, H, W) to logits (B, K, H, W); sides are multiples of the encoder's stride."""
        for side in images.shape[-2:]:
            require_image_size(side, self.encoder.output_stride)
        return self._decode(self.encoder(images), images.shape[-2:])

    def _decode(self, features: list[Tensor], size: Sequence[int]) -> Tensor:  # noqa: ARG002
        return self.segmentation_head(self.decoder(features))

    def predict(
        self,
        images: Any,
        *,
        return_probabilities: bool = False,
        tile: int | None = None,
        overlap: float = 0.25,
        tta: bool = False,
        batch_size: int = 8,
    ) -> Any:
        """Segment images, each at its own size, in evaluation mode on the device of the model.

        Args:
            images: an image file, a uint8 array (H, W, C), RGB, or a PIL image; or a sequence of them. A model of other
                images than 8-bit ones takes arrays of any numbers.
            return_probabilities: return softmax values, float32 (K, H, W), and not class indices, uint8 (H, W).
            tile: side in pixels of overlapping squares into which large images are cut; see `predict_images`.
            overlap: of neighboring tiles, as a share of their side.
            tta: average the probabilities of six views; see `augment_network`.
            batch_size: images, or tiles of an image, per forward pass.

        Returns:
            An array, or a list of them for a sequence.

        Example:
            >>> mask = load_segmenter("model.safetensors").predict("cat.jpg")  # doctest: +SKIP
        """
        check_range("batch_size", batch_size, low=1, integer=True)
        one = isinstance(images, str | Path) or (not isinstance(images, list | tuple) and np.ndim(images) <= 3)
        given, results, form = [images] if one else list(images), [], self.info.format
        network = augment_network(make_network(self)) if tta else make_network(self)
        how: dict[str, Any] = {"image_size": form, "tile": tile, "overlap": overlap}
        how |= {"batch_size": batch_size, "probabilities": torch.float32 if return_probabilities else None}
        for start in range(0, len(given), batch_size):
            read = [as_image(image, form) for image in given[start : start + batch_size]]
            for found in predict_images(network, read, **how):
                results.append(found.probabilities if return_probabilities else found.mask)
        return results[0] if one else results

    def _save_pretrained(self, save_directory: Path) -> None:
        save_segmenter(self, save_directory / MODEL_FILE)
        about, config = self.info.encoder, dict[str, Any]()
        if self.info.decoder != "linear":
            with torch.device("meta"):
                model: Any = build_smp(about.architecture, self.info.decoder, self.num_classes, about.in_channels)
            config = model.config | {"_model_class": type(model).__name__}
        write_json(save_directory / CONFIG_FILE, config | {"_mean": about.mean, "_std": about.std})


class LinearSegmenter(Segmenter):
    """A 1x1 convolution on the encoder's upsampled feature maps: a test of how linear the classes already are.

    As it commutes with bilinear upsampling, each map becomes class scores first, and only these few channels are
    upsampled and summed: the same function as on the concatenation of all upsampled maps, at a fraction of the memory.
    """

    def __init__(self, encoder: Encoder, info: SegmenterInfo) -> None:
        super().__init__(encoder, nn.Identity(), nn.Identity(), info)
        counts = [count for count in encoder.out_channels[1:] if count]
        self.heads = nn.ModuleList(
            nn.Conv2d(count, len(info.classes), 1, bias=place == len(counts))  # one bias is enough for a sum
            for place, count in enumerate(counts, start=1)
        )

    def _decode(self, features: list[Tensor], size: Sequence[int]) -> Tensor:
        maps = (one for one in features[1:] if one.shape[1])
        scores = (head(one) for head, one in zip(self.heads, maps, strict=True))
        first, *others = (functional.interpolate(score, size=list(size), mode="bilinear") for score in scores)
        return sum(others, start=first)


def create_segmenter(
    encoder: Encoder | PathLike,
    *,
    num_classes: int | Sequence[str],
    decoder: str = "unet",
    decoder_weights: PathLike | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
    mask_values: Sequence[int | tuple[int, ...]] | None = None,
    image_size: Size | None = None,
    resize: str | None = None,
) -> Segmenter:
    """Build a segmenter that starts from an encoder's weights, with a random or a pretrained decoder.

    Args:
        encoder: is copied; or an encoder's file, a published name, or a timm name for random weights.
        num_classes: how many, or their names.
        decoder: a name of `list_decoders`.
        decoder_weights: file of a decoder that was pretrained with this encoder, or the published name of both.
        palette: one RGB color in 0-255 per class; None for hues that are easy to distinguish.
        mask_values: per class, its value or values in mask files; None for the class indices.
        image_size: side in pixels, or height and width; None for the encoder's.
        resize: ``squash``, ``letterbox`` or ``crop``, see `ImageFormat`; None for the encoder's.

    Raises:
        SegaeError: the decoder is unknown, or does not work with this encoder or image size.

    Example:
        >>> model = create_segmenter("test_resnet", num_classes=["background", "pet"], image_size=64)
        >>> model.predict(np.zeros((48, 80, 3), np.uint8)).shape
        (48, 80)
    """
    if not isinstance(encoder, Encoder):
        is_network = timm.is_model(str(encoder)) and not Path(encoder).is_file()
        encoder = create_encoder(str(encoder)) if is_network else create_encoder(weights=encoder)
    if num_classes is None or isinstance(num_classes, int):
        check_range("num_classes", num_classes, low=1, high=IGNORE_INDEX, integer=True)
        num_classes = [f"class_{index}" for index in range(num_classes)]
    colors = make_palette(len(num_classes)) if palette is None else tuple(palette)
    values = tuple(range(len(num_classes)) if mask_values is None else mask_values)
    size = encoder.info.image_size if image_size is None else image_size
    fitted = encoder.info.resize if resize is None else resize
    info = SegmenterInfo(encoder.info, decoder, tuple(num_classes), colors, values, size, resize=fitted)
    require_decoder_size(decoder, size)
    model = _build(encoder, info)
    if decoder_weights is not None:
        load_decoder_into(decoder_weights, model)
    return model


def _build(encoder: Encoder, info: SegmenterInfo) -> Segmenter:
    if info.decoder == "linear":
        return LinearSegmenter(copy.deepcopy(encoder), info)
    about = encoder.info
    model: Any = build_smp(about.architecture, info.decoder, len(info.classes), about.in_channels)
    whole = copy.deepcopy(encoder).with_stride(model.encoder.output_stride)
    return Segmenter(whole, model.decoder, model.segmentation_head, info)


def save_segmenter(model: Segmenter, path: PathLike) -> Path:
    """Write a segmenter with its info as `segae.models.save_encoder` does."""
    return save_described(path, "segmenter", model.state_dict(), model.info)


def load_segmenter(path: PathLike) -> Segmenter:
    """Rebuild a segmenter from its file alone, every tensor checked; errors as in `segae.models.load_encoder`."""
    return load_model(path, "segmenter", SegmenterInfo)
