"""Models that know themselves: encoders, autoencoders for pretraining, segmenters; and their files."""

from typing import Any

from segae.errors import CheckpointError
from segae.models.autoencoder import Autoencoder, AutoencoderInfo, build_autoencoder, load_autoencoder, save_autoencoder
from segae.models.checkpoint import (
    PathLike,
    decoder_file,
    find_weights,
    fingerprint,
    load_decoder_into,
    published_name,
    published_weights,
    read_header,
    save_decoder,
)
from segae.models.classifier import Classifier, create_classifier, load_classifier, save_classifier
from segae.models.decoders import SMP_DECODERS, list_decoders, require_decoder_size
from segae.models.encoder import (
    Encoder,
    EncoderInfo,
    Weights,
    create_encoder,
    evaluation_mode,
    list_encoders,
    load_encoder,
    require_image_size,
    save_encoder,
    set_gradient_checkpointing,
)
from segae.models.segmenter import Segmenter, SegmenterInfo, create_segmenter, load_segmenter, save_segmenter

__all__ = [
    "KINDS", "SMP_DECODERS", "Autoencoder", "AutoencoderInfo", "Classifier", "Encoder", "EncoderInfo", "Segmenter",
    "SegmenterInfo", "Weights", "build_autoencoder", "create_classifier", "create_encoder", "create_segmenter",
    "decoder_file", "evaluation_mode", "find_weights", "fingerprint", "list_decoders", "list_encoders", "load",
    "load_autoencoder", "load_decoder_into", "load_encoder", "load_segmenter", "published_name", "published_weights",
    "require_decoder_size", "require_image_size", "save_autoencoder", "save_classifier", "save_decoder", "save_encoder",
    "save_segmenter", "set_gradient_checkpointing",
]  # fmt: skip

KINDS: dict[str, Any] = {"encoder": load_encoder, "segmenter": load_segmenter, "autoencoder": load_autoencoder}
KINDS |= {"classifier": load_classifier}
"""What loads each kind of file; applications add theirs."""


def load(path: PathLike) -> Any:
    """Load any model or detector from its file alone; the header says which kind it is.

    Raises:
        SegaeError: no such file or published name, a damaged file, or a decoder, which is no model by itself.
    """
    file = find_weights(path)
    kind = read_header(file).get("kind", "")
    if kind not in KINDS:
        raise CheckpointError(f"path must be a file of {', '.join(KINDS)}, got kind {kind!r} in {file}")
    return KINDS[kind](file)
