"""The findings of a report in sentences: which start is best, what pretraining brings, and how sure that is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segae.bench.report_arms import REFERENCES
from segae.bench.report_numbers import LEVEL, Numbers, Result, survives, tested, told_apart
from segae.bench.report_text import listed, number, p_value, signed, span, worth_text
from segae.tasks.page import name_of

if TYPE_CHECKING:
    from segae.bench.statistics import Comparison

_FEW_STARTS = 4  # more than that are told together, not one by one


def findings(numbers: Numbers) -> list[str]:
    """All sentences about a section: the start that is best with the most labels, what pretraining adds, in labels."""
    best = headline(numbers, numbers.section.budgets[-1], dataset=False)
    return [best, *answers(numbers), *worth_findings(numbers)]


def headline(numbers: Numbers, labels: int, *, dataset: bool = True) -> str:
    """Which start is best with this many labels, and what can be said of its lead, in plain words.

    Args:
        numbers: of a section.
        labels: one of its budgets.
        dataset: whether to name the data set, which a section's own list need not do on every line.
    """
    results = [result for result in numbers.at(labels) if not result.arm.variant] or list(numbers.at(labels))
    best = max(results, key=lambda result: result.miou)
    images = f"labelled images of {numbers.section.dataset}" if dataset else "labels"
    start = f"With {labels} {images}, {best.arm.name}"
    if len(results) == 1:
        return f"{start} reaches a mean IoU of {_with_interval(best)}."
    leads = [(other.arm.name, lead) for other in results if other is not best and (lead := _lead(numbers, best, other))]
    behind, tied, ahead = (
        [f"{name} {_numbers(*lead)}" for name, lead in leads if _standing(*lead) == place] for place in (-1, 0, 1)
    )
    tied, ahead = (
        [*one[:_FEW_STARTS], f"{len(one) - _FEW_STARTS} others"] if len(one) > _FEW_STARTS + 1 else one
        for one in (tied, ahead)
    )
    said = f"{start} has the highest mean IoU, {_with_interval(best)}"
    if tied:
        said += f", but cannot be told apart from {listed(tied)}"
    if ahead:
        said += f"{'; it is ahead' if tied else ', ahead'} of {listed(ahead)}"
    if behind:  # the arms do not have the same seeds
        said += f"; with the seeds that both have it is behind {listed(behind)}"
    if leads:
        return f"{said}."
    if not any(result.arm.is_reference for result in results):
        return f"{said}. Nothing to compare with: no arm started from random or from ImageNet weights."
    return f"{said}. No difference could be tested: that takes two seeds or more."


def answers(numbers: Numbers) -> list[str]:
    """What autoencoder pretraining brings over random and over ImageNet weights at each label budget.

    A sentence for each start and reference; of many starts, one for each reference, budget and outcome.
    """
    arms = list(dict.fromkeys(arm.name for arm in numbers.section.arms if "ae:" in arm.init and not arm.variant))
    cases = [
        (result, init, result.against[init])
        for result in sorted(numbers.results, key=lambda result: -result.arm.labels)
        for init in REFERENCES
        if result.arm.name in arms and init in result.against and tested(result.against[init])
    ]
    return _together(cases, len(arms)) if len(arms) > _FEW_STARTS else _one_by_one(cases, arms)


def worth_findings(numbers: Numbers) -> list[str]:
    """What labels with other starts are worth in labels with random and with ImageNet weights, a sentence for each.

    Told of each start's fewest labels; where even these fall short of what the reference has with its own fewest, of
    its most. Of many starts only of the best.
    """
    starts = sorted(numbers.at(numbers.section.budgets[0]), key=lambda one: -one.miou)
    names = [one.arm.name for one in starts if not one.arm.variant][: _FEW_STARTS + 1]
    sentences = []
    for init in REFERENCES:
        known = [arm.labels for arm in numbers.section.arms if arm.is_reference and arm.init == init]
        said: list[str] = []
        for name in names:
            if len(found := numbers.worth.get((name, init), ())) > 1:
                one = found[-1] if found[0].high is not None and found[0].high <= min(known) else found[0]
                needed = _spelled(worth_text(one, known))
                said.append(f"{needed} {'as' if said else 'labels to get as far as'} {name} with {one.budget}")
        sentences += [f"With {name_of(init)} one needs {listed(said)}."] if said else []
    return sentences


def _one_by_one(cases: Sequence[tuple[Result, str, Comparison]], arms: Sequence[str]) -> list[str]:
    sentences = []
    for name, init in itertools.product(arms, REFERENCES):
        states: dict[str, list[str]] = {}
        for result, other, one in cases:
            if (result.arm.name, other) == (name, init):
                states.setdefault(_state(one), []).append(f"with {result.arm.labels} labels {_numbers(one, 1)}")
        said = "; ".join(f"{state.format(name_of(init))} {listed(found)}" for state, found in states.items())
        sentences += [f"{name[0].upper()}{name[1:]} {said}."] if said else []
    return sentences


def _together(cases: Sequence[tuple[Result, str, Comparison]], arms: int) -> list[str]:
    grouped: dict[tuple[int, int, str], list[tuple[Result, Comparison]]] = {}
    for result, init, one in sorted(cases, key=lambda case: -case[0].miou):
        key = (REFERENCES.index(init), -result.arm.labels, _state(one))
        grouped.setdefault(key, []).append((result, one))
    sentences = []
    for (place, labels, state), found in sorted(grouped.items(), key=lambda item: item[0][:2]):
        gains = [one.difference.estimate for _, one in found]
        best, its = found[0]
        kept = sum(survives(one) for _, one in found)
        sentences.append(
            f"With {-labels} labels, {len(found)} of {arms} starts from an autoencoder "
            f"{state.format(name_of(REFERENCES[place]))} ({signed(min(gains))} to {signed(max(gains))}"
            f"{f'; {kept} of them also corrected for the comparisons of the section' if told_apart(its) else ''}), "
            f"the best of them {best.arm.name} {_numbers(its, 1)}."
        )
    return sentences


def _with_interval(result: Result) -> str:
    if result.interval is None:
        return f"{number(result.miou)} (one seed, no interval)"
    return f"{number(result.miou)} ({100 * LEVEL:.0f} % interval {span(result.interval)})"


def _lead(numbers: Numbers, best: Result, other: Result) -> tuple[Comparison, int] | None:
    """The tested comparison of two arms, and 1 if it is of the best with the other, -1 if it is the other way."""
    for result, reference, sign in ((best, other, 1), (other, best, -1)):
        plain = [result.against.get(reference.arm.init)] if reference.arm.is_reference else []
        alike = [one.comparison for one in numbers.further if one.arm is result.arm and one.other is reference.arm]
        for found in (*plain, *alike):
            if found is not None and tested(found):
                return found, sign
    return None


def _standing(comparison: Comparison, sign: int) -> int:
    """1 if the first is ahead, -1 if it is behind, 0 if they cannot be told apart."""
    return 0 if not told_apart(comparison) else 1 if sign * comparison.difference.estimate > 0 else -1


def _numbers(comparison: Comparison, sign: int) -> str:
    """Difference and interval, and the corrected p value where it takes back what the interval says."""
    one = comparison.difference
    low, high = sorted((sign * one.low, sign * one.high))
    doubt = ""
    if told_apart(comparison) and not survives(comparison):
        doubt = f"; corrected p = {p_value(comparison.p_adjusted)}"
    return f"({signed(sign * one.estimate)}, {signed(low)} to {signed(high)}{doubt})"


def _state(comparison: Comparison) -> str:
    if not told_apart(comparison):
        return "cannot be told apart from {}"
    return "ended above {}" if comparison.difference.estimate > 0 else "ended below {}"


def _spelled(labels: str) -> str:
    """Numbers of labels with words for the signs `>` and `<`."""
    return labels.replace("> ", "more than ").replace("< ", "fewer than ")
