"""The exceptions that segae raises for what a user can mend."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SegaeError(ValueError):
    """An argument, a file or a setting that cannot be used; the message names it and says what to do."""


class DataError(SegaeError):
    """A data set, an image or a mask that cannot be used."""


class CheckpointError(SegaeError):
    """A weight or resume file that is missing, damaged or of another kind."""


class OutOfMemoryError(SegaeError):
    """The memory of the device or of the machine is full."""


@contextmanager
def argument_named(ours: str, *, instead_of: str) -> Iterator[None]:
    """Within, let errors about a function's argument name the setting that it came from."""
    try:
        yield
    except SegaeError as error:
        if not str(error).startswith(f"{instead_of} "):
            raise
        raise type(error)(f"{ours}{str(error).removeprefix(instead_of)}") from error


def nearest(value: object, known: Iterable[str], *, count: int = 1, cutoff: float = 0.6) -> str:
    """A hint at the known names that are most like the given one; empty if none is."""
    close = difflib.get_close_matches(str(value), list(known), n=count, cutoff=cutoff)
    return f"; did you mean {', '.join(close)}?" if close else ""
