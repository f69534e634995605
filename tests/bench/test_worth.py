"""What weights are worth in labels: the crossing of the reference's curve, and what its budgets leave open."""

from __future__ import annotations

import numpy as np
import pytest

from segae.bench.scores import ArmScores
from segae.bench.statistics import compare
from segae.bench.worth import ABOVE, BELOW, worth_in_labels
from segae.errors import SegaeError


def arm(quality: float, seeds: int = 3, images: int = 50, spread: float = 0.0, rng_seed: int = 0) -> ArmScores:
    rng = np.random.default_rng(rng_seed)
    union = np.full((seeds, images, 1), 100_000)
    iou = quality + rng.normal(0, spread, (seeds, images, 1)) + rng.normal(0, spread / 5, (seeds, 1, 1))
    names = tuple(f"{i:02d}" for i in range(images))
    return ArmScores(tuple(range(seeds)), names, ("a",), np.rint(union * np.clip(iou, 0, 1)).astype(np.int64), union)


RISING = {10: arm(0.4), 100: arm(0.6), 1000: arm(0.7)}


@pytest.mark.parametrize(("quality", "labels"), [(0.4, 10), (0.5, 10**1.5), (0.6, 100), (0.65, 10**2.5), (0.7, 1000)])
def test_the_curve_is_straight_in_the_logarithm_of_the_labels(quality, labels):
    (worth,) = worth_in_labels({5: arm(quality)}, RISING)
    assert worth.labels == pytest.approx(labels)
    assert worth.budget == 5
    assert (worth.low or labels) <= labels * 1.001
    assert (worth.high or labels) >= labels * 0.999


def test_an_arm_beyond_the_budgets_says_so():
    above, below = worth_in_labels({10: arm(0.8), 20: arm(0.3)}, RISING)
    assert (above.labels, above.low, above.high, above.note) == (None, 1000, None, ABOVE)
    assert (below.labels, below.low, below.high, below.note) == (None, None, 10, BELOW)


def test_the_reference_is_worth_its_own_labels():
    for worth, budget in zip(worth_in_labels(RISING, RISING), RISING, strict=True):
        assert (worth.budget, worth.labels) == (budget, pytest.approx(budget))


def test_a_better_arm_is_worth_more_and_budgets_come_in_order():
    values = worth_in_labels({100: arm(0.66), 10: arm(0.55), 30: arm(0.62)}, RISING)
    assert [worth.budget for worth in values] == [10, 30, 100]
    assert values[0].labels < values[1].labels < values[2].labels


def test_a_curve_that_falls_is_mended_by_the_closest_rising_one():
    measured = {10: 0.4, 100: 0.62, 1000: 0.58, 10_000: 0.7}
    (worth,) = worth_in_labels({5: arm(0.6)}, {labels: arm(quality) for labels, quality in measured.items()})
    assert worth.labels == pytest.approx(100)  # the flat part at 0.6 begins there
    noisy = {labels: arm(quality, spread=0.01, rng_seed=labels) for labels, quality in measured.items()}
    (worth,) = worth_in_labels({5: arm(0.6, spread=0.01, rng_seed=9)}, noisy)
    assert worth.low < 100 < 1000 < worth.high  # the measured curve is at 0.6 before 100 and after 1,000


def test_the_interval_ends_where_the_paired_comparison_begins_to_reject():
    reference = {labels: arm(q, spread=0.05, rng_seed=n) for n, (labels, q) in enumerate([(10, 0.4), (1000, 0.8)])}
    mine = arm(0.6, spread=0.05, rng_seed=9)
    (worth,) = worth_in_labels({10: mine}, reference)
    assert 10 < worth.low < worth.labels < worth.high < 1000
    assert worth.note == ""
    # at the budgets themselves the same test rejects
    assert all(compare(mine, other, resamples=9).p < 0.05 for other in reference.values())
    (wider,) = worth_in_labels({10: mine}, reference, level=0.99)
    assert wider.low < worth.low < worth.high < wider.high


def test_a_curve_too_flat_to_tell_leaves_the_interval_open():
    flat = {labels: arm(q, spread=0.1, rng_seed=n) for n, (labels, q) in enumerate([(10, 0.590), (1000, 0.600)])}
    means = [float(flat[labels].miou().mean()) for labels in sorted(flat)]
    (worth,) = worth_in_labels({10: arm(float(np.mean(means)), spread=0.1, rng_seed=5)}, flat)
    assert (worth.low, worth.high) == (None, None)
    assert ABOVE in worth.note or BELOW in worth.note or worth.note == "interval open below; interval open above"


def test_one_seed_is_told():
    (worth,) = worth_in_labels({10: arm(0.5, seeds=1)}, {10: arm(0.4, seeds=1), 100: arm(0.6, seeds=1)})
    assert "over images only" in worth.note


def test_one_budget_of_the_reference_tells_only_the_side():
    (worth,) = worth_in_labels({10: arm(0.5)}, {100: arm(0.4)})
    assert (worth.labels, worth.low, worth.note) == (None, 100, ABOVE)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(SegaeError, match="reference has the label budgets"):
        worth_in_labels({10: arm(0.5)}, {})
    with pytest.raises(SegaeError, match=r"\[0\]"):
        worth_in_labels({0: arm(0.5)}, RISING)
    with pytest.raises(SegaeError, match="seeds differ: 2"):
        worth_in_labels({10: arm(0.5, seeds=2)}, RISING)
    with pytest.raises(SegaeError, match="level is 95"):
        worth_in_labels({10: arm(0.5)}, RISING, level=95)
