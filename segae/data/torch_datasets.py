"""Torch datasets of cached or lazily decoded images, whose augmentation depends on (seed, epoch, index) alone.

Item `index` is a float32 tensor (C, S, S), normalized, or (that, int64 tensor (S, S) of class indices): image
`index % distinct`. The number of workers, the order and what was read before change nothing.

A file that a lazy dataset cannot read does not end a training: the next readable image takes its place, the same one
in every process and epoch, and the file is listed in `failures`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from segae._io import check_range
from segae.data.file_lists import Pair, PairList, PathList, Values
from segae.data.image_io import UnreadableImage, read_pair, read_resized
from segae.errors import DataError
from segae.image_format import ImageFormat, Size

Transform = Any  # albumentations' Compose, or what has its `__call__` and `set_random_state`

_MOST_IN_A_ROW = 100  # unreadable files, before a dataset gives up
_PROCESSES, _PROCESS_BYTES = 128, 8192  # of the list of failures


class SharedFailures:
    """List of (name, reason) in shared memory: each worker process adds to 8 kB of its own, the main one reads all."""

    def __init__(self, processes: int) -> None:
        self._text = torch.zeros(processes, _PROCESS_BYTES, dtype=torch.uint8).share_memory_()
        self._used = torch.zeros(processes, dtype=torch.int64).share_memory_()
        self._left_out = torch.zeros(processes, dtype=torch.int64).share_memory_()

    def add(self, name: str, reason: str) -> None:
        """Note a failure; the same one twice is listed once."""
        worker = get_worker_info()
        row = 0 if worker is None else (1 + worker.id) % len(self._used)
        line = json.dumps([name, reason[:500]]).encode() + b"\n"
        used, known = int(self._used[row]), line in self._row(row)
        if not known and used + len(line) <= _PROCESS_BYTES:
            self._text[row, used : used + len(line)] = torch.frombuffer(bytearray(line), dtype=torch.uint8)
            self._used[row] += len(line)  # last, so that a reader never sees half a line
        elif not known:
            self._left_out[row] += 1

    def list(self) -> list[tuple[Path, str]]:
        """Return the failures; a last row gives the number of those for which there was no room."""
        lines = b"".join(map(self._row, range(len(self._used)))).splitlines()
        found = [(Path(name), reason) for name, reason in dict(json.loads(line) for line in lines).items()]
        left_out = int(self._left_out.sum())
        return found + ([(Path("(others)"), f"{left_out} more failures to read a file")] if left_out else [])

    def __str__(self) -> str:
        return "; ".join(f"{path} ({reason})" for path, reason in self.list()[:3]) or "none is there"

    def _row(self, row: int) -> bytes:
        return self._text[row, : int(self._used[row])].numpy().tobytes()


class SeededByEpoch:
    """A dataset's transform, epoch and failures; running workers share the last two with the main process."""

    decodes = False  # whether items are decoded from files each time, which deserves worker processes

    def __init__(self, transform: Transform, seed: int) -> None:
        self._transform, self._seed = transform, seed
        self._generator = np.random.Generator(np.random.Philox(key=[0, 0]))
        self._start: dict[str, Any] = dict(self._generator.bit_generator.state)
        self._python = random.Random(0)
        # workers that live on through the epochs would not see an ordinary attribute change
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._failures = SharedFailures(_PROCESSES if self.decodes else 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation (of a stream, also order) the next items get."""
        self._epoch[0] = epoch

    @property
    def failures(self) -> list[tuple[Path, str]]:
        """What could not be read so far, in any process, each with the reason."""
        return self._failures.list()

    def _transformed(self, epoch: int, index: int, **arrays: np.ndarray) -> dict[str, Any]:
        """Transform `image` and, if given, `mask` with the randomness of (seed, epoch, index); index below 2**64.

        Setting two shared generators back takes a third of the time of building new ones, and a tenth of
        `Compose.set_random_seed`, which builds two for each step.
        """
        run = (self._seed << 32 | epoch) & 0xFFFF_FFFF_FFFF_FFFF
        # Philox turns any two different keys into independent streams, so no hashing is needed
        key = np.array([run, index], dtype=np.uint64)
        self._generator.bit_generator.state = self._start | {"state": {"counter": np.zeros(4, np.uint64), "key": key}}
        self._python.seed(run << 64 | index)
        # at each item, because another dataset may share the transform
        self._transform.set_random_state(self._generator, self._python)
        if arrays["image"].dtype == np.uint16:  # which albumentations does not know
            arrays["image"] = arrays["image"].astype(np.float32) / 65535
        # copies: the cache is read-only, and a transform that does nothing would hand its pages on
        return self._transform(**{name: np.array(array) for name, array in arrays.items()})


class _AugmentedDataset(SeededByEpoch, Dataset[Any]):
    """The base of all datasets with an index: N `distinct` images, each `repeats` times, augmented differently."""

    def __init__(self, distinct: int, transform: Transform, seed: int, repeats: int) -> None:
        check_range("repeats", repeats, low=1, integer=True)
        super().__init__(transform, seed)
        self.distinct, self._repeats = distinct, repeats

    def __len__(self) -> int:
        return self.distinct * self._repeats

    def __getitem__(self, index: int) -> Any:
        position = range(len(self))[index]  # its IndexError ends an iteration
        arrays = self._arrays(position % self.distinct)
        label = [arrays.pop("mask")] if "mask" in arrays and not arrays["mask"].ndim else []  # of the whole image
        result = self._transformed(int(self._epoch[0]), position, **arrays)
        if label:
            return result["image"], *label
        return (result["image"], result["mask"].long()) if "mask" in result else result["image"]

    def _arrays(self, place: int) -> dict[str, np.ndarray]:
        """Return `image` uint8 (S, S, 3), or of another format, and, of labeled images, `mask` uint8 (S, S)."""
        raise NotImplementedError


class CachedImageDataset(_AugmentedDataset):
    """Images for pretraining from uint8 (N, S, S, 3), for example a cache's memory map."""

    def __init__(self, images: np.ndarray, transform: Transform, seed: int, repeats: int = 1) -> None:
        super().__init__(len(images), transform, seed, repeats)
        self._images = images

    def _arrays(self, place: int) -> dict[str, np.ndarray]:
        return {"image": self._images[place]}


class CachedPairDataset(CachedImageDataset):
    """Images uint8 (N, S, S, 3) with class indices: masks uint8 (N, S, S), or int64 (N,), a class for each image."""

    def __init__(
        self, images: np.ndarray, masks: np.ndarray, transform: Transform, seed: int, repeats: int = 1
    ) -> None:
        super().__init__(images, transform, seed, repeats)
        if len(images) != len(masks):
            raise ValueError(f"masks must be as many as images ({len(images)}), got {len(masks)}")
        self._masks = masks

    def _arrays(self, place: int) -> dict[str, np.ndarray]:
        return {"image": self._images[place], "mask": self._masks[place]}


class LazyImageDataset(_AugmentedDataset):
    """Images for pretraining, decoded from their files each time: for sets that are too large for a cache.

    Each image is resized to `size`, a side or a format, before the transform. An unreadable one is replaced by its
    neighbor in `paths`, so a list of training images must not hold validation images. SegaeError if there are no paths,
    and from an item if 100 images in a row cannot be read.
    """

    decodes = True

    def __init__(
        self, paths: Iterable[Path], size: Size | ImageFormat, transform: Transform, seed: int, repeats: int = 1
    ) -> None:
        self._paths = PathList.of(paths)
        if not len(self._paths):
            raise DataError("paths must hold one image or more, got none")
        super().__init__(len(self._paths), transform, seed, repeats)
        self._size, self._failed = size, torch.zeros(len(self._paths), dtype=torch.uint8).share_memory_()

    def _arrays(self, place: int) -> dict[str, np.ndarray]:
        tries = min(self.distinct, _MOST_IN_A_ROW)
        for position in ((place + step) % self.distinct for step in range(tries)):
            if self._failed[position]:  # never read again: an epoch must not depend on when a file was repaired
                continue
            try:
                return self._read(position)
            except UnreadableImage as error:  # a mask of wrong values or size is no broken file: it stops the run
                path = self._paths[position]
                self._failures.add(str(path), error.reason if error.path == path else str(error))  # names the mask
                self._failed[position] = 1
        raise DataError(f"none of {tries} images in a row can be read: {self._failures}. Name other files.")

    def _read(self, place: int) -> dict[str, np.ndarray]:
        return {"image": read_resized(self._paths[place], self._size)}


class LazyPairDataset(LazyImageDataset):
    """Images with masks for segmentation, decoded from their files each time, as `LazyImageDataset` does.

    A pair of which a file cannot be read is replaced by its neighbor. A mask with a value that is no class, or of
    another size than its image, is an error. `mask_values` and `ignore_values` are as in `to_class_indices`, or the
    former are names of class folders.
    """

    def __init__(
        self, pairs: Sequence[Pair], size: Size | ImageFormat, mask_values: Values, transform: Transform, seed: int,
        repeats: int = 1, ignore_values: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._pairs, self._mask_values, self._ignore_values = PairList.of(pairs), tuple(mask_values), ignore_values
        super().__init__(self._pairs.images, size, transform, seed, repeats)

    def _read(self, place: int) -> dict[str, np.ndarray]:
        pair = self._pairs[place]
        if pair.mask.is_dir():
            return super()._read(place) | {"mask": np.array(self._mask_values.index(pair.mask.name))}
        coding: Any = {"mask_values": self._mask_values, "ignore_values": self._ignore_values}
        image, mask = read_pair(pair.image, pair.mask, self._size, reduced=True, **coding)
        return {"image": image, "mask": mask}
