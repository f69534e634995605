"""What could not be read is named, and what could not be named is counted where a reader looks."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from segae.data.failures import SharedFailures
from segae.data.live import LiveImages
from segae.data.quarantine import UNNAMED, Quarantine
from segae.data.transforms import eval_transform

HALF = (0.5, 0.5, 0.5)


def full_list() -> SharedFailures:
    failures = SharedFailures()
    while not failures.unnamed:
        failures.add(f"image-{len(failures.items)}.jpg", "broken " * 20)
    failures.add("one more.jpg", "broken " * 20)
    return failures


def test_a_full_list_ends_with_the_number_of_the_others() -> None:
    failures = full_list()
    assert failures.all[:-1] == failures.items
    assert failures.all[-1] == (UNNAMED, "2")
    assert SharedFailures().all == ()


def test_what_is_not_named_is_reported_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = LiveImages([tmp_path / "a.jpg"], 16, eval_transform(16, HALF, HALF), 0)
    data._failures = full_list()
    with caplog.at_level(logging.WARNING, "segae"):
        quarantine = Quarantine()
        quarantine.take([*data.failures, *data.failures], tmp_path)  # as of training and validation images
    named = len(data.failures) - 1
    assert f"{named} unreadable file(s) left out" in caplog.text
    assert "4 more time(s) something could not be read" in caplog.text
    with (tmp_path / "quarantine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == named + 1
    assert rows[-1]["path"] == UNNAMED
    assert rows[-1]["reason"].startswith("4 more")
