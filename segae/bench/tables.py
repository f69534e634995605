"""Markdown tables made from result rows: means over seeds with spread, and what chose a fine-tuning protocol."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from segae.training.schedule import PROTOCOLS, Protocol, kind_of

Row = Mapping[str, str]

_HEADER = (
    "init",
    "transferred",
    "images seen in pretraining",
    "labels",
    "schedule",
    "seeds",
    "mIoU",
    "pet",
    "background",
    "border",
    "mean per-image mIoU",
    "mIoU above random, paired by seed",
)
_SETTINGS = (  # rows that agree in all of these are seeds of one thing
    *("experiment", "dataset", "split", "labels", "encoder", "decoder", "init", "transfer", "image_size"),
    *("freeze_epochs", "epochs", "batch_size", "lr", "lr_ratio", "bn_mode", "warmup", "recalibrate", "fitted_head"),
    *("epoch_images", "loss", "augment"),
    *("pretrain_dataset", "pretrain_epochs", "pretrain_image_size", "pretrain_batch_size", "pretrain_lr"),
    *("pretrain_decoder", "pretrain_target", "pretrain_settings"),
)
_BEFORE = {"loss": "cross_entropy", "augment": "1", "fitted_head": "0"}  # what rows without these columns were
_COLUMNS = ("miou", "iou_pet", "iou_background", "iou_border", "per_image_miou")
_RATIO = "lr_ratio"
_BASE = {_RATIO: "", "lr": 0.004, "bn_mode": "strict", "recalibrate": 0, "warmup": 0.3}
"""The order in which a protocol is searched, and where the search of each setting starts."""


def results_table(rows: Sequence[Row]) -> str:
    """Mean over seeds of each init and schedule, with spread and gain over random weights, as a Markdown table.

    Args:
        rows: result rows of one data set, encoder, decoder and split.

    Raises:
        ValueError: two rows of one setting share a seed.
    """
    lines = [*_head(_HEADER)]
    for members in sorted(seeds_of_one_thing(rows), key=lambda group: (int(group[0]["epochs"]), _mean(group, "miou"))):
        first, seen = members[0], images_seen(members)
        values = [f"{_mean(members, column):.3f}" for column in _COLUMNS]
        if len(members) > 1:
            values[0] += f" ± {statistics.stdev(float(row['miou']) for row in members):.3f}"
        values.append(_above_random(members, rows))
        schedule = f"{first['freeze_epochs']} + {first['epochs']}"
        taken = first["transfer"].replace("+", " + ") if "ae:" in first["init"] else ""
        start = [first["init"], taken, f"{seen:,.0f}", first["labels"], schedule, str(len(members))]
        lines.append(_line([*start, *values]))
    return "\n".join(lines)


def seeds_of_one_thing(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows that differ in nothing but their seeds.

    Raises:
        ValueError: two rows of a group share a seed, so one run would count twice.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_setting(row, name) for name in _SETTINGS), []).append(row)
    for members in groups.values():
        if len({row["seed"] for row in members}) < len(members):
            raise ValueError(f"two rows of {members[0]['init']} share a seed; they are no independent runs")
    return list(groups.values())


def _setting(row: Row, name: str) -> str:
    value = row.get(name) or _BEFORE.get(name, "")
    # the data path changes which random numbers are drawn, not from what; early rows say what was asked for: auto
    return re.sub(r"; data_path \w+", "", value) if name == "pretrain_settings" else value


def images_seen(members: Sequence[Row]) -> float:
    """Mean over seeds: the validation images are drawn by seed, so the numbers differ a little."""
    return statistics.fmean(int(row["pretrain_images_seen"] or 0) for row in members)


def protocol_table(rows: Sequence[Row]) -> str:
    """What was tried for each kind of init, one setting after the other, the chosen value in bold.

    Args:
        rows: validation rows of the search: every setting at 1 + 3 epochs, the ratio at 1 + 12 too.
    """
    kinds = dict.fromkeys(kind_of(row["init"], row["transfer"]) for row in rows)
    long = f"{_RATIO}, 1 + 12"
    lines = [*_head(("init", _RATIO, long, *(name for name in _BASE if name != _RATIO)))]
    for kind in kinds:
        mine = [row for row in rows if kind_of(row["init"], row["transfer"]) == kind]
        short = [row for row in mine if row["epochs"] == "3"]
        cells = {name: _tried(short, PROTOCOLS[kind], name) for name in _BASE}
        cells[long] = _tried([row for row in mine if row["epochs"] == "12"], PROTOCOLS[kind], _RATIO)
        lines.append(_line([kind, cells.pop(_RATIO), cells.pop(long), *cells.values()]))
    return "\n".join(lines)


def levels_table(rows: Sequence[Row]) -> str:
    """How often as large the loss of a pretraining is when the maps of one level are exchanged between images.

    Args:
        rows: of benchmarks/level_use.py, those of one run together.
    """
    strides = sorted({int(row["stride"]) for row in rows})
    about = ("init", "decoder", "images_seen", "skip_dropout")
    lines = [*_head(("init", "decoder", "images seen", "skip dropout", *(f"stride {stride}" for stride in strides)))]
    for run in sorted({row["run"] for row in rows}, key=lambda run: _order(rows, run)):
        mine = {int(row["stride"]): row for row in rows if row["run"] == run}
        first = next(iter(mine.values()))
        start = [f"{int(first[name]):,}" if name == "images_seen" else first[name] for name in about]
        lines.append(_line([*start, *(f"{float(mine[stride]['exchanged_over_loss']):.3f}" for stride in strides)]))
    return "\n".join(lines)


def _order(rows: Sequence[Row], run: str) -> tuple[str, str, int, str]:
    row = next(row for row in rows if row["run"] == run)
    return row["decoder"], row["init"], int(row["images_seen"]), row["skip_dropout"]


def _tried(rows: Sequence[Row], chosen: Protocol, setting: str) -> str:
    """Mean validation mIoU of each value of one setting; those before it as chosen, those after it as at the start."""
    order = list(_BASE)
    fixed = {name: getattr(chosen, name) for name in order[: order.index(setting)]}
    fixed |= {name: _BASE[name] for name in order[order.index(setting) + 1 :]}
    if _RATIO in fixed:  # the best one at this schedule, with which the others were searched
        fixed[_RATIO] = Counter(row[_RATIO] for row in rows).most_common(1)[0][0]
    scores: dict[Any, list[float]] = {}
    for row in rows:
        if all(_same(row[name], value) for name, value in fixed.items()):
            scores.setdefault(row[setting], []).append(float(row["miou"]))
    cells = []
    for value, found in scores.items():
        cell = f"{value}: {statistics.fmean(found):.3f}"
        cells.append(f"**{cell}**" if _same(value, getattr(chosen, setting)) else cell)
    return ", ".join(cells)


def _same(text: str, value: Any) -> bool:
    return text == value if isinstance(value, str) else float(text) == float(value)


def _above_random(members: Sequence[Row], rows: Sequence[Row]) -> str:
    """Mean difference to the random init of the same seed and schedule, with its 95 % t-interval over seeds."""
    names = ("dataset", "split", "labels", "encoder", "decoder", "image_size", "freeze_epochs", "epochs", "batch_size")
    others = [row for row in rows if row["init"] == "random" and all(row[name] == members[0][name] for name in names)]
    if len({row["seed"] for row in others}) < len(others):
        raise ValueError("there is more than one random arm to compare with; leave one in the rows")
    random = {row["seed"]: float(row["miou"]) for row in others}
    gains = [float(row["miou"]) - random[row["seed"]] for row in members if row["seed"] in random]
    return "" if members[0]["init"] == "random" else interval_of(gains)


def interval_of(gains: Sequence[float]) -> str:
    """Mean and 95 % t-interval of differences that were paired by seed; nothing where there are fewer than two."""
    if len(gains) < 2:
        return ""
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.fmean(gains)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def _mean(rows: Sequence[Row], column: str) -> float:
    return statistics.fmean(float(row[column]) for row in rows)


def as_table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of so many named columns."""
    return "\n".join([*_head(names), *(_line(line) for line in lines)])


def _head(names: Sequence[str]) -> tuple[str, str]:
    return _line(names), "|" + "---|" * len(names)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
