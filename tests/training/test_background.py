"""Calls beside the caller: all are made, not too many at once, and none fails in silence."""

from __future__ import annotations

import threading

import pytest

from segae.training.background import in_background


def test_every_call_is_made_beside_the_caller_and_no_more_at_once_than_allowed():
    made, running, most, lock = [], [0], [0], threading.Lock()

    def call(number: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        made.append((number, threading.current_thread() is threading.main_thread()))
        with lock:
            running[0] -= 1

    with in_background(2) as submit:
        for number in range(20):
            submit(call, number)
    assert sorted(made) == [(number, False) for number in range(20)]
    assert most[0] <= 2


def test_the_caller_goes_on_while_a_call_runs():
    go = threading.Event()
    with in_background(1) as submit:
        submit(go.wait, 10)
        assert not go.is_set()
        go.set()  # a caller that had waited for the call would never come here


@pytest.mark.parametrize("after", [0, 3])
def test_an_error_of_a_call_reaches_the_caller(after):
    made = []
    with pytest.raises(ValueError, match="broken"), in_background(2) as submit:  # noqa: PT012
        submit(int, "broken")
        for number in range(after):
            submit(made.append, number)
    assert len(made) < 3, "what comes after the error is noticed is not begun"
