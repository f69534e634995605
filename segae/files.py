"""Writing files so that a crash or a full disk never costs the old one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
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
    write_together({path: write})


def write_together(writers: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
    """Write several files so that each is either the old one or the new one, never a part of it.

    All bytes reach the disk under temporary names in the target folders first; only then are the targets
    replaced. A full disk therefore costs nothing that was there before.

    Args:
        writers: for each file to make or replace, what fills it.

    Raises:
        SegaeError: a file could not be written; all of them are as they were before.
    """
    writers = {path.resolve() if path.is_symlink() else path: write for path, write in writers.items()}  # a link stays
    temporaries: dict[Path, Path] = {}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}.", delete=False) as file:
                temporaries[path] = Path(file.name)
                write(file)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            _give_default_permissions(temporaries[path])
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:
        names, folder = " and ".join(map(str, writers)), next(iter(writers)).parent
        raise SegaeError(
            f"could not write {names}: {error.strerror or error}. {_free_space(folder)} What was there before is "
            f"untouched. Free some space or choose another folder with --out, then run the same command again."
        ) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _give_default_permissions(path: Path) -> None:
    """Undo the owner-only mode of temporary files: what a run leaves behind is as readable as any output."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically; paths and other plain objects become strings."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB are free there."
    except OSError:
        return "The folder cannot be read."
