"""The cells of a benchmark: arms x encoders x decoders x label budgets x schedules x seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segae.errors import SegaeError
from segae.tasks.compare import Compare, pretrain_folder
from segae.tasks.settings import UsedImages, settings_of

_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*")
_SCHEDULE = re.compile(r"\s*(\d+)\s*\+\s*(\d+)\s*")


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        config: of its comparison, where only one arm and one seed are looked at.
        arm: such as ``imagenet+ae:mask`` or ``imagenet@frozen``.
        seed: of the label subset, the weights, the order and the augmentation.
        settings: digest of everything that decides the run; its identity.
        pretraining: run folder of the pretraining that must be there first; None where there is none.
        used: the images of the whole benchmark.
    """

    config: Compare
    arm: str
    seed: int
    settings: str
    pretraining: Path | None
    used: UsedImages = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """For messages."""
        labels = "all labels" if self.config.labels is None else f"{self.config.labels} labels"
        schedule = f"{self.config.freeze_epochs} + {self.config.epochs}"
        net = f"{self.config.encoder}, {self.config.decoder}"
        return f"{self.arm}, {labels}, {schedule}, seed {self.seed} ({net})"


def make_cells(
    base: Compare,
    train_images: int,
    *,
    encoders: Sequence[str],
    decoders: Sequence[str],
    budgets: Sequence[str],
    schedules: Sequence[str],
) -> list[Cell]:
    """Every combination, in the order of the rows that will come of it.

    At a budget below all labels an epoch is as many images as the whole training split has, drawn with repetition:
    every budget gets the same number of steps, so a curve over budgets measures labels and not the schedule.

    Args:
        base: what all cells share; its arms and seeds are gone through.
        train_images: of the whole training split, at least 1.
        encoders: timm names.
        decoders: smp names, or linear.
        budgets: as ``read_budget`` takes them.
        schedules: as ``read_schedule`` takes them.

    Raises:
        SegaeError: a budget or schedule cannot be read, or a name is given twice.
    """
    for name, values in {"encoders": encoders, "decoders": decoders, "arms": base.arms, "seeds": base.seeds}.items():
        _require_once(name, values)
    _require_once("budgets", labels := [read_budget(text, train_images) for text in budgets])
    _require_once("schedules", epochs := [read_schedule(text) for text in schedules])
    cells, used = [], UsedImages(base)
    for encoder in encoders:
        for decoder in decoders:
            for freeze, full in epochs:
                for count in labels:
                    config = replace(
                        base,
                        encoder=encoder,
                        decoder=decoder,
                        freeze_epochs=freeze,
                        epochs=full,
                        labels=count,
                        epoch_images=None if count is None else train_images,
                    )
                    cells += [make_cell(config, arm, seed, used) for arm in base.arms for seed in base.seeds]
    return unique(cells)


def make_cell(config: Compare, arm: str, seed: int, used: UsedImages) -> Cell:
    """The cell of one arm with one seed."""
    settings = settings_of(config, arm, seed, used)[1]
    return Cell(config, arm, seed, settings, pretrain_folder(config, arm, seed, used), used)


def unique(cells: Iterable[Cell]) -> list[Cell]:
    """Each run once: two parts of a benchmark may ask for the same one."""
    return list({cell.settings: cell for cell in cells}.values())


def read_budget(text: str, train_images: int) -> int | None:
    """The number of labelled images that ``15`` or ``5%`` stands for; None for all of them.

    Raises:
        SegaeError: it is neither, is nothing, or is more than there are.
    """
    match = _BUDGET.fullmatch(text)
    wanted = "Wanted a number of images or a share of them, such as --budgets 30 or --budgets 10% 100%."
    if not match or (not match[2] and "." in match[1]):
        raise SegaeError(f"the label budget {text!r} cannot be read. {wanted}")
    count = round(float(match[1]) / 100 * train_images) if match[2] else int(match[1])
    if (match[2] and not 0 < float(match[1]) <= 100) or count > train_images or (not match[2] and count < 1):
        raise SegaeError(f"the label budget {text!r} is not possible with {train_images} training images. {wanted}")
    return None if count == train_images else max(count, 1)


def read_schedule(text: str) -> tuple[int, int]:
    """(frozen epochs, full epochs) of a schedule written as ``1+3``.

    Raises:
        SegaeError: it is not of that form, or has no epoch.
    """
    match = _SCHEDULE.fullmatch(text)
    if not match or int(match[1]) + int(match[2]) == 0:
        raise SegaeError(
            f"the schedule {text!r} cannot be read; wanted frozen epochs, a plus and full epochs, such as "
            f"--schedules 1+3."
        )
    return int(match[1]), int(match[2])


def _require_once(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise SegaeError(f"the benchmark has no {name}; give at least one: --{name}.")
    for value in values:
        if values.count(value) > 1:
            shown = f"{value[0]}+{value[1]}" if isinstance(value, tuple) else "all images" if value is None else value
            raise SegaeError(f"the {name} hold {shown} {values.count(value)} times; each is run once: --{name}.")
