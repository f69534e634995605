"""A ready benchmark of a published protocol says how near it came, and what it does in another way."""

from __future__ import annotations

import numpy as np
import pytest

from segae.bench.benchmark import verdict
from segae.bench.presets import PRESETS, Acceptance

SMP = PRESETS["smp"].accept


def said(scores: list[float], test_images: int = 3669) -> str:
    assert SMP is not None
    rows = [{"init": "imagenet", SMP.column: str(score)} for score in scores]
    return verdict(SMP, rows, test_images)


def test_the_interval_is_that_of_as_many_further_runs():
    accept = Acceptance("miou", 0.9, 0.0, 7, 10, "us", "Nothing differs.")
    generator = np.random.default_rng(0)
    for runs in (1, 3, 10):
        inside = 0
        for _ in range(4000):
            published = generator.normal(0.9, 0.01, 7)
            own = Acceptance("miou", published.mean(), published.std(ddof=1), 7, 10, "us", accept.differences)
            low, high = own.interval(runs)
            inside += low <= generator.normal(0.9, 0.01, runs).mean() <= high
        assert inside / 4000 == pytest.approx(0.95, abs=0.012)


def test_the_verdict_follows_the_scores_and_names_what_differs():
    assert "0.9150 over 3 runs agrees with what was published" in said([0.914, 0.915, 0.916])
    assert "between 0.9128 and 0.9168 is wanted" in said([0.914, 0.915, 0.916])
    assert "does not agree with" in said([0.920, 0.921, 0.922])
    assert "AdamW for Adam" in said([0.914, 0.915, 0.916])
    assert "between 0.9117 and 0.9179" in said([0.9175])  # one run may lie further off
    assert "nothing follows" in said([0.915], test_images=298)
