"""A pretrained decoder on its way into a segmenter: whole-model transfer takes it along with the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from segae.errors import SegaeError
from segae.models.described import load_described, save_described
from segae.models.published import DECODER_MARK, encoder_file, published_encoders
from segae.models.weights import fingerprint, load_strictly

DECODER_FILE = "decoder.safetensors"
"""Its name in a run folder, beside encoder.safetensors."""


def decoder_file(encoder: str | Path) -> Path:
    """Where the decoder that was pretrained with an encoder is: beside its file, or under its published name."""
    file = encoder_file(encoder)
    if file in published_encoders().values():
        return file.with_name(f"{file.stem}{DECODER_MARK}.safetensors")
    return file.with_name(DECODER_FILE)


@dataclass(frozen=True)
class DecoderDescription:
    """What must agree before a decoder is taken over; stored in the header of its file.

    Attributes:
        encoder: timm's name of the encoder that it was trained with.
        decoder: its name in `segae.models.segmenter.DECODERS`.
        objective: what it was trained for.
        encoder_fingerprint: `segae.models.weights.fingerprint` of the encoder file that it belongs to.
    """

    encoder: str
    decoder: str
    objective: str
    encoder_fingerprint: str


def save_decoder(path: Path, decoder: nn.Module, description: DecoderDescription) -> None:
    """Write a decoder, without its head, with its description in the header and the same JSON beside it.

    Raises:
        SegaeError: It cannot be written; the old files survive.
    """
    save_described(path, "decoder", decoder.state_dict(), description)


def load_decoder_into(path: Path, segmenter: nn.Module, architecture: str, decoder: str) -> DecoderDescription:
    """Load every tensor of a pretrained decoder into a segmenter; its head and encoder stay as they are.

    Args:
        path: What `save_decoder` wrote.
        segmenter: From `segae.models.segmenter.create_segmenter` with the encoder that was pretrained together with
            this decoder; changed in place.
        architecture: timm's name of the segmenter's encoder.
        decoder: The name of the segmenter's decoder.

    Raises:
        SegaeError: No such file, or it holds another decoder, or one that was trained with another encoder.
    """
    if not path.is_file():
        raise SegaeError(
            f"there is no pretrained decoder {path}. Pretrain one that segments too, for example "
            f"segae pretrain --decoder unet, or take the encoder alone: --transfer encoder."
        )
    state, description = load_described(path, "decoder", DecoderDescription)
    for name, seen, wanted in (
        ("encoder", description.encoder, architecture),
        ("decoder", description.decoder, decoder),
    ):
        if seen != wanted:
            raise SegaeError(
                f"{path} was pretrained with {name} {seen}, but the segmenter has {wanted}. "
                f"Segment with --{name} {seen}, or take the encoder alone: --transfer encoder."
            )
    if fingerprint(segmenter.encoder.state_dict()) != description.encoder_fingerprint:  # type: ignore[union-attr]
        raise SegaeError(
            f"{path} was not trained together with this encoder: the two files are of different runs. Pretrain again, "
            "or take the encoder alone: --transfer encoder."
        )
    load_strictly(segmenter.decoder, state, str(path))  # type: ignore[arg-type]
    return description
