"""Models that know themselves: encoders, autoencoders for pretraining, segmenters; and their files."""

from typing import Any

from segae.errors import CheckpointError
from segae.models.autoencoder import Autoencoder as Autoencoder
from segae.models.autoencoder import AutoencoderInfo as AutoencoderInfo
from segae.models.autoencoder import build_autoencoder as build_autoencoder
from segae.models.autoencoder import load_autoencoder as load_autoencoder
from segae.models.autoencoder import save_autoencoder as save_autoencoder
from segae.models.checkpoint import PathLike, read_header
from segae.models.checkpoint import decoder_file as decoder_file
from segae.models.checkpoint import find_weights as find_weights
from segae.models.checkpoint import fingerprint as fingerprint
from segae.models.checkpoint import load_decoder_into as load_decoder_into
from segae.models.checkpoint import published_name as published_name
from segae.models.checkpoint import published_weights as published_weights
from segae.models.checkpoint import save_decoder as save_decoder
from segae.models.classifier import Classifier as Classifier
from segae.models.classifier import create_classifier as create_classifier
from segae.models.classifier import load_classifier
from segae.models.classifier import save_classifier as save_classifier
from segae.models.decoders import SMP_DECODERS as SMP_DECODERS
from segae.models.decoders import list_decoders as list_decoders
from segae.models.decoders import require_decoder_size as require_decoder_size
from segae.models.encoder import STARTS as STARTS
from segae.models.encoder import Encoder as Encoder
from segae.models.encoder import EncoderInfo as EncoderInfo
from segae.models.encoder import Weights as Weights
from segae.models.encoder import adapt_channels as adapt_channels
from segae.models.encoder import create_encoder as create_encoder
from segae.models.encoder import evaluation_mode as evaluation_mode
from segae.models.encoder import list_encoders as list_encoders
from segae.models.encoder import load_encoder as load_encoder
from segae.models.encoder import require_image_size as require_image_size
from segae.models.encoder import save_encoder as save_encoder
from segae.models.encoder import set_gradient_checkpointing as set_gradient_checkpointing
from segae.models.segmenter import Segmenter as Segmenter
from segae.models.segmenter import SegmenterInfo as SegmenterInfo
from segae.models.segmenter import create_segmenter as create_segmenter
from segae.models.segmenter import load_segmenter as load_segmenter
from segae.models.segmenter import save_segmenter as save_segmenter

KINDS: dict[str, Any] = {"encoder": load_encoder, "segmenter": load_segmenter, "autoencoder": load_autoencoder}
KINDS |= {"classifier": load_classifier}
"""What loads each kind of file; applications add theirs."""


def load(path: PathLike) -> Any:
    """Load any model or detector from its file alone; the header says which kind it is.

    SegaeError: no such file or published name, a damaged file, or a decoder, which is no model by itself.
    """
    file = find_weights(path)
    kind = read_header(file).get("kind", "")
    if kind not in KINDS:
        raise CheckpointError(f"path must be a file of {', '.join(KINDS)}, got kind {kind!r} in {file}")
    return KINDS[kind](file)
