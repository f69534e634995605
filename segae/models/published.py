"""Encoders that come with segae, by name: files NAME.safetensors of data/weights, each with its provenance as JSON.

The decoder that was pretrained with an encoder, if it is published too, is NAME-decoder.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

_FOLDERS = (
    Path(__file__).resolve().parents[2] / "data" / "weights",  # a clone of the repository
    Path(sys.prefix) / "share" / "segae" / "weights",  # an installed wheel
)


DECODER_MARK = "-decoder"


def published_encoders() -> dict[str, Path]:
    """The file of each published encoder, by its name."""
    files = (file for folder in reversed(_FOLDERS) for file in sorted(folder.glob("*.safetensors")))
    return {file.stem: file for file in files if not file.stem.endswith(DECODER_MARK)}


def encoder_file(name: str | Path) -> Path:
    """The file that a name or a path means: a file of that path comes first, then a published encoder.

    What is neither stays as it is, for whoever opens it to say so.
    """
    path = Path(name)
    return path if path.exists() else published_encoders().get(str(name), path)
