"""Calls that run beside the caller, a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def in_background(most: int) -> Iterator[Callable[..., None]]:
    """Give a function that starts ``call(*values)`` in another thread, and wait for all of them at the end.

    Args:
        most: calls at once, 1 or more. Another one waits for the oldest, so what they hold in memory has a bound.

    Raises:
        Exception: what a call raised, when the next one waits for it or at the end, the oldest call's first.

    Example:
        >>> with in_background(2) as submit:
        ...     submit(print, "beside")
        beside
    """
    running: deque[Future] = deque()
    with ThreadPoolExecutor(most) as threads:

        def submit(call: Callable[..., object], *values: object) -> None:
            if len(running) == most:
                running.popleft().result()
            running.append(threads.submit(call, *values))

        yield submit
        while running:
            running.popleft().result()
