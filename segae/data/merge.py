"""Take several classes of a data set as one, such as a pet and its border as the foreground."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from segae.data.dataset import SegmentationData
from segae.errors import SegaeError

_EXAMPLE = "--merge foreground=pet+border"


def read_merge(merge: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read `name=class+class` texts as new name: the classes it stands for.

    Raises:
        SegaeError: a text is of another form, or a name or a class stands in them twice.

    Example:
        >>> read_merge(["foreground=pet+border"])
        {'foreground': ('pet', 'border')}
    """
    groups: dict[str, tuple[str, ...]] = {}
    for text in merge:
        name, _, listed = (part.strip() for part in text.partition("="))
        parts = tuple(part.strip() for part in listed.split("+"))
        if not name or not all(parts):
            raise SegaeError(f"{text!r} merges nothing; a new name, = and the classes are wanted: {_EXAMPLE}.")
        if name in groups:
            raise SegaeError(f"the name {name} is given to two merged classes; give each its own: {_EXAMPLE}.")
        groups[name] = parts
    members = [part for parts in groups.values() for part in parts]
    if twice := [part for part in members if members.count(part) > 1]:
        raise SegaeError(f"the class {twice[0]} is merged twice; name each class once: {_EXAMPLE}.")
    return groups


def merge_classes(data: SegmentationData, merge: Sequence[str]) -> SegmentationData:
    """The data set with classes taken as one.

    The new classes stand in the order in which the first of their members comes; a merged one has the colour of
    that member. Nothing in the data set's folder changes.

    Args:
        data: the data set.
        merge: texts such as `foreground=pet+border`; none returns the data set itself.

    Raises:
        SegaeError: a text cannot be read, a class is unknown, a new name is that of a class which stays, or fewer
            than two classes are left.
    """
    if not merge:
        return data
    groups = read_merge(merge)
    for part in (part for parts in groups.values() for part in parts):
        if part not in data.classes:
            raise _unknown(part, data)
    new_name = {part: name for name, parts in groups.items() for part in parts}
    members: dict[str, list[int]] = {}
    for index, name in enumerate(data.classes):
        if name in groups and name not in new_name:
            raise SegaeError(f"{name} is a class of {data.root} already and stays one; give the merged class another.")
        members.setdefault(new_name.get(name, name), []).append(index)
    if len(members) < 2:
        raise SegaeError(f"merging all of {', '.join(data.classes)} leaves one class, and two or more are wanted.")
    # not dataclasses.replace, which would open the folder again
    return SegmentationData(
        name=data.name,
        root=data.root,
        classes=tuple(members),
        palette=tuple(data.palette[indices[0]] for indices in members.values()),
        mask_values=tuple(_values_of(data, indices) for indices in members.values()),
        splits=data.splits,
        missing=data.missing,
    )


def same_merge(one: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> bool:
    """Whether two of `read_merge` mean the same, in whatever order they were typed."""
    return _plain(one) == _plain(other)


def _plain(merge: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {name: sorted(parts) for name, parts in merge.items()}


def _values_of(data: SegmentationData, indices: Sequence[int]) -> int | tuple[int, ...]:
    values = tuple(value for index in indices for value in _flat(data.mask_values[index]))
    return values[0] if len(values) == 1 else values


def _flat(value: int | tuple[int, ...]) -> Iterator[int]:
    yield from value if isinstance(value, tuple) else (value,)


def _unknown(name: str, data: SegmentationData) -> SegaeError:
    close = difflib.get_close_matches(name, data.classes, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return SegaeError(
        f"{data.root} has no class {name} that could be merged.{hint} Its classes are {', '.join(data.classes)}."
    )
