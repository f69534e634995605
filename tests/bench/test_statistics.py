"""Intervals and comparisons: they agree with naive computations, with each other, and with what must not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segae.bench.crossed import crossed
from segae.bench.scores import ArmScores
from segae.bench.statistics import adjust, compare, mean_interval, seed_interval
from segae.errors import SegaeError


@st.composite
def tables(draw) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(2, 4)), draw(st.integers(2, 9))
    scale = st.sampled_from([0.0, 0.1, 1.0])
    rows, columns = rng.normal(0, 1, (shape[0], 1)), rng.normal(0, 1, (1, shape[1]))
    return 0.3 + draw(scale) * rows + draw(scale) * columns + 0.2 * rng.normal(0, 1, shape)


def arm(quality: float = 0.7, seeds: int = 3, images: int = 40, rng_seed: int = 0, spread: float = 0.05) -> ArmScores:
    rng = np.random.default_rng(rng_seed)
    union = np.broadcast_to(np.random.default_rng(99).integers(500, 1500, (images, 2)), (seeds, images, 2))
    iou = quality + rng.normal(0, spread, (seeds, 1, 1)) / 3 + rng.normal(0, spread, (seeds, images, 2))
    intersection = (union * np.clip(iou, 0, 1)).astype(np.int64)
    return ArmScores(tuple(range(seeds)), tuple(f"{i:02d}" for i in range(images)), ("a", "b"), intersection, union)


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
    result = crossed(table)
    assert result.estimate == pytest.approx(mean)
    assert result.seed * table.size == pytest.approx(ms_seed)
    assert result.image * table.size == pytest.approx(ms_image)
    assert result.residual * table.size == pytest.approx(ms_rest)
    if ms_image > ms_rest:
        assert result.both * table.size == pytest.approx(ms_seed + ms_image - ms_rest)
    components = max(ms_seed - ms_rest, 0) / images, max(ms_image - ms_rest, 0) / seeds, ms_rest
    assert result.spread() == pytest.approx(sum(components))


@given(tables(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_is_no_narrower_than_either_one_way_interval(table, level):
    half, result = crossed(table).half_width(level), crossed(table)
    for means in (table.mean(axis=0), table.mean(axis=1)):
        one_way = stats.t.isf((1 - level) / 2, len(means) - 1) * stats.sem(means)
        assert half >= one_way * (1 - 1e-6)
        # and the test is no surer than scipy's one-way test
        assert result.p_value() >= stats.ttest_1samp(means, 0).pvalue * (1 - 1e-9)


@given(tables(), st.floats(0.01, 0.99))
def test_the_ends_of_an_interval_are_where_the_test_is_at_its_level(table, level):
    result = crossed(table)
    half = result.half_width(level)
    assert result.p_value(result.estimate + half) == pytest.approx(1 - level, rel=1e-4)
    assert result.p_value(result.estimate - 0.99 * half) > 1 - level > result.p_value(result.estimate - 1.01 * half)
    assert crossed(table).half_width(level) <= crossed(table).half_width(level + (1 - level) / 2)


@given(tables())
def test_a_stack_of_tables_is_tested_like_each_alone(table):
    stack = np.stack([table, 2 * table, -table])
    alone = [float(crossed(one).p_value(0.1)) for one in stack]
    assert crossed(stack).p_value(0.1) == pytest.approx(alone)


def test_where_images_do_not_differ_the_interval_is_that_over_seeds():
    table = np.array([[0.1], [0.2], [0.4]]) + np.array([[1, -1, 1, -1], [-1, 1, 1, -1], [1, 1, -1, -1]]) * 1e-6
    expected = seed_interval([0.1, 0.2, 0.4])
    assert crossed(table).half_width(0.95) == pytest.approx((expected.high - expected.low) / 2, rel=1e-3)


def test_mean_interval_has_the_miou_in_its_middle_and_shrinks_with_the_level():
    scores = arm()
    interval, narrow = mean_interval(scores), mean_interval(scores, level=0.8)
    assert interval.estimate == pytest.approx(scores.miou().mean())
    assert interval.low < narrow.low < interval.estimate < narrow.high < interval.high
    assert interval.over == "seeds and images"
    assert (interval.level, narrow.level) == (0.95, 0.8)


def test_one_seed_gives_students_interval_over_images():
    scores = arm(seeds=1)
    interval = mean_interval(scores)
    expected = stats.ttest_1samp(scores.influence()[0], 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.over == "images"
    assert compare(scores, arm(0.6, seeds=1, rng_seed=1), resamples=50).difference.over == "images"


def test_seed_interval_is_scipys():
    values = [0.5, 0.52, 0.57]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = seed_interval(values, level=0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.over == "seeds"
    alone = seed_interval([0.5])
    assert alone.estimate == 0.5
    assert np.isnan([alone.low, alone.high]).all()


def test_comparing_the_other_way_round_turns_every_sign():
    a, b = arm(0.7), arm(0.65, rng_seed=1)
    one, other = compare(a, b), compare(b, a)
    assert one.difference.estimate == pytest.approx(a.miou().mean() - b.miou().mean())
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.bootstrap.low == pytest.approx(-other.bootstrap.high)
    assert one.effect_size == pytest.approx(-other.effect_size)
    assert one.effect_size > 0
    assert one.p == pytest.approx(other.p)
    assert one.pairs == 120


def test_the_order_of_seeds_images_and_classes_does_not_matter():
    a, b = arm(0.7), arm(0.65, rng_seed=1)
    rng = np.random.default_rng(3)
    order = rng.permutation(3), rng.permutation(40), np.array([1, 0])
    old = b.seeds, b.images, b.classes
    names = [tuple(np.array(values, object)[place]) for values, place in zip(old, order, strict=True)]
    mixed = ArmScores(*names, b.intersection[np.ix_(*order)], b.union[np.ix_(*order)])
    assert compare(a, mixed) == compare(a, b)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.0, 0.02))
def test_p_is_below_the_level_where_the_interval_leaves_zero_out(rng_seed, gain):
    comparison = compare(arm(0.7 + gain, rng_seed=rng_seed), arm(0.7, rng_seed=rng_seed + 1), resamples=9)
    outside = comparison.difference.low > 0 or comparison.difference.high < 0
    assert outside == (comparison.p < 0.05)


def test_the_bootstrap_of_images_agrees_with_a_loop():
    a, b = arm(0.7, images=60), arm(0.66, images=60, rng_seed=1)
    rng, gains = np.random.default_rng(5), []
    for _ in range(2000):
        pick = rng.integers(0, 60, 60)
        ratio = [np.mean(x.intersection[:, pick].sum(1) / x.union[:, pick].sum(1)) for x in (a, b)]
        gains.append(ratio[0] - ratio[1])
    result = compare(a, b, resamples=4000).bootstrap
    assert result.estimate == pytest.approx(a.miou().mean() - b.miou().mean())
    width = np.std(gains)
    # BCa moves the ends of the plain percentiles by a small part of their distance
    assert [result.low, result.high] == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.35 * width)
    assert result.high - result.low == pytest.approx(3.92 * width, rel=0.1)
    assert result.over == "images"


def test_a_bootstrap_is_repeated_by_its_seed():
    a, b = arm(0.7), arm(0.65, rng_seed=1)
    assert compare(a, b, seed=4) == compare(a, b, seed=4)
    assert compare(a, b, seed=4).bootstrap != compare(a, b, seed=5).bootstrap


def test_a_class_of_few_images_is_left_out_where_a_sample_has_none():
    a, b = arm(0.7), arm(0.65, rng_seed=1)
    rare = [np.concatenate([x, np.where(np.arange(40) == 7, 9, 0)[None, :, None].repeat(3, 0)], 2) for x in (
        a.intersection, a.union, b.intersection, b.union)]  # fmt: skip
    one = ArmScores(a.seeds, a.images, ("a", "b", "rare"), rare[0], rare[1])
    result = compare(one, replace(one, intersection=rare[2], union=rare[3]))
    assert np.isfinite([result.bootstrap.low, result.bootstrap.high, result.p]).all()


def test_an_arm_does_not_differ_from_itself():
    a = arm()
    same = compare(a, a)
    assert (same.p, same.effect_size, same.difference.estimate) == (1.0, 0.0, 0.0)
    assert (same.difference.low, same.difference.high, same.bootstrap.low, same.bootstrap.high) == (0, 0, 0, 0)


def test_the_effect_size_is_the_difference_in_spreads_of_one_value():
    a, b = arm(0.7, images=400), arm(0.6, images=400, rng_seed=1)
    spread = [x.influence().std() for x in (a, b)]
    expected = (a.miou().mean() - b.miou().mean()) / np.sqrt(np.mean(np.square(spread)))
    assert compare(a, b, resamples=9).effect_size == pytest.approx(expected, rel=0.05)


def test_holm_multiplies_the_smallest_p_by_how_many_there_are():
    one = compare(arm(0.7), arm(0.65, rng_seed=1), resamples=9)
    adjusted = adjust([replace(one, p=p) for p in (0.04, 0.01, 0.03)])
    assert [item.p_adjusted for item in adjusted] == pytest.approx([0.06, 0.03, 0.06])
    assert [item.p for item in adjusted] == [0.04, 0.01, 0.03]
    assert adjust([]) == []


def test_pairs_that_are_missing_are_named():
    a = arm()
    fewer = ArmScores((0, 2), a.images, a.classes, a.intersection[[0, 2]], a.union[[0, 2]])
    with pytest.raises(SegaeError, match=r"seeds differ: 1 \(1 in all\)"):
        compare(a, fewer)
    other = replace(a, images=("new", *a.images[1:]))
    with pytest.raises(SegaeError, match=r"images differ: 00, new \(2 in all\)"):
        compare(other, a)


def test_what_allows_no_interval_is_refused():
    a = arm()
    with pytest.raises(SegaeError, match="level is 95"):
        mean_interval(a, level=95)
    with pytest.raises(SegaeError, match="level is 1"):
        seed_interval([0.1, 0.2], level=1)
    with pytest.raises(SegaeError, match="2 images"):
        mean_interval(ArmScores((0, 1), ("x",), a.classes, a.intersection[:2, :1], a.union[:2, :1]))
    with pytest.raises(SegaeError, match="nan"):
        seed_interval([0.1, float("nan")])
    with pytest.raises(SegaeError, match="finite"):
        crossed([[0.1, np.nan], [0.2, 0.3]])
