"""Find, count and read tar shards; the only module that imports webdataset."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from segae.data.failures import SharedFailures
from segae.errors import SegaeError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class TarShards:
    """Tar files as ``segae.data.shards.ShardImages`` reads them; ``names`` are their paths and URLs."""

    names: tuple[str, ...]

    def count(self) -> int:
        """How many images there are, as ``count_images``."""
        return count_images(self.names)

    def read(self, shard: int, start: int, failures: SharedFailures) -> Iterator[tuple[str, bytes | None]]:
        """Name and contents of each image of a shard from number ``start`` on, as ``read_shard``."""
        return islice(read_shard(self.names[shard], failures), start, None)


def find_shards(shards: str | Sequence[str]) -> tuple[str, ...]:
    """Expand what the user typed to a list of shards.

    Args:
        shards: one or more of: a tar file, a folder of them, a pattern such as `data/*.tar`, a URL that webdataset can
            open (http:, s3:, gs:, hf:, pipe: and others); all with braces such as `train-{0000..0146}.tar`.

    Returns:
        Paths and URLs, each once, in the order given.

    Raises:
        SegaeError: webdataset is not installed, or a local shard does not exist.
    """
    expand = _library().shardlists.expand_urls
    asked = [shards] if isinstance(shards, str) else [str(shard) for shard in shards]
    found: dict[str, None] = {}
    for pattern in (expanded for shard in asked for expanded in expand(shard)):
        if _is_remote(pattern):
            found[pattern] = None
            continue
        path = re.sub("^file:(//)?", "", pattern)
        matches = sorted(glob.glob(f"{glob.escape(path)}/*.tar" if Path(path).is_dir() else path))  # noqa: PTH207
        if not matches:
            raise SegaeError(
                f"There is no shard {path}. Wanted tar files, a folder of them, or URLs, with braces or * if there are "
                f"several, for example --shards 'data/train-{{0000..0146}}.tar'."
            )
        found |= dict.fromkeys(matches)
    if not found:
        raise SegaeError("No shard was given. Wanted tar files or URLs, for example --shards 'data/*.tar'.")
    return tuple(found)


def count_images(shards: Iterable[str]) -> int:
    """Count the images in local shards from their headers, without reading a picture.

    Raises:
        SegaeError: a shard is remote, so that counting would mean downloading it, or cannot be read.
    """
    total = 0
    for shard in shards:
        if _is_remote(shard):
            raise SegaeError(
                f"{shard} is not on this machine, and its images cannot be counted without downloading it. Say how "
                "many images an epoch has, for example --epoch-images 1000000."
            )
        try:
            with tarfile.open(shard) as archive:
                total += sum(member.isreg() and _is_image(member.name) for member in archive)
        except (OSError, tarfile.TarError) as error:
            raise SegaeError(
                f"The shard {shard} cannot be read: {error}. Wanted a tar file; make it anew or leave it out."
            ) from error
    return total


def read_shard(shard: str, failures: SharedFailures) -> Iterator[tuple[str, bytes]]:
    """Give name and contents of each image in a shard, in order, reading it once from beginning to end.

    A shard that cannot be opened, or breaks off within a file, is put on the list of failures and ends there. One that
    is cut off between two files, or has a damaged header, ends there too, but without a word: tarfile takes it for the
    end of the archive.
    """

    def note(error: Exception) -> bool:
        failures.add(shard, f"{type(error).__name__}: {error.args[0] if error.args else ''}")
        return True

    tar = _library().tariterators
    opened = tar.url_opener([{"url": shard}], handler=note)
    for member in tar.tar_file_expander(opened, handler=note, select_files=_is_image, eof_value=None):
        yield member["fname"], member["data"]


def _is_remote(shard: str) -> bool:
    return not shard.startswith("file:") and (shard.startswith("pipe:") or "://" in shard)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS) and not Path(name).name.startswith(".")


def _library() -> Any:
    try:
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError as error:
        raise SegaeError(
            "tar shards are read by the package webdataset, which is not installed. Type: "
            "pip install 'segae[streaming]'"
        ) from error
    return webdataset
