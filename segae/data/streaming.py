"""Images, or images with masks, streamed from tar shards or parquet files, for data sets that outgrow a disk.

The webdataset and datasets libraries open, read and shuffle the shards. The order depends on (seed, epoch) and on the
number of ranks and workers, so a run resumes at an epoch.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module  # of the extra, when it is needed: datasets alone takes a second
from itertools import chain, groupby, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from segae._io import check_range, require_package
from segae.data.file_lists import Values
from segae.data.huggingface import choose_columns
from segae.data.image_io import SkippedFiles, UnreadableImage, read_mask, read_pair, read_resized
from segae.data.torch_datasets import SeededByEpoch, Transform
from segae.errors import DataError
from segae.image_format import ImageFormat, Size

_SCHEMES = ("https", "hf")
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_SHUFFLE_BUFFER = 1000  # undecoded images that each worker holds and draws from
_FEW_FILES = 64  # up to here the row groups of parquet files count as shards, so that workers have enough of them
_TABLE_SETTINGS = ("split", "column", "mask", "config", "revision")
_MASK_ENDS = (".mask", "_mask", ".seg", "_seg", ".label", "_label")  # of names in tar files, before the extension


class _Shards(NamedTuple):
    """Names of shards, the number of their images if it is known, and what gives those of one.

    Of each image that is its name and its contents, and the contents of its mask where there are masks.
    """

    names: tuple[str, ...]
    images: int | None
    read: Callable[[int], Iterator[tuple[str, *tuple[bytes, ...]]]]


class StreamDataset(SeededByEpoch, IterableDataset[Any]):
    """Images from shards, made by `open_stream`: float32 tensors (3, S, S), normalized; as pairs with masks if labeled.

    If one pass through the shards gives fewer images than an epoch has, the next pass has another order. `sources` are
    the names of the shards, of which each worker of each rank needs one; `count` is the number of images in all of
    them, None where nobody had to know. `make_loaders` sets `batch_size`: an epoch has whole batches of each rank only.
    """

    decodes = True

    def __init__(
        self, shards: _Shards, size: Size | ImageFormat, transform: Transform, seed: int, epoch_images: int, rank: int,
        world_size: int, coding: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.sources, self.shard_count, self.count = shards.names, len(shards.names), shards.images
        super().__init__(transform, seed)
        self.batch_size = 1
        self._shards, self._size, self._coding = shards, size, coding
        self._epoch_images, self._rank, self._world_size = epoch_images, rank, world_size

    def __len__(self) -> int:
        """Return the number of images that this rank gets in an epoch."""
        return self._epoch_images // self._world_size // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[Any]:
        info, epoch = get_worker_info(), int(self._epoch)
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        stream, streams = self._rank * workers + worker, self._world_size * workers
        batches = len(self) // self.batch_size
        quota = (batches // workers + (worker < batches % workers)) * self.batch_size
        given, passes, empty = 0, 0, 0
        while given < quota:
            before = given
            for arrays in islice(self._images(f"{self._seed}-{epoch}-{passes}", stream, streams), quota - given):
                result = self._transformed(epoch, stream << 40 | given, **arrays)
                yield (result["image"], result["mask"].long()) if "mask" in result else result["image"]
                given += 1
            # a stream may have been dealt nothing but damaged shards; the next pass deals again
            passes, empty = passes + 1, empty + 1 if given == before else 0
            if empty > (0 if streams == 1 else 20):
                raise self._no_images()

    def _images(self, order: str, stream: int, streams: int) -> Iterator[dict[str, np.ndarray]]:
        """Decode ``image`` uint8 (S, S, 3) and ``mask`` uint8 (S, S) of one of several disjoint streams, shuffled."""
        shards = list(range(self.shard_count))
        Random(order).shuffle(shards)
        contents = chain.from_iterable(map(self._contents, shards[stream::streams]))
        shuffle = import_module("webdataset").shuffle(_SHUFFLE_BUFFER, initial=_SHUFFLE_BUFFER, rng=Random(order))
        for name, *data in shuffle(contents):
            try:
                yield self._decode(Path(name), data)
            except UnreadableImage as error:
                self._failures.add(name, error.reason)

    def _decode(self, path: Path, data: Sequence[bytes]) -> dict[str, np.ndarray]:
        if self._coding is None:
            return {"image": read_resized(path, self._size, data=data[0])}
        if not data[1]:
            raise UnreadableImage(path, "it has no mask")
        mask = path.with_name(f"the mask of {path.name}")
        image, indices = read_pair(path, mask, self._size, reduced=True, data=data, **self._coding)
        return {"image": image, "mask": indices}

    def _contents(self, shard: int) -> Iterator[Any]:
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
    size: Size | ImageFormat,
    transform: Transform,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    epoch_images: int | None = None,
    skipped: SkippedFiles | None = None,
    mask_values: Values | None = None,
    ignore_values: Sequence[int] = (),
) -> StreamDataset:
    """Open tar shards or parquet files as a dataset of images, with masks if ``mask_values`` are given.

    Keep test images out of them.

    Sources are tar files, patterns such as `data/*.tar` or `train-{0000..0146}.tar`, and their https:// or hf://
    addresses; or one parquet file, folder of parquet files or `hf://owner/name`, after which may follow
    `?split=train&column=image&mask=annotation&config=...&revision=...`.

    In a tar file an image and its mask stand beside each other and are called such as a.jpg and a.mask.png, a_mask.png
    or a.png. ``mask_values`` and ``ignore_values`` are as in `to_class_indices`.

    Each image is resized to `size`, a side or a format, before the transform. The seed decides order and augmentation.
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
    labeled = mask_values is not None
    if tables:
        shards = _open_table(asked[0], labeled=labeled)
    else:
        shards = _open_tars(asked, skipped, counted=epoch_images is None, labeled=labeled)
    if len(shards.names) < world_size:
        raise DataError(f"world_size must be <= the number of shards, {len(shards.names)}, got {world_size}")
    images = shards.images if epoch_images is None else epoch_images
    if images is None:
        raise DataError(f"epoch_images must be given for {asked[0]}: how many images it holds is not known")
    coding = {"mask_values": mask_values, "ignore_values": ignore_values} if labeled else None
    return StreamDataset(shards, size, transform, seed, images, rank, world_size, coding)


def sample_stream(stream: StreamDataset, count: int) -> np.ndarray:
    """Read up to `count` clean images uint8 (n, S, S, 3), for statistics and pictures: the same ones on every rank."""
    return _sample(stream, count)["image"]


def sample_pairs(stream: StreamDataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Read up to `count` clean images of a labeled stream with class indices uint8 (n, S, S), as `sample_stream`."""
    found = _sample(stream, count)
    return found["image"], found["mask"]


def _sample(stream: StreamDataset, count: int) -> dict[str, np.ndarray]:
    rows = list(islice(stream._images(f"{stream._seed}-sample", 0, 1), count))
    if not rows:
        raise stream._no_images()
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def sample_values(sources: str | Path, count: int) -> tuple[int, ...]:
    """Find the values in the first ``count`` masks of a labeled stream; `open_stream` describes the sources."""
    how: dict[str, Any] = {"size": 8, "transform": None, "seed": 0, "epoch_images": 1, "mask_values": (0,)}
    stream, found = open_stream(sources, **how), set[int]()
    rows = chain.from_iterable(map(stream._contents, range(stream.shard_count)))
    for name, *data in islice(rows, count):
        if len(data) == 2 and data[1]:
            with suppress(UnreadableImage):  # which the training lists
                found |= {*np.unique(read_mask(Path(f"the mask of {name}"), data=data[1])).tolist()}
    if not found:
        raise DataError(f"sources must have images with masks, got none in {sources}: {stream._failures}")
    return tuple(sorted(found))


def _read_tar(names: Sequence[str], shard: int) -> Iterator[tuple[str, bytes]]:
    name, tar = names[shard], import_module("webdataset").tariterators
    # a local path is made absolute, so that webdataset can take nothing in it for a scheme
    opened = tar.url_opener([{"url": name if _scheme(name) else str(Path(name).absolute())}])
    # single files: webdataset's grouping takes cat.0.jpg and cat.1.jpg for parts of one sample
    for member in tar.tar_file_expander(opened, select_files=_is_image, eof_value=None):
        yield f"{name}/{member['fname']}", member["data"]


def _read_pairs(names: Sequence[str], shard: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Read the images of a tar file with their masks, which stand beside them; of one without a mask that is empty."""
    for _, group in groupby(_read_tar(names, shard), lambda member: _sample_name(member[0])[0]):
        members = list(group)
        masks = [member for member in members if _sample_name(member[0])[1]]
        if not masks and len(members) > 1:  # a.jpg and a.png
            masks = [member for member in members if member[0].lower().endswith(".png")]
        images = [member for member in members if member not in masks]
        mask = masks[0][1] if len(masks) == 1 else b""
        yield from ((name, data, mask) for name, data in images)


def _sample_name(name: str) -> tuple[str, bool]:
    """The name that an image and its mask share, and whether this is the name of a mask."""
    stem = name.rpartition(".")[0]
    end = next((end for end in _MASK_ENDS if stem.lower().endswith(end)), "")
    return stem.removesuffix(stem[len(stem) - len(end) :]), bool(end)


def _open_tars(
    sources: Sequence[str], skipped: SkippedFiles | None, *, counted: bool, labeled: bool = False
) -> _Shards:
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
    read = _read_pairs if labeled else _read_tar
    if not counted or any(map(_scheme, names)):
        return _Shards(tuple(names), None, partial(read, tuple(names)))
    total = 0
    for name in list(names):
        try:
            with tarfile.open(name) as archive:
                images = [member.name for member in archive if member.isreg() and _is_image(member.name)]
                total += len({_sample_name(name)[0] for name in images}) if labeled else len(images)
        except (OSError, tarfile.TarError) as error:
            if skipped is None:
                raise DataError(f"{name} cannot be read as a tar file: {error}. Replace the file.") from error
            skipped.add(Path(name), f"no readable tar file: {error}")
            del names[name]
    return _Shards(tuple(names), total, partial(read, tuple(names)))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS) and not Path(name).name.startswith(".")


def _read_rows(names: Sequence[str], rows: Any, columns: Sequence[str], shard: int) -> Iterator[Any]:
    if get_worker_info() is not None:
        import_module("fsspec.asyn").reset_lock()  # taken over when this process was forked, it might never open
    # not iter(part): in a loader's worker the library would give a share of the shard alone
    batches = rows.shard(len(names), shard).iter(batch_size=16)
    listed = (zip(*(batch[column] for column in columns), strict=True) for batch in batches)
    for row, cells in enumerate(chain.from_iterable(listed)):
        # where the bytes are missing, a path may stand in their place, which could name any file
        yield f"{names[shard]}/row-{row}", *((cell and cell["bytes"]) or b"" for cell in cells)


def _open_table(source: str, *, labeled: bool = False) -> _Shards:
    """Find the shards and the columns of images and masks of parquet files or a data set on the Hub."""
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
    chosen = choose_columns(path, features, settings, labeled=labeled)
    rows = rows.select_columns(chosen)
    for name in chosen:
        rows = rows.cast_column(name, library.Image(decode=False))
    if rows.num_shards <= _FEW_FILES:
        rows = rows.reshard()
    names = tuple(f"{path} part {part + 1} of {rows.num_shards}" for part in range(rows.num_shards))
    files = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    count = None
    if split in (builder.info.splits or ()):
        count = builder.info.splits[split].num_examples
    elif files and all(file.endswith(".parquet") and Path(file).is_file() for file in files):
        count = sum(import_module("pyarrow.parquet").read_metadata(file).num_rows for file in files)
    return _Shards(names, count, partial(_read_rows, names, rows, chosen))


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
