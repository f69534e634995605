"""95 % intervals cover the truth in 93 to 97 % of simulated benchmarks, and the paired test errs as often as it says.

Simulated are pixel counts of three classes for each seed and image, with a true mIoU that is known.

The spreads are those of the project's own runs on the Pet sample: mIoU of single images 0.08, of seeds 0.02, of one
seed on one image 0.03 to 0.04; between two arms 0.02, 0.01 and 0.04.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from segae.bench.crossed import crossed
from segae.bench.scores import ArmScores
from segae.bench.statistics import compare, mean_interval
from segae.bench.worth import worth_in_labels

SIMULATIONS = 2000  # the standard error of a coverage of 95 % is then 0.5 %

PIXELS = 128 * 128
SHARES = np.array([0.6, 0.1, 0.3])  # of the image: background, border, pet
CLASSES = ("background", "border", "pet")
BASE = np.array([2.0, -0.3, 1.2])  # logit of the IoU of a class on an average image


@dataclass(frozen=True)
class World:
    """Standard deviations on the logit scale."""

    image: float = 0.4
    """Difficulty of an image, the same for all arms and seeds."""
    arm_image: float = 0.12
    """How an arm likes an image, the same for all its seeds."""
    seed: float = 0.1
    """Quality of a seed's model, arm by arm."""
    noise: float = 0.2
    """One seed's model on one image and class."""


def draw(world: World, shifts: tuple[float, ...], seeds: int, images: int, rng: np.random.Generator) -> list[ArmScores]:
    """One benchmark: an arm for each shift of the logits, on the same images with the same seeds."""
    area_nk = _areas(images, rng)
    difficulty_n = rng.normal(0, world.image, images)
    return [
        _scores(area_nk, _iou(world, shift, difficulty_n, rng.normal(0, world.seed, seeds), rng)) for shift in shifts
    ]


def truth(world: World, shift: float, images: int = 400_000) -> float:
    """The mIoU over infinitely many seeds and images: quadrature over seeds, a large sample of images."""
    rng = np.random.default_rng(12)
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    area_nk = _areas(images, rng)
    difficulty_n = rng.normal(0, world.image, images)
    values = []
    for node in nodes:
        iou = _iou(world, shift, difficulty_n, np.array([node * world.seed]), rng)[0]
        union = _union(area_nk, iou)
        values.append(((iou * union).sum(axis=0) / union.sum(axis=0)).mean())
    return float(np.average(values, weights=weights))


def _areas(images: int, rng: np.random.Generator) -> np.ndarray:
    """(N, K) pixels; a few images have no pet and no border."""
    shares = rng.dirichlet(SHARES * 12, images)
    shares[rng.random(images) < 0.03] = (1.0, 0.0, 0.0)
    return shares * PIXELS


def _iou(world: World, shift: float, difficulty_n: np.ndarray, seed_s: np.ndarray, rng: np.random.Generator):
    images, seeds = len(difficulty_n), len(seed_s)
    like_n = rng.normal(0, world.arm_image, images)
    noise = rng.normal(0, world.noise, (seeds, images, len(CLASSES)))
    logit = BASE + shift + (difficulty_n + like_n)[:, None] + seed_s[:, None, None] + noise
    return 1 / (1 + np.exp(-logit))


def _union(area: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """A worse prediction has a larger union: half of the error is too much, half is missing."""
    return area * 2 / (1 + iou)


def _scores(area_nk: np.ndarray, iou_snk: np.ndarray) -> ArmScores:
    union = np.rint(_union(area_nk, iou_snk)).astype(np.int64)
    intersection = np.minimum(np.rint(iou_snk * union).astype(np.int64), union)
    seeds, images, _ = union.shape
    return ArmScores(tuple(range(seeds)), tuple(f"{i:03d}" for i in range(images)), CLASSES, intersection, union)


def _holds(interval, value: float) -> bool:
    return bool(interval.low <= value <= interval.high)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_and_the_test_rejects_at_its_rate(seeds):
    world, rng = World(), np.random.default_rng(100 + seeds)
    true = truth(world, 0.0)
    gain = truth(world, 0.1) - true
    hits = {"mean": 0, "difference": 0, "rejected": 0, "images only": 0}
    for run in range(SIMULATIONS):
        images = (100, 200, 300)[run % 3]
        arm, better, same = draw(world, (0.0, 0.1, 0.0), seeds, images, rng)
        comparison = compare(better, arm, resamples=20)  # the bootstrap is not what is judged here
        hits["mean"] += _holds(mean_interval(arm), true)
        hits["difference"] += _holds(comparison.difference, gain)
        paired = crossed(same.influence() - arm.influence())
        hits["rejected"] += bool(paired.p_value() < 0.05)
        # the difference over images alone, which leaves the seeds out: the check must be able to fail
        hits["images only"] += bool(abs(paired.estimate) < 1.96 * paired.image**0.5)
    rates = {name: count / SIMULATIONS for name, count in hits.items()}
    print(seeds, "seeds:", rates)
    assert 0.93 <= rates["mean"] <= 0.97
    assert 0.93 <= rates["difference"] <= 0.97
    # 0.05, within what 2,000 draws give 999 times in 1,000
    assert abs(rates["rejected"] - 0.05) < 3.3 * (0.05 * 0.95 / SIMULATIONS) ** 0.5
    assert rates["images only"] < 0.8


@pytest.mark.slow
def test_worth_in_labels_covers_the_truth():
    world, rng = World(), np.random.default_rng(7)
    budgets, shifts, mine = (10, 30, 100, 300), (-0.6, -0.2, 0.1, 0.3), 0.0
    curve = [truth(world, shift) for shift in shifts]
    true = float(np.exp(np.interp(truth(world, mine), curve, np.log(budgets))))
    assert 30 < true < 100
    hits = narrow = 0
    for _ in range(SIMULATIONS // 2):
        arm, *reference = draw(world, (mine, *shifts), 3, 150, rng)
        (worth,) = worth_in_labels({10: arm}, dict(zip(budgets, reference, strict=True)))
        hits += (worth.low or 0) <= true <= (worth.high or np.inf)
        narrow += worth.low is not None and worth.high is not None
    print("worth:", 2 * hits / SIMULATIONS, "closed:", 2 * narrow / SIMULATIONS)
    assert 0.93 <= 2 * hits / SIMULATIONS <= 0.97
    assert 2 * narrow / SIMULATIONS > 0.3  # intervals that are always open would cover too
