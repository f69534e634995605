"""Torch data sets that decode their files while training, for sets that are too large for a cache.

A JPEG file is decoded at a half, a quarter or an eighth of its size where the wanted size allows it, by Pillow's own
libjpeg-turbo: for a photograph of 2000 pixels and an input of 128 that takes less than a fifth of the time, and what
comes out differs from the cache's picture by about one grey level of 255.

A file that cannot be read does not end a training. The next readable image of the set takes its place, each time and
in every process the same one, and the file is put on a list that the main process can report. Nothing is looked at
beforehand: to decode a million files once would take longer than many a training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from segae.data.batches import AugmentedItems, Transform, require_repeats
from segae.data.failures import SharedFailures
from segae.data.images import UnreadableImage, read_bytes, read_mask
from segae.data.packed import PackedPairs, PackedPaths, Pair, from_start
from segae.data.reduced import decode_reduced, read_resized, squash
from segae.data.resize import require_same_size, resize_mask, to_class_indices
from segae.errors import SegaeError

_MOST_IN_A_ROW = 100

Item = TypeVar("Item")


class _LiveItems(AugmentedItems):
    """The files' list, and the way round those that cannot be read."""

    def __init__(self, paths: Iterable[Path], size: int, transform: Transform, seed: int) -> None:
        super().__init__(transform, seed)
        self._paths = PackedPaths.of(paths)
        if not len(self._paths):
            raise SegaeError("No image was given. Wanted one or more; name a folder that holds some.")
        self._size = size
        self._failures = SharedFailures()
        self._failed = torch.zeros(len(self._paths), dtype=torch.uint8).share_memory_()

    @property
    def failures(self) -> tuple[tuple[Path, str], ...]:
        """The files that could not be read so far, in any process, each with the reason; the first few hundred.

        If there were more, the last row is (``segae.data.quarantine.UNNAMED``, how many times one was met).
        """
        return tuple((Path(path), reason) for path, reason in self._failures.all)

    @property
    def failed(self) -> int:
        """How many items could not be read so far."""
        return int(self._failed.count_nonzero())

    def _first_readable(self, start: int, read: Callable[[int], Item]) -> Item:
        """What `read` gives for `start`, or for the first position after it that can be read."""
        reason = ""
        for step in range(min(len(self._paths), _MOST_IN_A_ROW)):
            place = (start + step) % len(self._paths)
            if self._failed[place]:
                continue
            try:
                return read(place)
            except UnreadableImage as error:  # a mask of wrong values or size is no broken file: it stops the run
                path = self._paths[place]
                reason = error.reason if error.path == path else str(error)  # which names the mask
                self._failures.add(str(path), reason)
                self._failed[place] = 1
        raise SegaeError(
            f"None of {min(len(self._paths), _MOST_IN_A_ROW)} images in a row can be used, beginning with "
            f"{self._paths[start]}: {reason or self._failures.items[0][1]}. Wanted files that Pillow can open, "
            "and masks of their images' sizes that hold class values only; replace the files or name another folder."
        )


class LiveImages(_LiveItems):
    """Images for pretraining, decoded from their files each time.

    Args:
        paths: image files. An unreadable one is replaced by its neighbour in this list, so a list of training images
            must not hold validation images.
        size: side S in pixels to which each is squashed before the transform.
        transform: from `segae.data.transforms`.
        seed: with the epoch and the index, the only source of randomness, as in `UnlabelledImages`.
        repeats: times that every image occurs, each time augmented anew.

    Item `index` is a float32 tensor (3, S, S), normalised: image `index % N`.

    Raises:
        SegaeError: no paths, or repeats below 1; from an item: 100 images in a row that cannot be read.
    """

    def __init__(self, paths: Iterable[Path], size: int, transform: Transform, seed: int, repeats: int = 1) -> None:
        super().__init__(paths, size, transform, seed)
        require_repeats(repeats)
        self._repeats = repeats

    def __len__(self) -> int:
        return len(self._paths) * self._repeats

    def __getitem__(self, index: int) -> Tensor:
        index = from_start(index, len(self))
        image = self._first_readable(index % len(self._paths), self._read)
        return self._apply(index, image=image)["image"]

    def _read(self, place: int) -> np.ndarray:
        return read_resized(self._paths[place], self._size)


class LivePairs(_LiveItems):
    """Images with masks for segmentation, decoded from their files each time.

    A pair of which a file cannot be read is replaced by its neighbour; so is a mask that holds a value which is no
    class, or whose size is not its image's.

    Args:
        pairs: image and mask files.
        size: side S in pixels to which each is squashed before the transform.
        mask_values: raw value of each class index in the mask files, or all of them where a class has several.
        transform: from `segae.data.transforms`.
        seed: with the epoch and the index, the only source of randomness, as in `LabelledImages`.
        repeats: times that every image occurs, each time augmented anew.

    Attributes:
        distinct: N, how many images there are without the repeats.

    Item `index` is (float32 tensor (3, S, S), normalised; int64 tensor (S, S), class indices): image `index % N`.

    Raises:
        SegaeError: no pairs, or repeats below 1; from an item: 100 pairs in a row that cannot be used.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        size: int,
        mask_values: Sequence[int | tuple[int, ...]],
        transform: Transform,
        seed: int,
        repeats: int = 1,
    ) -> None:
        packed = PackedPairs.of(pairs)
        super().__init__(packed.images, size, transform, seed)
        require_repeats(repeats)
        self._repeats = repeats
        self.distinct = len(self._paths)
        self._masks = packed.masks
        self._mask_values = tuple(mask_values)

    def __len__(self) -> int:
        return self.distinct * self._repeats

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = from_start(index, len(self))
        image, mask = self._first_readable(index % self.distinct, self._read)
        result = self._apply(index, image=image, mask=mask)
        return result["image"], result["mask"].long()

    def _read(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        pair = Pair("", self._paths[place], self._masks[place])
        image = decode_reduced(read_bytes(pair.image), pair.image, self._size)
        mask = read_mask(pair.mask)
        require_same_size(np.broadcast_to(np.uint8(0), image.upright_size), mask, pair)
        indices = to_class_indices(mask, self._mask_values, pair.mask)
        return squash(image, self._size), resize_mask(indices, self._size)
