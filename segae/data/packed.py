"""Lists of files that stay small: a million of them as arrays, where Python's objects would take a gigabyte."""

from __future__ import annotations

import os
from abc import abstractmethod
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index as as_index
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

Item = TypeVar("Item")
Self = TypeVar("Self", bound="_Packed[Any]")


@dataclass(frozen=True, slots=True)
class Pair:
    """One labelled image: its name (unique in the data set), the image file and the mask file."""

    name: str
    image: Path
    mask: Path


class _Packed(Sequence[Item]):
    """A sequence whose items are made when they are asked for. It equals any sequence of equal items.

    Looking at an object writes its reference count, so a list of a million objects would also be copied into every
    forked worker, page by page; an array's contents stay shared.
    """

    @abstractmethod
    def take(self: Self, places: Iterable[int]) -> Self:
        """The items at these places, counted from 0, in this order; packed too."""

    @abstractmethod
    def _at(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self: Self, index: slice) -> Self: ...

    def __getitem__(self: Self, index: int | slice) -> Item | Self:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return self._at(from_start(as_index(index), len(self)))

    def __iter__(self) -> Iterator[Item]:
        return (self._at(place) for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", ..." if len(self) > 3 else "")
        return f"{type(self).__name__}([{shown}], {len(self)} items)"


class _Writer:
    """Texts on their way into an array of bytes."""

    def __init__(self, parts: Iterable[bytes] = ()) -> None:
        self.text, self.ends = bytearray(), array("q", [0])
        for part in parts:
            self.add(part)

    def add(self, part: bytes) -> None:
        self.text += part
        self.ends.append(len(self.text))


class _PackedTexts(_Packed[Item]):
    """Texts in one array of bytes, and where each ends."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._hold(_Writer(map(self.encode, items)))

    @staticmethod
    @abstractmethod
    def encode(item: Any) -> bytes:
        """The bytes of an item."""

    @staticmethod
    @abstractmethod
    def _decode(text: bytes) -> Any: ...

    @classmethod
    def written(cls: type[TextsT], writer: _Writer) -> TextsT:
        """What a writer was given, already encoded."""
        texts = object.__new__(cls)
        texts._hold(writer)
        return texts

    def _hold(self, writer: _Writer) -> None:
        self._text, self._ends = np.frombuffer(bytes(writer.text), np.uint8), np.array(writer.ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _bytes(self, place: int) -> bytes:
        return self._text[self._ends[place] : self._ends[place + 1]].tobytes()

    def _at(self, place: int) -> Item:
        return self._decode(self._bytes(place))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the items take."""
        return self._text.nbytes + self._ends.nbytes

    def take(self: TextsT, places: Iterable[int]) -> TextsT:
        """The items at these places, in this order."""
        return self.written(_Writer(map(self._bytes, places)))


TextsT = TypeVar("TextsT", bound="_PackedTexts[Any]")


class PackedNames(_PackedTexts[str]):
    """Names in two arrays."""

    @staticmethod
    def encode(item: str) -> bytes:
        """UTF-8, also of names that a broken list gave half a character."""
        return item.encode("utf-8", "surrogatepass")

    @staticmethod
    def _decode(text: bytes) -> str:
        return text.decode("utf-8", "surrogatepass")


class PackedPaths(_PackedTexts[Path]):
    """Paths in two arrays."""

    @staticmethod
    def encode(item: Path) -> bytes:
        """As the file system has it."""
        return os.fsencode(item)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> PackedPaths:
        """The paths themselves where they are packed already."""
        return paths if isinstance(paths, cls) else cls(paths)

    @staticmethod
    def _decode(text: bytes) -> Path:
        return Path(os.fsdecode(text))


class PackedPairs(_Packed[Pair]):
    """Labelled images in six arrays: about 200 bytes each, where a list of them takes a kilobyte.

    Attributes:
        names: of the images, in the order of the pairs.
        images: their files.
        masks: their masks' files.
    """

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        names, images, masks = _Writer(), _Writer(), _Writer()
        for pair in pairs:
            names.add(PackedNames.encode(pair.name))
            images.add(PackedPaths.encode(pair.image))
            masks.add(PackedPaths.encode(pair.mask))
        self.names = PackedNames.written(names)
        self.images, self.masks = PackedPaths.written(images), PackedPaths.written(masks)

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> PackedPairs:
        """The pairs themselves where they are packed already."""
        return pairs if isinstance(pairs, cls) else cls(pairs)

    def take(self, places: Iterable[int]) -> PackedPairs:
        """The pairs at these places, in this order."""
        places, taken = list(places), PackedPairs()
        taken.names = self.names.take(places)
        taken.images, taken.masks = self.images.take(places), self.masks.take(places)
        return taken

    def divide(self, chosen: Collection[str]) -> tuple[PackedPairs, PackedPairs]:
        """The pairs without those of these names, and those, both in their order."""
        parts: tuple[list[int], list[int]] = [], []
        for place, name in enumerate(self.names):
            parts[name in chosen].append(place)
        return self.take(parts[0]), self.take(parts[1])

    def __len__(self) -> int:
        return len(self.names)

    def _at(self, place: int) -> Pair:
        return Pair(self.names[place], self.images[place], self.masks[place])


def from_start(index: int, length: int) -> int:
    """Count from the start, so that -1 is the last item; iteration needs the IndexError."""
    position = index + length if index < 0 else index
    if not 0 <= position < length:
        raise IndexError(index)
    return position
