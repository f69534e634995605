"""Pixel counts, intervals, comparisons and label worth: they agree with loops, with scipy, and with each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segae.bench.statistics import (
    ABOVE,
    BELOW,
    PixelCounts,
    adjust_p_values,
    compare,
    crossed_mean,
    mean_interval,
    worth_in_labels,
)
from segae.errors import SegaeError


@st.composite
def tables(draw) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(2, 4)), draw(st.integers(2, 9))
    scale = st.sampled_from([0.0, 0.1, 1.0])
    rows, columns = rng.normal(0, 1, (shape[0], 1)), rng.normal(0, 1, (1, shape[1]))
    return 0.3 + draw(scale) * rows + draw(scale) * columns + 0.2 * rng.normal(0, 1, shape)


@st.composite
def pixel_counts(draw) -> PixelCounts:
    seeds, images, classes = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    union = rng.integers(0, 50, (seeds, images, classes)) * rng.integers(0, 2, (seeds, images, classes))
    union[:, 0, 0] += 1  # something is there
    return named((union * rng.random(union.shape)).astype(np.int64), union)


def named(intersection: np.ndarray, union: np.ndarray) -> PixelCounts:
    seeds, images, classes = union.shape
    return PixelCounts(
        tuple(range(seeds)), tuple(f"{i:03d}" for i in range(images)), tuple("abcdef"[:classes]), intersection, union
    )


def variant(quality: float = 0.7, seeds: int = 3, images: int = 40, rng_seed: int = 0, spread=0.05) -> PixelCounts:
    rng = np.random.default_rng(rng_seed)
    union = np.broadcast_to(np.random.default_rng(99).integers(500, 1500, (images, 2)), (seeds, images, 2)) * 100
    iou = quality + rng.normal(0, spread, (seeds, 1, 1)) / 3 + rng.normal(0, spread, (seeds, images, 2))
    return named(np.rint(union * np.clip(iou, 0, 1)).astype(np.int64), union)


def exact(quality: float, seeds: int = 3, spread: float = 0.0, rng_seed: int = 0) -> PixelCounts:
    rng, union = np.random.default_rng(rng_seed), np.full((seeds, 50, 1), 100_000)
    iou = quality + rng.normal(0, spread, union.shape) + rng.normal(0, spread / 5, (seeds, 1, 1))
    return named(np.rint(union * np.clip(iou, 0, 1)).astype(np.int64), union)


@settings(max_examples=30)
@given(pixel_counts())
def test_miou_and_influence_agree_with_loops(counts):
    for s in range(len(counts.seeds)):
        ious, values = [], np.zeros(len(counts.images))
        present = [k for k in range(len(counts.classes)) if sum(counts.union[s, :, k]) > 0]
        for k in present:
            inter, union = sum(counts.intersection[s, :, k]), sum(counts.union[s, :, k])
            ious.append(inter / union)
            for i in range(len(counts.images)):
                rest = counts.intersection[s, i, k] - ious[-1] * counts.union[s, i, k]
                values[i] += (ious[-1] + len(counts.images) * rest / union) / len(present)
        assert counts.miou()[s] == pytest.approx(np.mean(ious))
        assert counts.influence()[s] == pytest.approx(values)
        assert counts.influence()[s].mean() == pytest.approx(counts.miou()[s], abs=1e-12)


def test_influence_is_the_change_when_an_image_is_left_out():
    rng = np.random.default_rng(0)
    union = rng.integers(800, 1200, (1, 400, 3))
    intersection = (union * rng.uniform(0.4, 0.9, union.shape)).astype(np.int64)
    counts, without = named(intersection, union), named(intersection[:, 1:], union[:, 1:])
    change = counts.miou()[0] - without.miou()[0]
    assert (counts.influence()[0, 0] - counts.miou()[0]) / 399 == pytest.approx(change, rel=0.01)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"seeds": (0, 0)}, "seeds"),
        ({"images": ("x", "x")}, "images"),
        ({"images": ("x",)}, "shape"),
        ({"intersection": np.full((2, 2, 1), 9)}, "intersection"),
        ({"intersection": np.zeros((2, 2, 1), int), "union": np.zeros((2, 2, 1), int)}, "union"),
    ],
)
def test_impossible_counts_are_refused(change, argument):
    good = {"seeds": (0, 1), "images": ("x", "y"), "classes": ("pet",)}
    good |= {"intersection": np.ones((2, 2, 1), int), "union": np.full((2, 2, 1), 2)}
    PixelCounts(**good)
    with pytest.raises(SegaeError, match=argument):
        PixelCounts(**{**good, **change})


@settings(max_examples=30)
@given(tables())
def test_the_variance_parts_agree_with_loops_over_the_anova_table(table):
    seeds, images = table.shape
    mean = table.mean()
    ms_seed = images * sum((row.mean() - mean) ** 2 for row in table) / (seeds - 1)
    ms_image = seeds * sum((column.mean() - mean) ** 2 for column in table.T) / (images - 1)
    rest = sum(
        (table[s, i] - table[s].mean() - table[:, i].mean() + mean) ** 2 for s in range(seeds) for i in range(images)
    )
    ms_rest = rest / ((seeds - 1) * (images - 1))
    result = crossed_mean(table)
    assert result.estimate == pytest.approx(mean)
    parts = [result.seed, result.image, result.residual]
    assert [part * table.size for part in parts] == pytest.approx([ms_seed, ms_image, ms_rest])
    if ms_image > ms_rest:
        assert result.variance * table.size == pytest.approx(ms_seed + ms_image - ms_rest)
    components = max(ms_seed - ms_rest, 0) / images, max(ms_image - ms_rest, 0) / seeds, ms_rest
    assert result.value_variance() == pytest.approx(sum(components))


@settings(max_examples=30)
@given(tables(), st.floats(0.01, 0.99))
def test_interval_and_test_agree_and_are_no_surer_than_one_way(table, level):
    result = crossed_mean(table)
    half = result.half_width(level)
    assert result.p_value(result.estimate + half) == pytest.approx(1 - level, rel=1e-4)
    assert result.p_value(result.estimate - 0.99 * half) > 1 - level > result.p_value(result.estimate - 1.01 * half)
    for means in (table.mean(axis=0), table.mean(axis=1)):
        assert half >= stats.t.isf((1 - level) / 2, len(means) - 1) * stats.sem(means) * (1 - 1e-6)
        assert result.p_value() >= stats.ttest_1samp(means, 0).pvalue * (1 - 1e-9)
    stack = np.stack([table, 2 * table, -table])
    assert crossed_mean(stack).p_value(0.1) == pytest.approx([float(crossed_mean(one).p_value(0.1)) for one in stack])


def test_mean_interval_covers_what_it_is_given():
    both, narrow = mean_interval(variant()), mean_interval(variant(), level=0.8)
    assert both.estimate == pytest.approx(variant().miou().mean())
    assert both.low < narrow.low < both.estimate < narrow.high < both.high
    assert both == mean_interval(variant().influence())
    images = mean_interval(variant(seeds=1))
    expected = stats.ttest_1samp(variant(seeds=1).influence()[0], 0).confidence_interval(0.95)
    assert (images.low, images.high) == pytest.approx((expected.low, expected.high))
    seeds = mean_interval([0.5, 0.52, 0.57], level=0.9)
    expected = stats.ttest_1samp([0.5, 0.52, 0.57], 0).confidence_interval(0.9)
    assert (seeds.low, seeds.high) == pytest.approx((expected.low, expected.high))
    assert [one.over for one in (both, images, seeds)] == ["seeds and images", "images", "seeds"]
    assert np.isnan([mean_interval([0.5]).low, mean_interval([0.5]).high]).all()


def test_comparing_the_other_way_round_turns_every_sign():
    a, b = variant(0.7), variant(0.65, rng_seed=1)
    one, other = compare(a, b), compare(b, a)
    assert one.difference.estimate == pytest.approx(a.miou().mean() - b.miou().mean())
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.bootstrap.low == pytest.approx(-other.bootstrap.high)
    assert one.effect_size == pytest.approx(-other.effect_size)
    assert (one.effect_size > 0, one.pairs) == (True, 120)
    assert one.p == pytest.approx(other.p)
    same = compare(a, a)
    assert (same.p, same.effect_size, same.difference.low, same.bootstrap.high) == (1.0, 0.0, 0.0, 0.0)


def test_the_order_of_seeds_images_and_classes_does_not_matter():
    a, b = variant(0.7), variant(0.65, rng_seed=1)
    order = np.random.default_rng(3).permutation(3), np.random.default_rng(3).permutation(40), np.array([1, 0])
    names = [
        tuple(np.array(old, object)[place]) for old, place in zip((b.seeds, b.images, b.classes), order, strict=True)
    ]
    mixed = PixelCounts(*names, b.intersection[np.ix_(*order)], b.union[np.ix_(*order)])
    assert compare(a, mixed) == compare(a, b)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.0, 0.02))
def test_p_is_below_the_level_where_the_interval_excludes_zero(rng_seed, gain):
    found = compare(variant(0.7 + gain, rng_seed=rng_seed), variant(0.7, rng_seed=rng_seed + 1), resamples=9)
    assert (found.difference.low > 0 or found.difference.high < 0) == (found.p < 0.05)


def test_the_bootstrap_of_images_agrees_with_a_loop_and_is_repeated_by_its_seed():
    a, b = variant(0.7, images=60), variant(0.66, images=60, rng_seed=1)
    rng, gains = np.random.default_rng(5), []
    for _ in range(2000):
        pick = rng.integers(0, 60, 60)
        ratio = [np.mean(x.intersection[:, pick].sum(1) / x.union[:, pick].sum(1)) for x in (a, b)]
        gains.append(ratio[0] - ratio[1])
    result, width = compare(a, b, resamples=4000).bootstrap, np.std(gains)
    # BCa moves the ends of the plain percentiles by a small part of their distance
    assert [result.low, result.high] == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.35 * width)
    assert result.high - result.low == pytest.approx(3.92 * width, rel=0.1)
    assert compare(a, b, seed=4) == compare(a, b, seed=4) != compare(a, b, seed=5)


def test_a_class_of_few_images_is_left_out_where_a_sample_has_none():
    a, b = variant(0.7), variant(0.65, rng_seed=1)
    rare = np.where(np.arange(40) == 7, 9, 0)[None, :, None].repeat(3, 0)
    both = [named(*(np.concatenate([x, rare], 2) for x in (one.intersection, one.union))) for one in (a, b)]
    result = compare(*both)
    assert np.isfinite([result.bootstrap.low, result.bootstrap.high, result.p]).all()


def test_scores_of_seeds_alone_give_the_paired_t_test():
    a, b = [0.74, 0.75, 0.73], [0.69, 0.71, 0.69]
    found, expected = compare(a, b), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference.low == pytest.approx(expected.confidence_interval(0.95).low)
    assert found.bootstrap == found.difference
    assert found.effect_size == pytest.approx(np.mean(np.subtract(a, b)) / np.std(np.subtract(a, b), ddof=1))


def test_holm_multiplies_the_smallest_p_by_the_number_of_comparisons():
    one = compare(variant(0.7), variant(0.65, rng_seed=1), resamples=9)
    adjusted = adjust_p_values([replace(one, p=p) for p in (0.04, 0.01, 0.03)])
    assert [item.p_adjusted for item in adjusted] == pytest.approx([0.06, 0.03, 0.06])
    assert [item.p for item in adjusted] == [0.04, 0.01, 0.03]
    assert adjust_p_values([]) == []


def test_pairs_that_are_missing_are_named():
    a = variant()
    with pytest.raises(SegaeError, match=r"seeds .*got 1"):
        compare(a, a.select_seeds([0, 2]))
    with pytest.raises(SegaeError, match=r"images .*new"):
        compare(replace(a, images=("new", *a.images[1:])), a)
    with pytest.raises(SegaeError, match="shape"):
        compare([0.1, 0.2], [0.1])


@pytest.mark.parametrize(
    ("scores", "level", "argument"),
    [
        (variant(), 95, "level"),
        ([0.1, 0.2], 1, "level"),
        (np.ones((2, 1)), 0.95, "images"),
        ([0.1, float("nan")], 0.95, "nan"),
        ([[0.1, np.nan], [0.2, 0.3]], 0.95, "finite"),
        ([], 0.95, "scores"),
    ],
)
def test_what_allows_no_interval_is_refused(scores, level, argument):
    with pytest.raises(SegaeError, match=argument):
        mean_interval(scores, level)


RISING = {10: exact(0.4), 100: exact(0.6), 1000: exact(0.7)}


@pytest.mark.parametrize(("quality", "labels"), [(0.4, 10), (0.5, 10**1.5), (0.6, 100), (0.65, 10**2.5), (0.7, 1000)])
def test_a_reference_curve_is_straight_in_the_logarithm_of_the_labels(quality, labels):
    (worth,) = worth_in_labels({5: exact(quality)}, RISING)
    assert (worth.budget, worth.labels) == (5, pytest.approx(labels))
    assert (worth.low or labels) <= labels * 1.001
    assert (worth.high or labels) >= labels * 0.999


def test_outside_the_budgets_only_the_side_is_known():
    above, below = worth_in_labels({10: exact(0.8), 20: exact(0.3)}, RISING)
    assert (above.labels, above.low, above.high, above.note) == (None, 1000, None, ABOVE)
    assert (below.labels, below.low, below.high, below.note) == (None, None, 10, BELOW)
    (single,) = worth_in_labels({10: exact(0.5)}, {100: exact(0.4)})
    assert (single.labels, single.low, single.note) == (None, 100, ABOVE)
    (one_seed,) = worth_in_labels({10: exact(0.5, seeds=1)}, {10: exact(0.4, seeds=1), 100: exact(0.6, seeds=1)})
    assert "over images only" in one_seed.note


def test_a_curve_that_falls_is_mended_by_the_closest_rising_one():
    measured = {10: 0.4, 100: 0.62, 1000: 0.58, 10_000: 0.7}
    (worth,) = worth_in_labels({5: exact(0.6)}, {labels: exact(quality) for labels, quality in measured.items()})
    assert worth.labels == pytest.approx(100)  # the flat part at 0.6 begins there


def test_the_interval_of_labels_ends_where_the_paired_test_begins_to_reject():
    reference = {labels: exact(q, spread=0.05, rng_seed=n) for n, (labels, q) in enumerate([(10, 0.4), (1000, 0.8)])}
    mine = exact(0.6, spread=0.05, rng_seed=9)
    (worth,), (wider,) = (worth_in_labels({10: mine}, reference, level=level) for level in (0.95, 0.99))
    assert 10 < wider.low < worth.low < worth.labels < worth.high < wider.high < 1000
    assert all(compare(mine, other, resamples=9).p < 0.05 for other in reference.values())
    flat = {labels: exact(q, spread=0.1, rng_seed=n) for n, (labels, q) in enumerate([(10, 0.590), (1000, 0.600)])}
    (open_worth,) = worth_in_labels({10: exact(0.595, spread=0.1, rng_seed=5)}, flat)
    assert (open_worth.low, open_worth.high) == (None, None)


@pytest.mark.parametrize(
    ("mine", "reference", "level", "argument"),
    [
        ({10: exact(0.5)}, {}, 0.95, "reference"),
        ({0: exact(0.5)}, RISING, 0.95, r"variant .*\[0\]"),
        ({10: exact(0.5, seeds=2)}, RISING, 0.95, "seeds"),
        ({10: exact(0.5)}, RISING, 95, "level"),
    ],
)
def test_what_cannot_be_worth_labels_is_refused(mine, reference, level, argument):
    with pytest.raises(SegaeError, match=argument):
        worth_in_labels(mine, reference, level)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_and_the_test_rejects_at_its_rate(seeds):
    """Simulate 2,000 benchmarks with a known mean; standard deviations: images 0.4, seeds 0.1, single scores 0.2."""
    rng, simulations, hits = np.random.default_rng(100 + seeds), 2000, np.zeros(3)
    for run in range(simulations):
        images = (100, 200, 300)[run % 3]
        difficulty = rng.normal(0, 0.4, images)
        a, b = (
            difficulty
            + rng.normal(0, 0.12, images)
            + rng.normal(0, 0.1, (seeds, 1))
            + rng.normal(0, 0.2, (seeds, images))
            for _ in range(2)
        )
        mean, paired = mean_interval(a), crossed_mean(a - b)
        # the difference over images alone, which leaves the seeds out: the check must be able to fail
        hits += (mean.low <= 0 <= mean.high, paired.p_value() < 0.05, abs(paired.estimate) < 1.96 * paired.image**0.5)
    covered, rejected, naive = hits / simulations
    assert 0.93 <= covered <= 0.97
    assert abs(rejected - 0.05) < 3.3 * (0.05 * 0.95 / simulations) ** 0.5  # 999 times in 1,000
    assert naive < 0.85


@pytest.mark.slow
def test_the_interval_of_labels_covers_the_true_number():
    """Simulate 1,000 benchmarks of three seeds; deviations: images 0.1 and 0.04, seeds 0.01, single scores 0.08."""
    rng, simulations, seeds, images = np.random.default_rng(0), 1000, 3, 100
    truth = {10: 0.45, 100: 0.55, 1000: 0.65}
    labels, covered, closed = 10**2.3, 0, 0
    for _ in range(simulations):
        difficulty = rng.normal(0, 0.1, images)

        def measure(quality, difficulty=difficulty):
            change = difficulty + rng.normal(0, 0.04, images) + rng.normal(0, 0.01, (seeds, 1))
            scores = quality + change + rng.normal(0, 0.08, (seeds, images))
            union = np.full((seeds, images, 1), 10_000)
            return named((scores[..., None] * union).round().clip(0, 10_000).astype(np.int64), union)

        (worth,) = worth_in_labels({30: measure(0.58)}, {budget: measure(score) for budget, score in truth.items()})
        covered += (worth.low or 0) <= labels <= (worth.high or np.inf)
        closed += worth.low is not None and worth.high is not None
    assert 0.93 <= covered / simulations <= 0.98
    assert closed > simulations / 2  # an open interval covers easily
