"""Confidence intervals, paired comparisons with Holm's correction, and what pretrained weights are worth in labels.

Every seed's model is scored on every test image: a crossed design, in which a seed moves a whole row of the table and
an image a whole column. The intervals cover new seeds and new images at once. docs/statistics.md has the simulations
behind the choice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from statsmodels.stats.multitest import multipletests

from segae._io import check_range
from segae.errors import SegaeError

Array = NDArray[np.float64]

ABOVE, BELOW = "above the largest budget", "below the smallest budget"
_GRID_POINTS = 400  # label numbers tried between the smallest and the largest budget: each 1 to 2 % above the last
_ROUNDING = 1e-9  # of a mean IoU: equal scores may differ in their last bits


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Pixel counts of one variant at one label budget: all its seeds, each scored on the same test images.

    ``intersection`` and ``union`` are int64 (S, N, K) for S seeds, N images and K classes: pixels where prediction
    and truth are both the class, and where at least one is.

    Raises:
        SegaeError: shapes and names disagree, a name is there twice, an intersection is negative or larger than its
            union, or a seed has no pixel at all.

    Example:
        >>> counts = PixelCounts((0,), ("a", "b"), ("pet",), np.array([[[1], [2]]]), np.array([[[2], [6]]]))
        >>> counts.miou().tolist()
        [0.375]
    """

    seeds: tuple[int, ...]
    images: tuple[str, ...]
    classes: tuple[str, ...]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = (len(self.seeds), len(self.images), len(self.classes))
        if self.intersection.shape != shape or self.union.shape != shape or 0 in shape:
            found = f"{self.intersection.shape} and {self.union.shape}"
            raise SegaeError(f"intersection and union must have the shape {shape}, each at least 1, got {found}")
        for argument in ("seeds", "images", "classes"):
            if repeated := [name for name, uses in Counter(getattr(self, argument)).items() if uses > 1]:
                raise SegaeError(f"{argument} must be distinct, got {repeated[0]!r} twice")
        if (self.intersection < 0).any() or (self.intersection > self.union).any():
            raise SegaeError("intersection must lie in [0, union]; count both at the same resolution")
        if not (filled := self.union.any(axis=(1, 2))).all():
            raise SegaeError(f"union must have a pixel for every seed, got none for seed {self.seeds[filled.argmin()]}")

    def iou(self) -> Array:
        """IoU of each seed and class, (S, K): summed intersections over summed unions; NaN for an absent class."""
        return _ratio(self.intersection.sum(axis=1), self.union.sum(axis=1))

    def miou(self) -> Array:
        """Data-set mIoU of each seed, (S,): the mean over the classes that the seed has in truth or prediction."""
        return np.asarray(np.nanmean(self.iou(), axis=-1))

    def influence(self) -> Array:
        """Contribution of each image to its seed's mIoU, (S, N); the mean over images is exactly ``miou()``.

        A ratio of sums is no mean over images. Its first-order expansion gives image i the value
        ``IoU_c + N (I_ic - IoU_c U_ic) / sum_j U_jc`` for class c (the infinitesimal jackknife, Efron 1982; Woodruff's
        linearization of a ratio). Values may leave [0, 1].
        """
        iou_sk = self.iou()
        residual = self.intersection - np.nan_to_num(iou_sk)[:, None] * self.union
        per_class = iou_sk[:, None] + len(self.images) * _ratio(residual, self.union.sum(axis=1)[:, None])
        return np.asarray(np.nanmean(per_class, axis=-1))

    def select_seeds(self, seeds: Sequence[int]) -> "PixelCounts":
        """Keep some of the seeds, in the order given."""
        at = [self.seeds.index(seed) for seed in seeds]
        return PixelCounts(tuple(seeds), self.images, self.classes, self.intersection[at], self.union[at])

    def match_order(self, other: "PixelCounts") -> "PixelCounts":
        """Bring seeds, images and classes, which must be the same ones, into the order of ``other``."""
        places = []
        for argument in ("seeds", "images", "classes"):
            mine, theirs = getattr(self, argument), getattr(other, argument)
            if odd := sorted(set(mine) ^ set(theirs), key=str):
                shown = ", ".join(map(str, odd[:3])) + (", ..." if len(odd) > 3 else "")
                same = f"{argument} must be the same on both sides for pairing"
                raise SegaeError(f"{same}, got {shown} on one only ({len(odd)})")
            places.append(pd.Index(mine).get_indexer(theirs))
        pick = np.ix_(*places)
        return PixelCounts(other.seeds, other.images, other.classes, self.intersection[pick], self.union[pick])


Scores = PixelCounts | ArrayLike
"""Pixel counts; or a table (seeds, images) of scores; or the scores (seeds,) alone."""
Curve = Mapping[int, PixelCounts]
"""The pixel counts at each label budget."""


@dataclass(frozen=True, eq=False)
class CrossedMean:
    """Mean of a seeds-by-images table, or of a stack of tables, and the parts of its variance.

    The mean squares are those of the two-way random-effects model (Searle, Casella and McCulloch, 1992, chapter 4).

    Attributes:
        estimate: (...), mean over seeds and images.
        seed: (...), MS_seed / (S N): variance of the mean over new seeds, images fixed; 0 with one seed.
        image: (...), MS_image / (S N): variance of the mean over new images, seeds fixed.
        residual: (...), MS_residual / (S N), which is in both; 0 with one seed.
    """

    estimate: Array
    seed: Array
    image: Array
    residual: Array
    seeds: int
    images: int

    @property
    def variance(self) -> Array:
        """Variance of the mean over new seeds and new images, (MS_seed + MS_image - MS_residual) / (S N).

        MS_image below MS_residual means that images do not matter more than noise: their part is then 0.
        """
        return self.seed + np.maximum(self.image - self.residual, 0)

    def p_value(self, value: ArrayLike = 0.0) -> Array:
        """Two-sided p value of the hypothesis that the true mean is ``value``: (...), in [0, 1].

        A mean of the tails of Student's t with S - 1 and with N - 1 degrees of freedom, weighted by the shares of the
        variance known with as many. It is never below the p over seeds alone or over images alone.
        """
        distance = np.abs(self.estimate - np.asarray(value, np.float64))
        over_images = _two_tails(distance, self.image, self.images - 1)
        if self.seeds == 1:
            return over_images
        both = self.variance
        share = np.divide(self.seed, both, out=np.zeros_like(both), where=both > 0)
        mixed = share * _two_tails(distance, both, self.seeds - 1)
        mixed = mixed + (1 - share) * _two_tails(distance, both, self.images - 1)
        return np.maximum(np.maximum(mixed, over_images), _two_tails(distance, self.seed, self.seeds - 1))

    def half_width(self, level: float) -> float:
        """Half of the interval of all values that a test at ``level`` does not reject; for a single table."""
        alpha = 1 - level
        fewest = (min(self.seeds, self.images) if self.seeds > 1 else self.images) - 1
        # no quantile in p_value is larger than that of the fewest degrees of freedom with the largest variance
        largest = float(np.sqrt(max(self.variance, self.image, self.seed)))
        widest = -float(special.stdtrit(fewest, alpha / 2)) * largest
        if widest == 0:
            return 0.0
        search = {"a": 0, "b": widest * 1.001, "xtol": 1e-9 * widest}
        return float(optimize.brentq(lambda half: float(self.p_value(self.estimate + half)) - alpha, **search))

    def value_variance(self) -> Array:
        """Variance of one value (one seed, one image): the sum of the three variance components, none below 0."""
        seed = np.maximum(self.seed - self.residual, 0) * self.seeds
        image = np.maximum(self.image - self.residual, 0) * self.images
        return seed + image + self.residual * self.seeds * self.images


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    ``over`` says what varies: ``seeds and images``, ``seeds`` or ``images``. The ends are NaN where there is none.
    """

    estimate: float
    low: float
    high: float
    level: float
    over: str


@dataclass(frozen=True)
class Comparison:
    """Difference between two variants on the same images with the same seeds.

    Attributes:
        difference: of the mIoU, with its interval over new seeds and new images.
        bootstrap: the same difference, with the interval over new images for exactly these trained models.
        p: two-sided; below 1 - level exactly where the interval of ``difference`` excludes 0.
        p_adjusted: after Holm's correction by :func:`adjust_p_values`; before it the same as ``p``.
        effect_size: standardized mean difference of a crossed design.
        pairs: number of pairs of values.
    """

    difference: Interval
    bootstrap: Interval
    p: float
    p_adjusted: float
    effect_size: float
    pairs: int


@dataclass(frozen=True)
class LabelWorth:
    """Number of labels with which a reference reaches what a variant reaches with ``budget`` labels.

    It is None outside the reference's budgets, its ends where these do not reach far enough; ``note`` says so.
    """

    labels: float | None
    low: float | None
    high: float | None
    budget: int
    note: str


def crossed_mean(values: ArrayLike) -> CrossedMean:
    """Mean and variance parts of tables (..., S, N), seeds by images; two images at least, all values finite."""
    table = np.asarray(values, np.float64)
    if table.ndim < 2 or table.shape[-1] < 2 or table.shape[-2] < 1:
        raise SegaeError(f"values must have at least 1 seed and 2 images, got the shape {table.shape}")
    if not np.isfinite(table).all():
        raise SegaeError("values must be finite for every seed and image, got NaN or infinity")
    seeds, images = table.shape[-2:]
    seed_means, image_means = table.mean(axis=-1), table.mean(axis=-2)
    estimate = seed_means.mean(axis=-1)
    image = image_means.var(axis=-1, ddof=1) / images
    if seeds == 1:
        return CrossedMean(estimate, np.zeros_like(image), image, np.zeros_like(image), seeds, images)
    rest = table - seed_means[..., None] - image_means[..., None, :] + estimate[..., None, None]
    residual = (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (images - 1)) / (seeds * images)
    return CrossedMean(estimate, seed_means.var(axis=-1, ddof=1) / seeds, image, residual, seeds, images)


def mean_interval(scores: Scores, level: float = 0.95) -> Interval:
    """Mean over seeds with its confidence interval over new seeds and, where images are known, new test images.

    Args:
        scores: those of S seeds alone give Student's t interval over seeds. One seed with images gives an interval
            over images, one seed alone gives none.
        level: confidence level in (0, 1).

    Raises:
        SegaeError: fewer than two images, no seed, a value that is not finite, or ``level`` out of range.

    Example:
        >>> interval = mean_interval([0.70, 0.72, 0.71])
        >>> round(interval.estimate, 3), round(interval.low, 3), round(interval.high, 3), interval.over
        (0.71, 0.685, 0.735, 'seeds')
    """
    check_range("level", level, low=0, high=1, low_open=True, high_open=True)
    table = _as_table(scores)
    if table.ndim > 1:
        crossed = crossed_mean(table)
        mean, half = float(crossed.estimate), crossed.half_width(level)
        return Interval(mean, mean - half, mean + half, level, "seeds and images" if crossed.seeds > 1 else "images")
    if not len(table) or not np.isfinite(table).all():
        raise SegaeError(f"scores must be at least 1 finite number, got {table.tolist()}")
    half = stats.t.isf((1 - level) / 2, len(table) - 1) * stats.sem(table) if len(table) > 1 else np.nan
    mean, half = float(np.mean(table)), float(half)
    return Interval(mean, mean - half, mean + half, level, "seeds")


def compare(a: Scores, b: Scores, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Test variant ``a`` minus variant ``b``, paired by seed and image.

    Args:
        a: one variant.
        b: the other, with the same seeds, images and classes: pixel counts in any order, arrays in the same order.
        level: of both intervals.
        resamples: number of bootstrap samples of the images.
        seed: of the bootstrap.

    Returns:
        The comparison. Its effect size is d of Westfall, Kenny and Judd (2014, doi 10.1037/xge0000014): the
        difference over the standard deviation of one value (one seed on one image) within a variant. Neither more
        seeds nor more images make it larger. The bootstrap interval is BCa (Efron 1987); arrays have none, and
        ``bootstrap`` is then ``difference``. Scores of seeds alone give a paired t-test.

    Raises:
        SegaeError: a seed, an image or a class is in one variant only, or there are fewer than two images.

    Example:
        >>> round(compare([0.74, 0.75, 0.73], [0.69, 0.71, 0.69]).difference.estimate, 3)
        0.043
    """
    if isinstance(a, PixelCounts) and isinstance(b, PixelCounts):
        b = b.match_order(a)
    table_a, table_b = _as_table(a), _as_table(b)
    if table_a.shape != table_b.shape:
        raise SegaeError(f"b must have the shape of a for pairing, {table_a.shape}, got {table_b.shape}")
    values = table_a - table_b
    difference = mean_interval(values, level)
    if values.ndim == 1:
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        p = float(stats.ttest_1samp(values, 0).pvalue) if spread else float(not values[0])
        effect = difference.estimate / spread if spread else float("nan")
        return Comparison(difference, difference, p, p, effect, len(values))
    p, bootstrap = float(crossed_mean(values).p_value()), difference
    if isinstance(a, PixelCounts) and isinstance(b, PixelCounts):
        bootstrap = _bootstrap(a, b, level, resamples, np.random.default_rng(seed))
    spread = float(np.sqrt((crossed_mean(table_a).value_variance() + crossed_mean(table_b).value_variance()) / 2))
    effect = difference.estimate / spread if spread > 0 else float(np.sign(difference.estimate)) * float("inf")
    return Comparison(difference, bootstrap, p, p, 0.0 if difference.estimate == 0 else effect, values.size)


def adjust_p_values(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct p values for the number of comparisons (Holm 1979), however they depend on each other."""
    if not comparisons:
        return []
    adjusted = multipletests([one.p for one in comparisons], method="holm")[1]
    return [replace(one, p_adjusted=float(p)) for one, p in zip(comparisons, adjusted, strict=True)]


def worth_in_labels(variant: Curve, reference: Curve, level: float = 0.95) -> list[LabelWorth]:
    """Number of labels at which the reference has the variant's score, for each budget of the variant, ascending.

    Between two budgets the reference's score is linear in the logarithm of the labels. Where the measured curve falls
    with more labels, the closest rising curve is taken (isotonic regression), at its smallest number of labels with
    the score. The interval holds all numbers of labels at which the paired test does not reject equality, as in
    Fieller's interval for a ratio; it is open where the curve is too flat to tell. (A bootstrap over seeds would be
    too narrow: three resampled seeds cannot show how much seeds differ.)

    Args:
        variant: its curve.
        reference: the reference's, with the same seeds and images.
        level: of the intervals, in (0, 1).

    Raises:
        SegaeError: no budget or one below 1 label, other seeds or images somewhere, or ``level`` out of range.
    """
    for argument, budgets in (("variant", variant), ("reference", reference)):
        if not budgets or min(budgets) < 1:
            raise SegaeError(f"{argument} must have label budgets of 1 label or more, got {sorted(budgets)}")
    check_range("level", level, low=0, high=1, low_open=True, high_open=True)
    first = variant[min(variant)]
    known = np.array(sorted(reference), np.float64)
    curve_bsn = np.stack([reference[int(budget)].match_order(first).influence() for budget in known])
    return [
        _worth(budget, variant[budget].match_order(first).influence(), known, curve_bsn, 1 - level)
        for budget in sorted(variant)
    ]


def _worth(budget: int, variant_sn: Array, known: Array, curve_bsn: Array, alpha: float) -> LabelWorth:
    score = float(variant_sn.mean())
    labels, side = _cross(score, known, curve_bsn.mean(axis=(1, 2)))
    tried = np.unique(np.concatenate([known, np.geomspace(known[0], known[-1], _GRID_POINTS)]))
    possible = crossed_mean(variant_sn - _interpolate(tried, known, curve_bsn)).p_value() >= alpha
    # a reference whose curve falls somewhere can be equal in two places: the interval holds both
    ends = [*tried[possible], *([] if labels is None else [labels])]
    # without any possible number the score lies surely beyond the last budget, or before the first
    low = None if possible[0] else float(min(ends, default=known[-1]))
    high = None if possible[-1] else float(max(ends, default=known[0]))
    if labels is None:
        low, high = (low, None) if side == ABOVE else (None, high)
    notes = [side] if side else []
    notes += ["interval open below"] if low is None and side != BELOW else []
    notes += ["interval open above"] if high is None and side != ABOVE else []
    notes += ["interval over images only"] if len(variant_sn) == 1 else []
    return LabelWorth(labels, low, high, budget, "; ".join(notes))


def _cross(score: float, known: Array, means: Array) -> tuple[float | None, str]:
    """The smallest number of labels at which the rising curve has the score, or on which side it lies."""
    rising: Array = optimize.isotonic_regression(means).x
    if score > rising[-1] + _ROUNDING:
        return None, ABOVE
    if score < rising[0] - _ROUNDING:
        return None, BELOW
    after = int(np.searchsorted(rising, score - _ROUNDING))  # the first budget that reaches the score
    if after == 0:
        return float(known[0]), ""
    part = (score - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(np.exp(np.log(known[after - 1]) * (1 - part) + np.log(known[after]) * part)), ""


def _interpolate(labels: Array, known: Array, curve_bsn: Array) -> Array:
    """The reference's values (len(labels), S, N), linear in the logarithm of the labels."""
    place = np.interp(np.log(labels), np.log(known), np.arange(len(known)))
    before, after = np.floor(place).astype(int), np.ceil(place).astype(int)
    part = (place - before)[:, None, None]
    return (1 - part) * curve_bsn[before] + part * curve_bsn[after]


def _bootstrap(a: PixelCounts, b: PixelCounts, level: float, resamples: int, rng: np.random.Generator) -> Interval:
    """Resample test images, the same for both variants and all seeds, and compute the mIoU of the summed counts."""
    images = len(a.images)
    counts = [np.moveaxis(part, 1, 0) for part in (a.intersection, a.union, b.intersection, b.union)]
    shape = (4, len(a.seeds), len(a.classes))
    flat = np.stack(counts, axis=1).reshape(images, -1).astype(np.float64)

    def difference(drawn: NDArray[np.int64], axis: int = -1) -> Array:
        samples = np.moveaxis(drawn, axis, -1).reshape(-1, drawn.shape[axis])
        cells = samples + images * np.arange(len(samples))[:, None]
        # how often each image was drawn turns the sums of all samples into one matrix product
        times = np.bincount(cells.ravel(), minlength=len(samples) * images).reshape(-1, images)
        sums = (times @ flat).reshape(-1, *shape)
        # a class that no image of the sample has is NaN and is left out of its mean
        miou = np.nanmean(_ratio(sums[:, ::2], sums[:, 1::2]), axis=-1).mean(axis=-1)
        return (miou[:, 0] - miou[:, 1]).reshape(np.moveaxis(drawn, axis, -1).shape[:-1])

    estimate = float(difference(np.arange(images)))
    if not np.ptp((a.influence() - b.influence()).mean(axis=0)):  # every sample gives the same
        return Interval(estimate, estimate, estimate, level, "images")
    # a batch of all samples at once would need 42 bytes times the number of images squared
    sampling = {"n_resamples": resamples, "batch": 256, "confidence_level": level, "method": "BCa", "rng": rng}
    ends = stats.bootstrap((np.arange(images),), difference, **sampling).confidence_interval
    return Interval(estimate, float(ends.low), float(ends.high), level, "images")


def _as_table(scores: Scores) -> Array:
    return scores.influence() if isinstance(scores, PixelCounts) else np.atleast_1d(np.asarray(scores, np.float64))


def _two_tails(distance: Array, variance: Array, freedom: int) -> Array:
    """Both tails of Student's t beyond the distance; without any variance 1 at distance 0, else 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = distance / np.sqrt(variance)
    return 2 * special.stdtr(freedom, -np.nan_to_num(quotient, nan=0.0, posinf=np.inf))


def _ratio(part: NDArray[np.int64] | Array, whole: NDArray[np.int64] | Array) -> Array:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
