"""Intervals of scores, paired comparisons of two arms, and the correction for how many comparisons there are.

What each interval covers, and the simulations behind the choice, stand in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segae.bench.crossed import Crossed, crossed
from segae.bench.scores import ArmScores
from segae.errors import SegaeError


@dataclass(frozen=True)
class Interval:
    """A number and the range that it could as well have.

    Attributes:
        estimate: the number.
        low: lower end; NaN where nothing can be said.
        high: upper end; NaN where nothing can be said.
        level: how often such intervals hold the truth, in (0, 1).
        over: what is drawn anew in that sense: ``seeds and images``, ``seeds`` or ``images``; the rest is fixed.
    """

    estimate: float
    low: float
    high: float
    level: float
    over: str


@dataclass(frozen=True)
class Comparison:
    """How one arm differs from another on the same images with the same seeds.

    Attributes:
        difference: of the data-set mIoU, with its interval over new seeds and new images.
        bootstrap: the same difference, with the interval over new images for exactly these trained models.
        p: two-sided, of no difference; below 1 - level exactly where ``difference`` leaves 0 out.
        p_adjusted: after Holm's correction by :func:`adjust`; before it the same as ``p``.
        effect_size: Westfall, Kenny and Judd's d, the standardised mean difference of a crossed design.
        pairs: how many pairs of values it rests on, seeds times images.
    """

    difference: Interval
    bootstrap: Interval
    p: float
    p_adjusted: float
    effect_size: float
    pairs: int


def mean_interval(scores: ArmScores, level: float = 0.95) -> Interval:
    """The mean over seeds of the data-set mIoU, with its interval over new seeds and new test images.

    With one seed the interval is over images only, and says so.

    Raises:
        SegaeError: fewer than two images, or ``level`` is not in (0, 1).
    """
    return _interval(crossed(scores.influence()), level)


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student's t interval over seeds, where there are no counts of single images.

    It says nothing of other test images. With one value there is no interval: its ends are NaN.

    Raises:
        SegaeError: no value, one that is not finite, or ``level`` is not in (0, 1).
    """
    _require_level(level)
    if len(values) == 0 or not np.isfinite(values).all():
        raise SegaeError(
            f"The values of the seeds are {list(values)}, but finite numbers are wanted: leave others out."
        )
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"), level, "seeds")
    half = float(stats.t.isf((1 - level) / 2, len(values) - 1)) * float(stats.sem(values))
    return Interval(mean, mean - half, mean + half, level, "seeds")


def difference_interval(a: ArmScores, b: ArmScores, level: float = 0.95) -> Interval:
    """Arm ``a`` minus arm ``b``, paired by seed and image: what :func:`compare` gives, without test and bootstrap.

    Raises:
        SegaeError: a seed, an image or a class is in one arm only, there are fewer than two images, or ``level`` is
            not in (0, 1).
    """
    return _interval(crossed(a.influence() - b.matched_to(a).influence()), level)


def compare(a: ArmScores, b: ArmScores, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Arm ``a`` minus arm ``b``, paired by seed and image.

    Args:
        a: one arm.
        b: the other, with the same seeds, images and classes in any order.
        level: of both intervals.
        resamples: how many bootstrap samples of the images are drawn.
        seed: of the bootstrap.

    Returns:
        The comparison. Its effect size is d of Westfall, Kenny and Judd (2014, doi 10.1037/xge0000014): the
        difference over the standard deviation of one value (one seed on one image) within an arm, which is the root
        of the sum of the variance components, averaged over both arms. Neither more seeds nor more images make it
        larger. The bootstrap interval is the BCa one (Efron 1987).

    Raises:
        SegaeError: a seed, an image or a class is in one arm only, or there are fewer than two images.

    Example:
        >>> union = np.full((2, 3, 1), 10)
        >>> a = ArmScores((0, 1), ("x", "y", "z"), ("pet",), np.array([[[6], [8], [7]], [[7], [8], [6]]]), union)
        >>> compare(a, a, resamples=10).p
        1.0
    """
    b = b.matched_to(a)
    table_a, table_b = a.influence(), b.influence()
    paired = crossed(table_a - table_b)
    difference, p = _interval(paired, level), float(paired.p_value())
    spread = float(np.sqrt((crossed(table_a).spread() + crossed(table_b).spread()) / 2))
    effect = difference.estimate / spread if spread > 0 else float(np.sign(difference.estimate)) * float("inf")
    return Comparison(
        difference=difference,
        bootstrap=_bootstrap(a, b, level, resamples, np.random.default_rng(seed)),
        p=p,
        p_adjusted=p,
        effect_size=0.0 if difference.estimate == 0 else effect,
        pairs=len(a.seeds) * len(a.images),
    )


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p values that hold for all of them at once (Holm 1979).

    The chance that even one comparison without a true difference has ``p_adjusted`` below alpha is at most alpha,
    however the comparisons depend on each other; arms that share a reference do.
    """
    if not comparisons:
        return []
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests([comparison.p for comparison in comparisons], method="holm")[1]
    return [replace(one, p_adjusted=float(p)) for one, p in zip(comparisons, adjusted, strict=True)]


def _interval(table: Crossed, level: float) -> Interval:
    _require_level(level)
    estimate, half = float(table.estimate), table.half_width(level)
    return Interval(estimate, estimate - half, estimate + half, level, over(table.seeds))


def over(seeds: int) -> str:
    """What an interval from so many seeds covers."""
    return "seeds and images" if seeds > 1 else "images"


def _bootstrap(a: ArmScores, b: ArmScores, level: float, resamples: int, rng: np.random.Generator) -> Interval:
    """Draw test images with repetition, the same for both arms and all seeds, and take the mIoU of the sums anew.

    scipy draws image numbers and not values: how often each image came turns the sums of a sample into one matrix
    product, and the ratios are of sums, as in the score itself.
    """
    images = len(a.images)
    counts = [np.moveaxis(part, 1, 0) for part in (a.intersection, a.union, b.intersection, b.union)]
    shape = (4, len(a.seeds), len(a.classes))
    flat = np.stack(counts, axis=1).reshape(images, -1).astype(np.float64)

    def difference(drawn: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        samples = np.moveaxis(drawn, axis, -1).reshape(-1, drawn.shape[axis])
        cells = samples + images * np.arange(len(samples))[:, None]
        times = np.bincount(cells.ravel(), minlength=len(samples) * images).reshape(-1, images)
        sums = (times @ flat).reshape(-1, *shape)
        # a class that no image of the sample has is NaN and has no part in its mean
        with np.errstate(invalid="ignore"):
            iou_a, iou_b = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
        gain = np.nanmean(iou_a, axis=-1).mean(axis=-1) - np.nanmean(iou_b, axis=-1).mean(axis=-1)
        return gain.reshape(np.moveaxis(drawn, axis, -1).shape[:-1])

    estimate = float(difference(np.arange(images)))
    if not np.ptp((a.influence() - b.influence()).mean(axis=0)):  # every sample gives the same
        return Interval(estimate, estimate, estimate, level, "images")
    ends = stats.bootstrap(
        (np.arange(images),),
        difference,
        n_resamples=resamples,
        batch=256,  # at once; all at once needs 42 bytes times the number of images squared
        confidence_level=level,
        method="BCa",
        rng=rng,
    ).confidence_interval
    return Interval(estimate, float(ends.low), float(ends.high), level, "images")


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise SegaeError(f"The level is {level}, but an interval wants one between 0 and 1: level=0.95.")
