"""Pretraining images streamed from tar shards or parquet files, for data sets that outgrow a disk.

The webdataset and datasets libraries open, read and shuffle the shards. The order depends on (seed, epoch) and on the
number of ranks and workers, so a run resumes at an epoch.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module  # of the extra, when it is needed: datasets alone takes a second
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from segae._io import check_range, require_package
from segae.data.image_io import SkippedFiles, UnreadableImage, read_resized
from segae.data.torch_datasets import SeededByEpoch, Transform
from segae.errors import DataError

_SCHEMES = ("https", "hf")
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_SHUFFLE_BUFFER = 1000  # undecoded images that each worker holds and draws from
_FEW_FILES = 64  # up to here the row groups of parquet files count as shards, so that workers have enough of them
_IMAGE_FEATURE = re.compile(r"Image\(|Value\(.*binary|\{'(bytes|path)'")
_TABLE_SETTINGS = ("split", "column", "config", "revision")


class _Shards(NamedTuple):
    """Names of shards, the number of their images if it is known, and what gives (name, contents) of each of one's."""

    names: tuple[str, ...]
    images: int | None
    read: Callable[[int], Iterator[tuple[str, bytes]]]


class StreamDataset(SeededByEpoch, IterableDataset[Tensor]):
    """Images for pretraining from shards, made by `open_stream`: float32 tensors (3, S, S), normalized.

    If one pass through the shards gives fewer images than an epoch has, the next pass has another order. `sources` are
    the names of the shards, of which each worker of each rank needs one; `count` is the number of images in all of
    them, None where nobody had to know. `make_loaders` sets `batch_size`: an epoch has whole batches of each rank only.
    """

    decodes = True

    def __init__(
        self, shards: _Shards, size: int, transform: Transform, seed: int, epoch_images: int, rank: int, world_size: int
    ) -> None:
        self.sources, self.shard_count, self.count = shards.names, len(shards.names), shards.images
        super().__init__(transform, seed)
        self.batch_size = 1
        self._shards, self._size = shards, size
        self._epoch_images, self._rank, self._world_size = epoch_images, rank, world_size

    def __len__(self) -> int:
        """Return the number of images that this rank gets in an epoch."""
        return self._epoch_images // self._world_size // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        info, epoch = get_worker_info(), int(self._epoch)
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        stream, streams = self._rank * workers + worker, self._world_size * workers
        batches = len(self) // self.batch_size
        quota = (batches // workers + (worker < batches % workers)) * self.batch_size
        given, passes, empty = 0, 0, 0
        while given < quota:
            before = given
            for image in islice(self._images(f"{self._seed}-{epoch}-{passes}", stream, streams), quota - given):
                yield self._transformed(epoch, stream << 40 | given, image=image)["image"]
                given += 1
            # a stream may have been dealt nothing but damaged shards; the next pass deals again
            passes, empty = passes + 1, empty + 1 if given == before else 0
            if empty > (0 if streams == 1 else 20):
                raise self._no_images()

    def _images(self, order: str, stream: int, streams: int) -> Iterator[np.ndarray]:
        """Decode the images of one of several disjoint streams, uint8 (S, S, 3), in the order of a seed."""
        shards = list(range(self.shard_count))
        Random(order).shuffle(shards)
        contents = chain.from_iterable(map(self._contents, shards[stream::streams]))
        shuffle = import_module("webdataset").shuffle(_SHUFFLE_BUFFER, initial=_SHUFFLE_BUFFER, rng=Random(order))
        for name, data in shuffle(contents):
            try:
                yield read_resized(Path(name), self._size, data=data)
            except UnreadableImage as error:
                self._failures.add(name, error.reason)

    def _contents(self, shard: int) -> Iterator[tuple[str, bytes]]:
        """Read a shard; a damaged one ends where the damage is."""
        try:
            yield from self._shards.read(shard)
        except MemoryError:
            raise
        except Exception as error:  # tarfile, pyarrow and the network raise nearly every type there is
            reason = getattr(error, "strerror", None) or (error.args[0] if error.args else "")
            self._failures.add(self.sources[shard], f"{type(error).__name__}: {reason}")

    def _no_images(self) -> DataError:
        return DataError(f"no image can be read from {self.sources[0]} and the other shards: {self._failures}")


def is_stream(sources: str | Path | Sequence[str | Path]) -> bool:
    """Whether data are to be opened by `open_stream`: tar files, parquet files, or anything with a scheme."""
    return any(source.endswith(".tar") or _scheme(source) or _is_table(source) for source in _as_typed(sources))


def open_stream(
    sources: str | Path | Sequence[str | Path],
    *,
    size: int,
    transform: Transform,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    epoch_images: int | None = None,
    skipped: SkippedFiles | None = None,
) -> StreamDataset:
    """Open tar shards or parquet files as a dataset of images for pretraining. Keep test images out of them.

    Sources are tar files, patterns such as `data/*.tar` or `train-{0000..0146}.tar`, and their https:// or hf://
    addresses; or one parquet file, folder of parquet files or `hf://owner/name`, after which may follow
    `?split=train&column=image&config=...&revision=...`.

    Each image is resized to `size` pixels on both sides before the transform. The seed decides order and augmentation.
    An epoch has `epoch_images`, all ranks together, each from shards of its own; None: as many as the shards hold.
    `skipped` takes local tar files that cannot be counted; what is unreadable later is in the dataset's `failures`.
    SegaeError if a source has another scheme or does not exist, a library is missing, or a number of images is needed.
    """
    if epoch_images is not None:
        check_range("epoch_images", epoch_images, low=world_size, integer=True)
    asked = _as_typed(sources)
    for source in asked:
        _require_allowed(source)
    tables = [source for source in asked if not source.endswith(".tar")]
    if not asked or (tables and len(asked) > 1):
        raise DataError(f"sources must be tar files only or one set of parquet files, got {', '.join(asked) or 'none'}")
    require_package("webdataset", "streaming")  # shuffles tables, too
    shards = _open_table(asked[0]) if tables else _open_tars(asked, skipped, counted=epoch_images is None)
    if len(shards.names) < world_size:
        raise DataError(f"world_size must be <= the number of shards, {len(shards.names)}, got {world_size}")
    images = shards.images if epoch_images is None else epoch_images
    if images is None:
        raise DataError(f"epoch_images must be given for {asked[0]}: how many images it holds is not known")
    return StreamDataset(shards, size, transform, seed, images, rank, world_size)


def sample_stream(stream: StreamDataset, count: int) -> np.ndarray:
    """Read up to `count` clean images uint8 (n, S, S, 3), for statistics and pictures: the same ones on every rank."""
    images = list(islice(stream._images(f"{stream._seed}-sample", 0, 1), count))
    if not images:
        raise stream._no_images()
    return np.stack(images)


def _read_tar(names: Sequence[str], shard: int) -> Iterator[tuple[str, bytes]]:
    name, tar = names[shard], import_module("webdataset").tariterators
    # a local path is made absolute, so that webdataset can take nothing in it for a scheme
    opened = tar.url_opener([{"url": name if _scheme(name) else str(Path(name).absolute())}])
    # single files: webdataset's grouping takes cat.0.jpg and cat.1.jpg for parts of one sample
    for member in tar.tar_file_expander(opened, select_files=_is_image, eof_value=None):
        yield f"{name}/{member['fname']}", member["data"]


def _open_tars(sources: Sequence[str], skipped: SkippedFiles | None, *, counted: bool) -> _Shards:
    """Find tar files by name, pattern or braces, and count the images of local ones from their headers."""
    expand = import_module("braceexpand").braceexpand
    names: dict[str, None] = {}
    for source in sources:
        for pattern in [source] if os.path.isfile(source) else islice(expand(source), 1_000_000):  # noqa: PTH113
            _require_allowed(pattern)
            found = [pattern] if _scheme(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))  # noqa: PTH207
            if not found:
                raise DataError(f"sources must be files that exist, got {pattern}")
            names |= dict.fromkeys(found)
    if not counted or any(map(_scheme, names)):
        return _Shards(tuple(names), None, partial(_read_tar, tuple(names)))
    total = 0
    for name in list(names):
        try:
            with tarfile.open(name) as archive:
                total += sum(member.isreg() and _is_image(member.name) for member in archive)
        except (OSError, tarfile.TarError) as error:
            if skipped is None:
                raise DataError(f"{name} cannot be read as a tar file: {error}. Replace the file.") from error
            skipped.add(Path(name), f"no readable tar file: {error}")
            del names[name]
    return _Shards(tuple(names), total, partial(_read_tar, tuple(names)))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS) and not Path(name).name.startswith(".")


def _read_rows(names: Sequence[str], rows: Any, column: str, shard: int) -> Iterator[tuple[str, bytes]]:
    if get_worker_info() is not None:
        import_module("fsspec.asyn").reset_lock()  # taken over when this process was forked, it might never open
    # not iter(part): in a loader's worker the library would give a share of the shard alone
    batches = rows.shard(len(names), shard).iter(batch_size=16)
    for row, cell in enumerate(chain.from_iterable(batch[column] for batch in batches)):
        # where the bytes are missing, a path may stand in their place, which could name any file
        yield f"{names[shard]}/row-{row}", (cell and cell["bytes"]) or b""


def _open_table(source: str) -> _Shards:
    """Find the shards and the column of images of parquet files or a data set on the Hub."""
    require_package("datasets", "streaming")
    library = import_module("datasets")
    path, _, query = source.partition("?")
    settings = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(settings) - set(_TABLE_SETTINGS)):
        raise DataError(f"the settings of {path} must be among {', '.join(_TABLE_SETTINGS)}, got {unknown[0]!r}")
    split = settings.get("split", "train")
    if not _is_table(path):
        raise DataError(f"sources must be tar files, a parquet file or a folder of them, got {path}")
    try:
        if path.endswith(".parquet"):
            builder = library.load_dataset_builder("parquet", data_files={split: path})
        else:
            asked = {"name": settings.get("config"), "revision": settings.get("revision")}
            builder = library.load_dataset_builder(path.removeprefix("hf://"), **asked)
        rows = builder.as_streaming_dataset(split=split)
        features = rows.features or dict.fromkeys(next(iter(rows)))
    except Exception as error:  # of any type; all say that there is no such thing to read
        raise DataError(f"{source} cannot be opened: {str(error).strip() or type(error).__name__}") from error
    images = [name for name, kind in features.items() if kind is None or _IMAGE_FEATURE.match(str(kind))]
    column = settings.get("column")
    chosen = [name for name in images if column in (None, name)]
    if len(chosen) != 1:
        raise DataError(f"column must be one of {', '.join(images) or 'none'}, got {column}: {path}?column=...")
    rows = rows.select_columns(chosen).cast_column(chosen[0], library.Image(decode=False))
    if rows.num_shards <= _FEW_FILES:
        rows = rows.reshard()
    names = tuple(f"{path} part {part + 1} of {rows.num_shards}" for part in range(rows.num_shards))
    files = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    count = None
    if split in (builder.info.splits or ()):
        count = builder.info.splits[split].num_examples
    elif files and all(file.endswith(".parquet") and Path(file).is_file() for file in files):
        count = sum(import_module("pyarrow.parquet").read_metadata(file).num_rows for file in files)
    return _Shards(names, count, partial(_read_rows, names, rows, chosen[0]))


def _as_typed(sources: str | Path | Sequence[str | Path]) -> list[str]:
    """Return sources as texts; an address that has been a Path has one slash where two belong."""
    listed = [sources] if isinstance(sources, str | Path) else sources
    return [re.sub(r"^(https|hf):/+", r"\1://", str(source)) for source in listed]


def _scheme(source: str) -> str:
    """Return `pipe` of pipe:command and "" of a path; a single letter is a drive."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", source)
    return found[1].lower() if found else ""


def _require_allowed(source: str) -> None:
    """Refuse all but paths and two schemes: webdataset hands others to a shell, or to any program."""
    scheme = _scheme(source)
    if scheme not in ("", *_SCHEMES) or (scheme and "::" in source):
        raise DataError(f"sources must be local paths, https:// or hf:// addresses, got {scheme}: in {source!r}")


def _is_table(source: str) -> bool:
    """Whether a source is a parquet file, a folder of them (as deep as the Hub's own layout) or a data set there."""
    if _scheme(source) == "hf":
        return not source.endswith(".tar")
    path = source.partition("?")[0]
    folders = glob.escape(path), glob.escape(os.path.join(path, "data"))  # noqa: PTH118 - copes with any text
    return path.endswith(".parquet") or any(glob.glob(f"{folder}/*.parquet") for folder in folders)  # noqa: PTH207
