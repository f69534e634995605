"""Which arms of a section are compared: each with random and ImageNet weights, and like with like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segae.bench.report_arms import REFERENCES, Arm

if TYPE_CHECKING:
    from segae.bench.statistics import Comparison


@dataclass(frozen=True)
class Further:
    """A comparison with another arm than plain random or ImageNet weights.

    Attributes:
        arm: a start from an autoencoder.
        other: what it is compared with.
        comparison: its score less the other's, paired by seed.
    """

    arm: Arm
    other: Arm
    comparison: Comparison


def with_references(arms: Sequence[Arm]) -> list[tuple[int, int]]:
    """Places of arms and of the reference arms with as many labels."""
    return [
        (index, other)
        for index, arm in enumerate(arms)
        for other, reference in enumerate(arms)
        if reference.is_reference
        and arm.labels == reference.labels
        and index != other
        and not (arm.is_reference and arm.init == "random")  # ImageNet against random is one comparison, not two
    ]


def like_with_like(arms: Sequence[Arm]) -> list[tuple[int, int]]:
    """Places of starts from an autoencoder and of the baselines that make it hardest for them.

    These are random weights that were trained for longer (is more training the cheaper answer?), random and ImageNet
    weights under the same variant (a frozen encoder, a linear head), and, where the autoencoder began with ImageNet
    weights, the same autoencoder without them.
    """
    return [
        (index, place)
        for index, arm in enumerate(arms)
        for place, other in enumerate(arms)
        if "ae:" in arm.init and arm.labels == other.labels and _alike(arm, other)
    ]


def _alike(arm: Arm, other: Arm) -> bool:
    if not arm.variant and other.variant == "longer":
        return other.init == "random" and arm.init.startswith("ae:")
    if arm.variant != other.variant:
        return False
    if arm.init == f"imagenet+{other.init}":
        return arm.transfer == other.transfer
    return bool(arm.variant) and other.init in REFERENCES
