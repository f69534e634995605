"""What pretrained weights are worth in labels: with how many would the reference arm have got as far?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from segae.bench.crossed import Array, crossed
from segae.bench.scores import ArmScores
from segae.bench.statistics import over
from segae.errors import SegaeError

ABOVE, BELOW = "above the largest budget", "below the smallest budget"
_STEPS = 400  # label numbers tried between the smallest and the largest budget: each is 1 to 2 % above the one before
_ROUNDING = 1e-9  # of a mean IoU: equal scores may differ in their last bits


@dataclass(frozen=True)
class Worth:
    """With how many labels the reference reaches what an arm reaches with ``budget`` labels.

    Attributes:
        labels: that number; None outside the reference's budgets, ``note`` then says on which side.
        low: lower end of the interval; None where the budgets do not reach low enough to tell.
        high: upper end; None where the budgets do not reach high enough to tell.
        budget: the labels that the arm had.
        note: what the numbers leave open, in words; empty if nothing.
    """

    labels: float | None
    low: float | None
    high: float | None
    budget: int
    note: str


def worth_in_labels(
    arm: Mapping[int, ArmScores], reference: Mapping[int, ArmScores], level: float = 0.95
) -> list[Worth]:
    """For each label budget of an arm, the number of labels at which the reference has the same score.

    Between two budgets the reference's score is taken as linear in the logarithm of the labels: label-efficiency
    curves are close to straight there, and straight lines through few points invent no bends. Where the measured
    curve falls with more labels, the number comes from the closest rising curve (isotonic regression), and from its
    smallest number of labels with the score.

    The interval holds all numbers of labels at which the paired test of the arm against the reference's curve does not
    reject equality, as in Fieller's interval for a ratio. It covers new seeds and new images like
    :func:`segae.bench.statistics.mean_interval`, and it is open where the curve is too flat to tell. A bootstrap over
    seeds and images would be too narrow, since three seeds drawn anew cannot show how much seeds differ.

    Args:
        arm: its scores at each label budget.
        reference: the reference's scores at each label budget, with the same seeds and images.
        level: of the intervals, in (0, 1).

    Returns:
        One for each budget of the arm, in ascending order.

    Raises:
        SegaeError: an arm has no budget or one below 1 label, seeds or images are not the same everywhere, or
            ``level`` is not in (0, 1).
    """
    for name, budgets in (("arm", arm), ("reference", reference)):
        if not budgets or min(budgets) < 1:
            raise SegaeError(
                f"The {name} has the label budgets {sorted(budgets)}, but at least one of 1 label or more is wanted: "
                "run the benchmark at the budgets to compare."
            )
    if not 0 < level < 1:
        raise SegaeError(f"The level is {level}, but an interval wants one between 0 and 1: level=0.95.")
    first = arm[min(arm)]
    known = np.array(sorted(reference), np.float64)
    curve_bsn = np.stack([reference[int(budget)].matched_to(first).influence() for budget in known])
    return [
        _worth(budget, arm[budget].matched_to(first).influence(), known, curve_bsn, 1 - level) for budget in sorted(arm)
    ]


def _worth(budget: int, arm_sn: Array, known: Array, curve_bsn: Array, alpha: float) -> Worth:
    """One budget of the arm against the reference's curve."""
    score = float(arm_sn.mean())
    labels, place = _reach(score, known, curve_bsn.mean(axis=(1, 2)))
    tried = np.unique(np.concatenate([known, np.geomspace(known[0], known[-1], _STEPS)]))
    test = crossed(arm_sn - _between(tried, known, curve_bsn))
    possible = test.p_value() >= alpha
    # a reference whose curve falls somewhere can be equal in two places: the interval holds both
    ends = [*tried[possible], *([] if labels is None else [labels])]
    # without any possible number the score lies surely beyond the last budget, or before the first
    low = None if possible[0] else float(min(ends, default=known[-1]))
    high = None if possible[-1] else float(max(ends, default=known[0]))
    if labels is None:
        low, high = (low, None) if place == ABOVE else (None, high)
    return Worth(labels, low, high, budget, _note(place, low, high, arm_sn.shape[0]))


def _reach(score: float, known: Array, means: Array) -> tuple[float | None, str]:
    """The smallest number of labels at which the rising curve has the score, or on which side it lies."""
    rising: NDArray[np.float64] = optimize.isotonic_regression(means).x
    if score > rising[-1] + _ROUNDING:
        return None, ABOVE
    if score < rising[0] - _ROUNDING:
        return None, BELOW
    after = int(np.searchsorted(rising, score - _ROUNDING))  # the first budget that reaches the score
    if after == 0:
        return float(known[0]), ""
    part = (score - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(np.exp(np.log(known[after - 1]) * (1 - part) + np.log(known[after]) * part)), ""


def _between(labels: Array, known: Array, curve_bsn: Array) -> Array:
    """The reference's values (len(labels), S, N), linear in the logarithm of the labels."""
    if len(known) == 1:
        return np.repeat(curve_bsn, len(labels), axis=0)
    after = np.clip(np.searchsorted(known, labels), 1, len(known) - 1)
    left, right = np.log(known[after - 1]), np.log(known[after])
    part = np.clip((np.log(labels) - left) / (right - left), 0, 1)[:, None, None]
    return (1 - part) * curve_bsn[after - 1] + part * curve_bsn[after]


def _note(place: str, low: float | None, high: float | None, seeds: int) -> str:
    parts = [place] if place else []
    if low is None and place != BELOW:
        parts.append("interval open below")
    if high is None and place != ABOVE:
        parts.append("interval open above")
    if seeds == 1:
        parts.append(f"interval over {over(seeds)} only")
    return "; ".join(parts)
