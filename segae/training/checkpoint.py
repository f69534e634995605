"""What resumes an interrupted training. What later stages use is a safetensors file, written elsewhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segae.errors import SegaeError
from segae.files import write_atomically

_FORMAT = 1


def save_resume_file(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values so that they can be read back without running any code, atomically.

    Raises:
        SegaeError: the disk is full or the folder cannot be written; the old file survives.
    """
    write_atomically(path, lambda file: torch.save({"format": _FORMAT, **_plain(content)}, file))


def _plain(value: Any) -> Any:
    """The same nested value with NumPy scalars (fastai's schedules leave them) as Python numbers."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part) for part in value)
    return value.item() if isinstance(value, np.generic) else value


def load_resume_file(path: Path) -> dict[str, Any]:
    """Read what ``save_resume_file`` wrote, tensors on the CPU; never unpickles objects.

    Raises:
        SegaeError: no such file, damaged, a pickle of code, or another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SegaeError(f"there is no {path} to resume from; run the command without --resume.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split(".")[0] if str(error) else type(error).__name__
        raise SegaeError(
            f"{path} cannot be resumed from: it is damaged or holds more than tensors and plain values ({reason}). "
            f"Start again with --overwrite, or choose another --out."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        seen = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise SegaeError(
            f"{path} has resume format {seen!r}, wanted {_FORMAT}: another version of segae wrote it. "
            f"Start again with --overwrite."
        )
    return content
