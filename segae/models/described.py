"""Weights with a description: a dataclass in the file's header and, for people to read, as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from segae.errors import SegaeError
from segae.models.weights import read_weights, write_weights

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Description = TypeVar("Description", bound="DataclassInstance")

_WRITTEN = {"encoder": "encoder.safetensors that segae pretrain", "segmenter": "model.safetensors that segae segment"}


def save_described(path: Path, kind: str, state: Mapping[str, Tensor], description: DataclassInstance) -> None:
    """Write `state` with its description; the JSON takes the file's name with the suffix .json.

    Args:
        path: The .safetensors file.
        kind: `encoder` or `segmenter`: keeps one from being read as the other.
        state: Tensors by name.
        description: A dataclass of texts, numbers, tuples of them and dicts of them.

    Raises:
        SegaeError: The files cannot be written; the old ones survive.
    """
    path = Path(path)
    text = json.dumps(asdict(description), indent=2)
    write_weights(
        path,
        state,
        {"kind": kind, "description": text},
        beside={path.with_suffix(".json"): (text + "\n").encode()},
    )


def load_described(path: Path, kind: str, description_type: type[Description]) -> tuple[dict[str, Tensor], Description]:
    """Read what `save_described` wrote.

    Raises:
        SegaeError: The file cannot be read, is of another kind, or its description is not of that type.
    """
    path = Path(path)
    state, metadata = read_weights(path)
    seen = metadata.get("kind")
    if seen != kind:
        what = f"its kind is {seen}" if seen else "its header has no description"
        wanted = _WRITTEN.get(kind, f"{kind}.safetensors that a run")
        raise SegaeError(
            f"{path} is not a segae {kind} file: {what}. Give the {wanted} wrote, "
            f"or write one with save_{kind} of segae.models.{kind}."
        )
    try:
        values = json.loads(metadata["description"])
        known = {item.name for item in fields(description_type)}
        if set(values) != known:
            raise ValueError(f"fields missing or unknown: {', '.join(sorted(set(values) ^ known))}")
        return state, description_type(**{name: _as_tuples(value) for name, value in values.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise SegaeError(
            f"the description in the header of {path} cannot be read ({error}). "
            "The file was changed: use it as it was saved, or run the command that wrote it again."
        ) from error


def _as_tuples(value: Any) -> Any:
    """JSON knows lists only; the descriptions are frozen and hold tuples."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
