"""Images in the rows of parquet files, here or on the Hugging Face Hub; the only module that imports datasets.

The library finds the files, opens them and streams their rows. Which shard is read when is not left to it: its own
shuffling and sharing among workers would give an order that a saved position of ours says nothing about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from torch.utils.data import get_worker_info

from segae.data.failures import SharedFailures
from segae.errors import SegaeError

_HUB = "hf://"
_SETTINGS = ("split", "column", "config", "revision")
_FEW_FILES = 64  # up to here a file's row groups count as shards of their own, so that workers have enough of them
_AT_ONCE = 16  # rows that the library hands out together
_TYPED = "such as 'hf://owner/name?split=train&column=image', or a folder of parquet files"


@dataclass(frozen=True)
class TableShards:
    """Shards for ``segae.data.shards.ShardImages``: a file each, or a group of a file's rows where files are few.

    Attributes:
        names: of the shards; those of a data set on the Hub hold the revision that was found.
        rows: the library's stream of one column of undecoded images.
        column: its name.
        known: rows of all shards together, where that is known without reading them.
    """

    names: tuple[str, ...]
    rows: Any
    column: str
    known: int | None

    def count(self) -> int:
        """How many images there are.

        Raises:
            SegaeError: that is written nowhere, so that counting would mean reading all of them.
        """
        if self.known is None:
            raise SegaeError(
                f"{self.names[0]} and its {len(self.names) - 1} neighbour(s) do not say how many images they hold. Say "
                "how many an epoch has, for example --epoch-images 1000000."
            )
        return self.known

    def read(self, shard: int, start: int, failures: SharedFailures) -> Iterator[tuple[str, bytes | None]]:
        """Name and contents of each image of a shard from number ``start`` on; None for one that was put on the list.

        A shard that cannot be opened or read on is put on the list of failures and ends there.
        """
        if get_worker_info() is not None:
            import fsspec.asyn

            fsspec.asyn.reset_lock()  # taken over from the process that was forked, it might never open
        number = start
        try:
            part = self.rows.shard(len(self.names), shard).skip(start)
            # not iter(part): in a loader's worker that gives a share of the shard alone
            for batch in part.iter(batch_size=_AT_ONCE):
                for cell in batch[self.column]:
                    name = f"row-{number}"
                    yield name, _contents(cell, f"{self.names[shard]}/{name}", failures)
                    number += 1
        except MemoryError:
            raise
        except Exception as error:  # the library, pyarrow and the network raise nearly every type there is
            failures.add(self.names[shard], f"{type(error).__name__} after row {number}: {error}")


def is_table(place: str) -> bool:
    """Whether what stands in ``--data`` are rows of images: an address on the Hub, or parquet files."""
    if place.startswith(_HUB):
        return not place.endswith(".tar")
    path, _ = _parse(place)
    return path.endswith(".parquet") or bool(_parquet_files(path))


def open_table(place: str) -> TableShards:
    """Find the shards of a data set.

    Args:
        place: ``hf://owner/name``, a folder of parquet files or one such file; after a question mark follow, joined
            by ``&``: ``split`` (train), ``column`` (the one that holds images), ``config``, ``revision``.

    Raises:
        SegaeError: datasets is not installed, there is no such data set or split, or no such column of images.
    """
    library = _library()
    path, settings = _parse(place)
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown:
        raise SegaeError(f"{place} has the setting {unknown[0]!r}; known are {', '.join(_SETTINGS)}, {_TYPED}.")
    split = settings.get("split", "train")
    try:
        builder = _builder(library, path, settings)
        rows = builder.as_streaming_dataset(split=split)
        features = rows.features or dict.fromkeys(next(iter(rows)))
    except MemoryError:
        raise
    except Exception as error:  # as above; all of them say that there is no such thing to read
        raise SegaeError(
            f"{place} cannot be opened: {str(error).strip() or type(error).__name__}. Wanted an address and a split "
            f"that exist, {_TYPED}."
        ) from error
    column = _column(place, features, settings.get("column"), library)
    files = tuple(str(file) for file in (builder.config.data_files or {}).get(split, ()))
    rows = rows.select_columns([column]).cast_column(column, library.Image(decode=False))
    if rows.num_shards <= _FEW_FILES:
        rows = rows.reshard()
    names = files if rows.num_shards == len(files) else _numbered(place, files, rows.num_shards)
    splits = builder.info.splits or {}
    known = splits[split].num_examples if split in splits else _count(files)
    return TableShards(names, rows, column, known)


def _parse(place: str) -> tuple[str, dict[str, str]]:
    path, _, settings = place.partition("?")
    return path, dict(parse_qsl(settings, keep_blank_values=True))


def _parquet_files(path: str) -> list[Path]:
    """Of a folder, not searched any deeper than the Hub's own layout: a folder of pictures may be large."""
    folders = (Path(path), Path(path) / "data")
    return sorted(file for folder in folders if folder.is_dir() for file in folder.glob("*.parquet"))


def _builder(library: Any, path: str, settings: dict[str, str]) -> Any:
    where = {"name": settings.get("config"), "revision": settings.get("revision")}
    if path.startswith(_HUB):
        return library.load_dataset_builder(path.removeprefix(_HUB).strip("/"), **where)
    if path.endswith(".parquet"):
        if not Path(path).is_file():
            raise FileNotFoundError("there is no such file")
        return library.load_dataset_builder("parquet", data_files={settings.get("split", "train"): path})
    return library.load_dataset_builder(path, name=settings.get("config"))


def _column(place: str, features: Any, wanted: str | None, library: Any) -> str:
    """The column that was asked for, or the only one of images."""
    images = [name for name, kind in features.items() if isinstance(kind, library.Image) or _holds_bytes(kind)]
    if wanted is None and len(images) == 1:
        return images[0]
    may_be = images + [name for name, kind in features.items() if kind is None or _is_text(kind)]
    if wanted in may_be:
        return str(wanted)
    seen = "no column is named" if wanted is None else f"the column is {wanted!r}"
    raise SegaeError(
        f"{place}: {seen}, and the columns that may hold images are {', '.join(may_be) or 'none'} of "
        f"{', '.join(features)}. Name one: '{place.partition('?')[0]}?column={(may_be or ['image'])[0]}'."
    )


def _holds_bytes(kind: Any) -> bool:
    if isinstance(kind, dict):  # of files that were not written by the library
        return set(kind) == {"bytes", "path"}
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("string", "large_string")  # a path or a URL, perhaps


def _numbered(place: str, files: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Names of parts of files; the files' names are in all of them, because a position counts on the same ones."""
    first = files[0] if len(files) == 1 else f"{files[0]}...{files[-1]}" if files else place
    return tuple(f"{first} part {number + 1} of {count}" for number in range(count))


def _count(files: tuple[str, ...]) -> int | None:
    if not files or not all(file.endswith(".parquet") and Path(file).is_file() for file in files):
        return None
    from pyarrow import parquet

    return sum(parquet.read_metadata(file).num_rows for file in files)


def _contents(cell: Any, name: str, failures: SharedFailures) -> bytes | None:
    if cell is not None and cell["bytes"] is not None:
        return cell["bytes"]
    if cell is None or not cell["path"]:
        failures.add(name, "the row has no image")
        return None
    import fsspec

    try:
        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    except Exception as error:  # a file system of any kind, each with errors of its own
        failures.add(name, f"{cell['path']}: {type(error).__name__}: {error}")
        return None


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise SegaeError(
            "rows of images are read by the package datasets, which is not installed. Type: "
            "pip install 'segae[streaming]'"
        ) from error
    return datasets
