"""Rows that are compared must differ in what is compared, and in nothing else that matters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segae.errors import SegaeError
from segae.tasks.arms import VARIANTS, Arm, own_settings
from segae.tasks.compare import Compare

Row = Mapping[str, Any]
Fitting = tuple[str, int, int]  # decoder, frozen epochs, full epochs

_STUDY = ("experiment", "dataset", "split")
_SAME_STEPS = 1.05  # an unreadable image here and there is no other schedule
_AGAIN = "Put each comparison's runs into a study of their own (--experiment), or run the odd ones again as the others."


def require_same_subsets(rows: Iterable[Row]) -> None:
    """Check that all arms of one data set, label budget and seed were trained on the same labelled images.

    Args:
        rows: result rows, as read from a file or as just made.

    Raises:
        SegaeError: they were not, or a row does not say on which.
    """
    for place, members in _grouped(rows, (*_STUDY, "labels", "seed")):
        if silent := [row for row in members if not row.get("label_subset")]:
            raise SegaeError(
                f"{len(silent)} rows of {_named(place)} do not say on which labelled images they rest (column "
                f"label_subset), such as {_run(silent[0])}: an older segae wrote them. Run them again."
            )
        _require_one_value(place, members, "label_subset", "arms saw different labelled images")


def require_same_protocol(rows: Iterable[Row]) -> None:
    """Check that the arms of a study had the same image size, batches, loss, steps and schedules.

    Learning rates and BatchNorm mode may differ: they are chosen for each kind of start. Decoder and schedule may
    differ as the variants of an arm do (``segae.tasks.arms.VARIANTS``).

    Args:
        rows: result rows, as read from a file or as just made.

    Raises:
        SegaeError: an arm got something else than the others.
    """
    rows = list(rows)
    for place, members in _grouped(rows, (*_STUDY, "encoder")):
        for column in ("image_size", "batch_size", "loss"):
            _require_one_value(place, members, column, "arms were trained differently")
    for place, members in _grouped(rows, _STUDY):
        if place["split"] == "test":  # of validation rows the labels, and with them the epochs, vary with the seed
            _require_same_steps(place, members)
    for place, members in _grouped(rows, (*_STUDY, "labels", "seed", "encoder")):
        _require_comparable_schedules(place, members)


def require_each_run_once(rows: Iterable[Row]) -> None:
    """Check that no run stands twice in the rows, which would make intervals too narrow.

    Raises:
        SegaeError: one does.
    """
    for place, members in _grouped((row for row in rows if row.get("settings")), (*_STUDY, "settings")):
        if len(members) > 1:
            raise SegaeError(
                f"the run {_run(members[0])} stands {len(members)} times in the rows of {_named(place)}; each run "
                "counts once. Remove the lines that repeat it from the CSV file."
            )


def _require_same_steps(place: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Every label budget must get the same number of images in an epoch, or a curve over budgets shows the schedule."""
    images = {_epoch_images(row): row for row in rows}
    if not images or max(images) <= _SAME_STEPS * min(images):
        return
    few, many = images[min(images)], images[max(images)]
    raise SegaeError(
        f"in {_named(place)} an epoch of {_run(few)} has {min(images)} images and one of {_run(many)} {max(images)}: "
        f"the comparison would measure the number of steps. Wanted the same for all: give --epoch-images "
        f"{max(images)}, as segae bench does, and run the odd ones again."
    )


def _epoch_images(row: Row) -> int:
    return int(row.get("epoch_images") or row["labels"])


def _require_comparable_schedules(place: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Each start must share a schedule, or a variant of one, with another start.

    Not all of them: runs may have failed, and a baseline may have a schedule of its own beside the common one.
    """
    fittings: dict[tuple[str, str], set[Fitting]] = defaultdict(set)
    for row in rows:
        fitting = (str(row["decoder"]), int(row["freeze_epochs"]), int(row["epochs"]))
        fittings[str(row["init"]), str(row["transfer"])].add(fitting)
    for start, mine in fittings.items():
        others = set().union(*(theirs for other, theirs in fittings.items() if other != start))
        if others and not mine & _with_variants(others) and not _with_variants(mine) & others:
            seen = "; ".join(f"{init}: {_shown(found)}" for (init, _), found in fittings.items())
            raise SegaeError(
                f"in {_named(place)} {start[0]} shares no decoder and schedule with another start ({seen}), so a "
                f"difference would not be that of the starts. {_AGAIN}"
            )


def _with_variants(fittings: Iterable[Fitting]) -> set[Fitting]:
    result = set(fittings)
    for decoder, frozen, full in fittings:
        config = Compare(data=Path(), decoder=decoder, freeze_epochs=frozen, epochs=full)
        for variant in VARIANTS:
            own = own_settings(config, Arm("random", "", "encoder", variant))
            result.add((own.decoder, own.freeze_epochs, own.epochs))
    return result


def _shown(fittings: Iterable[Fitting]) -> str:
    return ", ".join(f"{decoder} {frozen} + {full}" for decoder, frozen, full in sorted(fittings))


def _require_one_value(place: Mapping[str, str], rows: Sequence[Row], column: str, fault: str) -> None:
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(str(row.get(column) or ""), row)
    if len(found) > 1:
        seen = "; ".join(f"{value or 'nothing'} of {_run(row)}" for value, row in list(found.items())[:3])
        raise SegaeError(f"in {_named(place)} {fault}: {column} is {seen}. Wanted one for all. {_AGAIN}")


def _grouped(rows: Iterable[Row], columns: Sequence[str]) -> list[tuple[dict[str, str], list[Row]]]:
    """Rows that agree in the columns, and in what."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(str(row[name]) for name in columns)].append(row)
    return [(dict(zip(columns, values, strict=True)), members) for values, members in groups.items()]


def _named(place: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in place.items())


def _run(row: Row) -> str:
    schedule = f"{row['freeze_epochs']} + {row['epochs']}"
    return f"{row['init']} ({row['decoder']}, {row['labels']} labels, {schedule} epochs, seed {row['seed']})"
