"""Torch data sets over cached arrays, whose augmentation depends on (seed, epoch, index) alone."""

from __future__ import annotations

import random
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segae.data.packed import from_start
from segae.errors import SegaeError


class Transform(Protocol):
    """What is asked of a transform: albumentations' Compose has it."""

    def __call__(self, **data: np.ndarray) -> dict[str, Any]:
        """Transform `image` and, if given, `mask`."""

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        """Draw all randomness from these two generators from now on."""


class SeededTransform:
    """A transform whose two generators, shared by all its steps, are set back for each item.

    Setting back takes a third of the time of building new generators, and a tenth of Compose.set_random_seed,
    which builds two for each step.

    Args:
        transform: from `segae.data.transforms`.
        seed: with the epoch and the index, the only source of randomness.
    """

    def __init__(self, transform: Transform, seed: int) -> None:
        self._transform = transform
        self._seed = seed
        self._generator = np.random.Generator(np.random.Philox(key=[0, 0]))
        self._start: dict[str, Any] = dict(self._generator.bit_generator.state)
        self._python = random.Random(0)

    def __call__(self, epoch: int, index: int, **arrays: np.ndarray) -> dict[str, Any]:
        """Transform `image` and, if given, `mask` as item `index` of an epoch; `index` is below 2**64."""
        run = (self._seed << 32 | epoch) & 0xFFFF_FFFF_FFFF_FFFF
        # Philox turns any two different keys into independent streams, so no hashing is needed
        key = np.array([run, index], dtype=np.uint64)
        self._generator.bit_generator.state = {
            **self._start,
            "state": {"counter": np.zeros(4, np.uint64), "key": key},
        }
        self._python.seed(run << 64 | index)
        # at each item, because another data set may share the transform
        self._transform.set_random_state(self._generator, self._python)
        # copies: the cache is read-only, and a transform that does nothing would hand its pages on
        return self._transform(**{name: np.array(array) for name, array in arrays.items()})


class AugmentedItems(Dataset[Any]):
    """The base of all data sets with an index: a seeded transform, and an epoch that running workers hear of."""

    def __init__(self, transform: Transform, seed: int) -> None:
        self._seeded = SeededTransform(transform, seed)
        # in shared memory: workers that live on through the epochs would not see an ordinary attribute change
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before its first batch is asked for; running workers hear of it."""
        self._epoch[0] = epoch

    def _apply(self, index: int, **arrays: np.ndarray) -> dict[str, Any]:
        return self._seeded(int(self._epoch[0]), index, **arrays)


class UnlabelledImages(AugmentedItems):
    """Images for pretraining.

    Args:
        images: uint8 (N, S, S, 3), for example a cache's memory map.
        transform: from `segae.data.transforms`.
        seed: with the epoch and the index, the only source of randomness.
        repeats: times that every image occurs, each time augmented anew. An epoch of a small set is over in
            moments on a fast device, and what happens between epochs would take most of the time.

    Item `index` is a float32 tensor (3, S, S), normalised: image `index % N`.

    Raises:
        SegaeError: repeats is below 1.
    """

    def __init__(self, images: np.ndarray, transform: Transform, seed: int, repeats: int = 1) -> None:
        super().__init__(transform, seed)
        require_repeats(repeats)
        self._images = images
        self._repeats = repeats

    def __len__(self) -> int:
        return len(self._images) * self._repeats

    def __getitem__(self, index: int) -> Tensor:
        index = from_start(index, len(self))
        return self._apply(index, image=self._images[index % len(self._images)])["image"]


class LabelledImages(AugmentedItems):
    """Images with masks for segmentation.

    Args:
        images: uint8 (N, S, S, 3).
        masks: uint8 (N, S, S), class indices.
        transform: from `segae.data.transforms`.
        seed: with the epoch and the index, the only source of randomness.
        repeats: times that every image occurs, each time augmented anew.

    Attributes:
        distinct: N, how many images there are without the repeats.

    Item `index` is (float32 tensor (3, S, S), normalised; int64 tensor (S, S), class indices): image `index % N`.

    Raises:
        SegaeError: repeats is below 1.
        ValueError: there are not as many masks as images.
    """

    def __init__(
        self, images: np.ndarray, masks: np.ndarray, transform: Transform, seed: int, repeats: int = 1
    ) -> None:
        super().__init__(transform, seed)
        require_repeats(repeats)
        if len(images) != len(masks):
            raise ValueError(f"{len(images)} images and {len(masks)} masks")
        self._images = images
        self._masks = masks
        self._repeats = repeats
        self.distinct = len(images)

    def __len__(self) -> int:
        return self.distinct * self._repeats

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = from_start(index, len(self))
        place = index % self.distinct
        result = self._apply(index, image=self._images[place], mask=self._masks[place])
        return result["image"], result["mask"].long()


def require_repeats(repeats: int) -> None:
    """Refuse a number of repeats below 1."""
    if repeats < 1:
        raise SegaeError(f"repeats is {repeats}; 1 or more is wanted, for example --repeats 10.")
