"""The mean of a seeds-by-images table, and how sure it is for new seeds and new images at once.

Every seed's model is scored on every test image, so the values are a crossed design: a seed moves a whole row, an
image a whole column. The two-way random-effects model has three mean squares (Searle, Casella and McCulloch,
Variance Components, 1992, chapter 4). With few seeds the variance from seeds is known badly and the one from images
well; docs/statistics.md tells how the rule here was chosen and what it covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from segae.errors import SegaeError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Crossed:
    """The mean of one table, or of a stack of tables, with the parts of its variance.

    Attributes:
        estimate: (...), mean over seeds and images.
        seed: (...), MS_seed / (S N): the variance of the mean over new seeds, these images fixed; 0 with one seed.
        image: (...), MS_image / (S N): the variance of the mean over new images, these seeds fixed.
        residual: (...), MS_residual / (S N), which is in both; 0 with one seed.
        seeds: S.
        images: N.
    """

    estimate: Array
    seed: Array
    image: Array
    residual: Array
    seeds: int
    images: int

    @property
    def both(self) -> Array:
        """Variance of the mean over new seeds and new images, (MS_seed + MS_image - MS_residual) / (S N).

        MS_image below MS_residual means that images do not matter more than noise: their part is then 0.
        """
        return self.seed + np.maximum(self.image - self.residual, 0)

    def p_value(self, value: ArrayLike = 0.0) -> Array:
        """Two-sided p of the hypothesis that the true mean is ``value``: (...), in [0, 1].

        The tail of both is a mean of the tails of Student's t with S - 1 and with N - 1 degrees of freedom, weighted
        by the shares of the variance that are known with so many. It is raised to the p over seeds alone and to the p
        over images alone where one of these is larger: nothing is surer of two kinds of news than of one.
        """
        distance = np.abs(self.estimate - np.asarray(value, np.float64))
        over_images = _tails(distance, self.image, self.images - 1)
        if self.seeds == 1:
            return over_images
        both = self.both
        share = np.divide(self.seed, both, out=np.zeros_like(both), where=both > 0)
        mixed = share * _tails(distance, both, self.seeds - 1) + (1 - share) * _tails(distance, both, self.images - 1)
        return np.maximum(np.maximum(mixed, over_images), _tails(distance, self.seed, self.seeds - 1))

    def half_width(self, level: float) -> float:
        """Half of the interval of all values that a test at ``level`` does not reject; for a single table."""
        alpha = 1 - level
        fewest = (min(self.seeds, self.images) if self.seeds > 1 else self.images) - 1
        # no quantile in p_value is larger than that of the fewest degrees of freedom with the largest variance
        widest = -float(special.stdtrit(fewest, alpha / 2)) * float(np.sqrt(max(self.both, self.image, self.seed)))
        if widest == 0:
            return 0.0
        return float(
            optimize.brentq(
                lambda half: float(self.p_value(self.estimate + half)) - alpha, 0, widest * 1.001, xtol=1e-9 * widest
            )
        )

    def spread(self) -> Array:
        """Variance of one value, one seed on one image: the sum of the three variance components, none below 0."""
        if self.seeds == 1:
            return self.image * self.images
        seed = np.maximum(self.seed - self.residual, 0) * self.seeds
        image = np.maximum(self.image - self.residual, 0) * self.images
        return seed + image + self.residual * self.seeds * self.images


def crossed(values: ArrayLike) -> Crossed:
    """Mean and variance parts of tables (..., S, N), seeds by images.

    Raises:
        SegaeError: fewer than two images, no seed, or a value that is not finite.

    Example:
        >>> round(float(crossed([[0.1, 0.3], [0.2, 0.4]]).estimate), 6)
        0.25
    """
    table = np.asarray(values, np.float64)
    if table.ndim < 2 or table.shape[-1] < 2 or table.shape[-2] < 1:
        raise SegaeError(
            f"The scores have the shape {table.shape} (seeds, images), but an interval wants at least 1 seed and 2 "
            "images: score more test images."
        )
    if not np.isfinite(table).all():
        raise SegaeError("A score is not a finite number, but every seed wants one on every image: score them again.")
    seeds, images = table.shape[-2:]
    of_seed, of_image = table.mean(axis=-1), table.mean(axis=-2)
    estimate = of_seed.mean(axis=-1)
    image = of_image.var(axis=-1, ddof=1) / images
    if seeds == 1:
        none = np.zeros_like(image)
        return Crossed(estimate, none, image, none, seeds, images)
    rest = table - of_seed[..., None] - of_image[..., None, :] + estimate[..., None, None]
    residual = (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (images - 1)) / (seeds * images)
    return Crossed(estimate, of_seed.var(axis=-1, ddof=1) / seeds, image, residual, seeds, images)


def _tails(distance: Array, variance: Array, freedom: int) -> Array:
    """Both tails of Student's t beyond the distance; without any variance 1 at distance 0, else 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = distance / np.sqrt(variance)
    return 2 * special.stdtr(freedom, -np.nan_to_num(quotient, nan=0.0, posinf=np.inf))
