"""The numbers of a report: means with intervals, differences to random and to ImageNet, what weights are worth."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segae.bench.report_arms import REFERENCES, Arm, Section
from segae.bench.report_pairs import Further, like_with_like, with_references
from segae.errors import SegaeError

if TYPE_CHECKING:
    from segae.bench.scores import ArmScores
    from segae.bench.statistics import Comparison, Interval
    from segae.bench.worth import Worth

LEVEL = 0.95


@dataclass(frozen=True)
class Result:
    """One arm at one label budget.

    Attributes:
        arm: its rows.
        miou: mean over the seeds of the data-set mIoU, as the rows say it.
        interval: of ``miou``; None for a single seed without counts of single images.
        against: the differences to the reference arms at the same budget, by init of the reference.
        images: test images that were counted one by one, 0 where the rows are all there is.
    """

    arm: Arm
    miou: float
    interval: Interval | None
    against: Mapping[str, Comparison]
    images: int


@dataclass(frozen=True)
class Numbers:
    """The numbers of one section.

    Attributes:
        section: what they are of.
        results: one for each arm of the section, in its order.
        worth: for each arm's name and each reference's init, what the arm's weights are worth in labels.
        comparisons: how many differences were tested and corrected for together.
        without_counts: why differences rest on seeds alone; empty where all arms have counts of single images.
        further: comparisons beside those with plain random and ImageNet weights.
    """

    section: Section
    results: tuple[Result, ...]
    worth: Mapping[tuple[str, str], Sequence[Worth]]
    comparisons: int
    without_counts: str
    further: tuple[Further, ...] = ()

    def at(self, labels: int) -> tuple[Result, ...]:
        """The arms at one label budget."""
        return tuple(result for result in self.results if result.arm.labels == labels)


def told_apart(comparison: Comparison) -> bool:
    """Whether a difference may be claimed: neither of its intervals contains zero.

    A single seed tells nothing apart, however many images it was scored on: another seed may turn the order.
    """
    intervals = (comparison.difference, comparison.bootstrap)
    return tested(comparison) and all(not one.low <= 0 <= one.high for one in intervals)


def survives(comparison: Comparison) -> bool:
    """Whether the difference is still there when all comparisons of the section are corrected for."""
    return comparison.p_adjusted < 1 - LEVEL


def tested(comparison: Comparison) -> bool:
    """Whether a difference was seen with more than one seed."""
    return "seeds" in comparison.difference.over


def numbers_of(section: Section, per_image: Path) -> Numbers:
    """Compute the numbers of a section.

    Args:
        section: arms and rows.
        per_image: scores of single images; where the file is missing or has no counts of pixels, intervals and
            tests rest on the seeds alone.
    """
    from segae.bench.statistics import adjust

    reason = _no_counts(per_image)
    scores: dict[int, ArmScores] = {}
    for index, arm in enumerate(section.arms if not reason else ()):
        try:
            scores[index] = _read(per_image, arm)
        except SegaeError as error:  # told on the page, under what would invalidate the result
            reason = str(error)
    plain = with_references(section.arms)
    alike = [pair for pair in like_with_like(section.arms) if pair not in plain]
    found = {pair: _compared(section, scores, *pair) for pair in (*plain, *alike)}
    known = {pair: comparison for pair, comparison in found.items() if comparison is not None}
    adjusted = dict(zip(known, adjust(list(known.values())), strict=True)) if known else {}
    results = [
        Result(
            arm=arm,
            miou=arm.mean("miou"),
            interval=_interval(arm, scores.get(index)),
            against={section.arms[b].init: adjusted[a, b] for a, b in plain if a == index and (a, b) in adjusted},
            images=len(scores[index].images) if index in scores else 0,
        )
        for index, arm in enumerate(section.arms)
    ]
    further = [Further(section.arms[a], section.arms[b], adjusted[a, b]) for a, b in alike if (a, b) in adjusted]
    return Numbers(section, tuple(results), _worth(section, scores), len(adjusted), reason, tuple(further))


def _no_counts(path: Path) -> str:
    if not path.exists():
        return f"there is no {path.parent.name}/{path.name} beside the rows"
    try:
        with gzip.open(path, "rt", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SegaeError(
            f"{path} cannot be read ({error}). Delete it, and run the benchmark's command again."
        ) from error
    counted = any(name.startswith("intersection_") for name in header)
    return "" if counted else f"{path.parent.name}/{path.name} has no counts of pixels"


def _read(path: Path, arm: Arm) -> ArmScores:
    from segae.bench.scores import read_scores

    return read_scores(path, arm.rows)


def _interval(arm: Arm, scores: ArmScores | None) -> Interval | None:
    from segae.bench.statistics import mean_interval, seed_interval

    if scores is not None:
        return mean_interval(scores, LEVEL)
    return seed_interval([float(row["miou"]) for row in arm.rows], LEVEL) if len(arm.rows) > 1 else None


def _compared(section: Section, scores: Mapping[int, ArmScores], index: int, other: int) -> Comparison | None:
    from segae.bench.statistics import compare

    common = sorted(set(section.arms[index].seeds) & set(section.arms[other].seeds))
    if index in scores and other in scores and common:
        return compare(scores[index].of_seeds(common), scores[other].of_seeds(common), LEVEL)
    return _over_seeds(section.arms[index], section.arms[other], common) if len(common) > 1 else None


def _over_seeds(arm: Arm, reference: Arm, seeds: Sequence[int]) -> Comparison:
    """Differences of the seeds both have: t-interval and paired t-test, nothing of the images."""
    import numpy as np
    from scipy import stats

    from segae.bench.statistics import Comparison, seed_interval

    first, second = ({int(row["seed"]): float(row["miou"]) for row in one.rows} for one in (arm, reference))
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    spread = float(differences.std(ddof=1))
    interval = seed_interval(differences.tolist(), LEVEL)
    p = float(stats.ttest_1samp(differences, 0).pvalue) if spread else float(not differences[0])
    effect = float(differences.mean()) / spread if spread else float("nan")
    return Comparison(interval, interval, p, p, effect, len(seeds))


def _worth(section: Section, scores: Mapping[int, ArmScores]) -> dict[tuple[str, str], Sequence[Worth]]:
    from segae.bench.worth import worth_in_labels

    curves: dict[str, dict[int, ArmScores]] = {}
    for index, one in scores.items():
        curves.setdefault(section.arms[index].name, {})[section.arms[index].labels] = one
    references = {arm.init: arm.name for arm in section.arms if arm.is_reference}
    found: dict[tuple[str, str], Sequence[Worth]] = {}
    for init in REFERENCES:
        reference = curves.get(references.get(init, ""), {})
        for name, curve in curves.items() if len(reference) > 1 else ():
            everywhere = [set(one.seeds) for one in (*curve.values(), *reference.values())]
            if name == references[init] or not (common := sorted(set.intersection(*everywhere))):
                continue  # a grid that is not finished
            mine, theirs = (
                {budget: one.of_seeds(common) for budget, one in part.items()} for part in (curve, reference)
            )
            found[name, init] = worth_in_labels(mine, theirs)
    return found
