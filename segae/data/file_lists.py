"""Packed lists of names, paths and labeled pairs: 100,000 of them take some megabytes."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

Item = TypeVar("Item")
Values = Sequence[int | tuple[int, ...]]  # raw value of each class index in the mask files, or a tuple of several


@dataclass(frozen=True, slots=True)
class Pair:
    """One labeled image: its name (unique in the data set), the image file, and the mask file or the class folder."""

    name: str
    image: Path
    mask: Path


class _Packed(Sequence[Item]):
    """A sequence whose items are made when they are asked for. It equals any sequence of equal items.

    A forked worker writes the reference count of every object it looks at, and so copies a list of a million paths
    page by page; an array's contents stay shared.
    """

    @classmethod
    def of(cls, items: Iterable[Item]) -> Self:
        """Pack items; what is packed already is returned as it is."""
        return items if isinstance(items, cls) else cls(items)  # type: ignore[call-arg]

    @abstractmethod
    def take(self, indices: Iterable[int]) -> Self:
        """Return the items at these indices, counted from 0, in this order; packed too."""

    @abstractmethod
    def _item(self, index: int) -> Item: ...

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        return self.take(place) if isinstance(place, range) else self._item(place)

    def __iter__(self) -> Iterator[Item]:
        return (self._item(place) for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self[:3])}{'...' if len(self) > 3 else ''}, {len(self)} items)"


class _Texts(_Packed[Item]):
    """Names or paths, as the file system encodes them, in one array of bytes."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._array = np.array([os.fsencode(item) for item in items], np.bytes_)

    def take(self, indices: Iterable[int]) -> Self:
        taken = object.__new__(type(self))
        taken._array = self._array[np.fromiter(indices, np.intp)]
        return taken

    def __len__(self) -> int:
        return len(self._array)


class NameList(_Texts[str]):
    """Names, packed."""

    def _item(self, index: int) -> str:
        return os.fsdecode(self._array[index])


class PathList(_Texts[Path]):
    """Paths, packed."""

    def _item(self, index: int) -> Path:
        return Path(os.fsdecode(self._array[index]))


class PairList(_Packed[Pair]):
    """Labeled images, packed: their ``names``, ``images`` (files) and ``masks`` (files), each in the order given."""

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        columns: tuple[list[bytes], ...] = ([], [], [])  # bytes take a tenth of what paths take
        for pair in pairs:
            for column, item in zip(columns, (pair.name, str(pair.image), str(pair.mask)), strict=True):
                column.append(os.fsencode(item))
        self.names, self.images, self.masks = NameList(columns[0]), PathList(columns[1]), PathList(columns[2])

    def take(self, indices: Iterable[int]) -> Self:
        """Return the pairs at these indices, counted from 0, in this order; packed too."""
        indices, taken = list(indices), type(self)()
        taken.names, taken.images = self.names.take(indices), self.images.take(indices)
        taken.masks = self.masks.take(indices)
        return taken

    def __len__(self) -> int:
        return len(self.names)

    def _item(self, index: int) -> Pair:
        return Pair(self.names[index], self.images[index], self.masks[index])
