"""Writing files so that a crash or a full disk never costs the old one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from segae.errors import SegaeError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` fill a new file beside ``path``, then put it in place of ``path`` in one step.

    Args:
        path: the file to make or replace; its folder is made if needed.
        write: called with the open binary file; writes the whole content.

    Raises:
        SegaeError: the content could not be written (disk full, no permission). ``path`` is as it was before.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            write(file)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # temporary files are private; what a run leaves behind is not
        temporary.replace(path)
    except OSError as error:
        raise SegaeError(
            f"could not write {path}: {error.strerror or error}. {_free_space(path.parent)} "
            f"{'The file that was there before is untouched. ' if path.exists() else ''}"
            f"Free some space or choose another folder with --out, then run the same command again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically; paths and other plain objects become strings."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB are free there."
    except OSError:
        return "The folder cannot be read."
