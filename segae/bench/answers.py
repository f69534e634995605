"""The answer of a benchmark in one table and one figure: the starts side by side at each label budget."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segae.bench.report_arms import Arm, Section, sections_of
from segae.bench.report_numbers import LEVEL
from segae.bench.scores import read_scores
from segae.bench.statistics import Interval, difference_interval, mean_interval
from segae.bench.tables import as_table
from segae.tasks.rows import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLACE = ("encoder", "epochs", "labels")


@dataclass(frozen=True)
class Gain:
    """How far an arm's autoencoder pretraining took it beyond the weights which that pretraining began with.

    Attributes:
        arm: a start from an autoencoder.
        reference: the init it began with, ``random`` or ``imagenet``.
        interval: of the difference in data-set mIoU, over new seeds and new images.
    """

    arm: Arm
    reference: str
    interval: Interval


def answer_table(rows_csv: Path) -> str:
    """Mean IoU of each start at each label budget as Markdown, a table for each data set under its name.

    Means over seeds, ± their standard deviation. Of an autoencoder's start the second line of a cell is what its
    pretraining added to the weights it began with, with a 95 % interval over seeds and test images, bold where that is
    clear of 0. Baselines (a frozen encoder, a linear head, a longer schedule) are left to the report.

    Args:
        rows_csv: rows of one benchmark; its ``per_image/<experiment>.csv.gz`` lies beside it.

    Raises:
        SegaeError: rows cannot be compared, or a run has no counts of single images.
    """
    tables: dict[str, list[dict[str, str]]] = {}
    for section, per_image in _sections(rows_csv):
        for labels in section.budgets:
            arms = _plain(section, labels)
            place = (f"`{section.encoder}`", _schedule(section), str(labels))
            scores = {arm.name: _mean_and_spread(arm) for arm in arms}
            for gain in _gains(arms, per_image):
                scores[gain.arm.name] += f"<br>{_signed(gain.interval)}"
            tables.setdefault(section.dataset, []).append(dict(zip(_PLACE, place, strict=True)) | scores)
    parts = []
    for dataset, lines in tables.items():
        heads = list(dict.fromkeys(name for line in lines for name in line))
        parts.append(f"**{dataset}**\n\n{as_table(heads, [[line.get(name, '') for name in heads] for line in lines])}")
    return "\n\n".join(parts)


def draw_answer(rows_csv: Path, path: Path) -> None:
    """Write an SVG: above, mean IoU over the label budgets; below, what autoencoder pretraining added.

    One column for each data set, encoder and schedule with more than one budget; bars are 95 % intervals over seeds
    and test images.

    Args:
        rows_csv: as in :func:`answer_table`.
        path: the .svg file.
    """
    from segae.bench.report_style import write_svg

    write_svg(answer_figure(rows_csv), path)


def answer_figure(rows_csv: Path) -> Figure:
    """The figure of :func:`draw_answer`."""
    from matplotlib.figure import Figure

    from segae.bench.report_style import plain, styles_of

    shown = [(section, per_image) for section, per_image in _sections(rows_csv) if len(section.budgets) > 1]
    styles = styles_of([arm for section, _ in shown for arm in section.arms if not arm.variant])
    figure = Figure(figsize=(4.6 * max(len(shown), 1), 5.6), layout="constrained", facecolor="white")
    panels = figure.subplots(2, max(len(shown), 1), squeeze=False, gridspec_kw={"height_ratios": (1.4, 1)})
    for column, (section, per_image) in enumerate(shown):
        _draw_column(list(panels[:, column]), section, per_image, styles)
        panels[0, column].set_title(plain(section.dataset), fontsize=10)
    handles = {
        name: handle for axes in panels[0] for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_column(panels: Sequence[Axes], section: Section, per_image: Path, styles: dict) -> None:
    from segae.bench.report_figures import Point, draw_over_labels
    from segae.bench.report_style import tidy

    means, gained = [], []
    for labels in section.budgets:
        arms = _plain(section, labels)
        means += [
            Point(arm.name, labels, arm.mean("miou"), mean_interval(read_scores(per_image, arm.rows), LEVEL))
            for arm in arms
        ]
        gained += [
            Point(gain.arm.name, labels, gain.interval.estimate, gain.interval) for gain in _gains(arms, per_image)
        ]
    for axes, points, label in zip(panels, (means, gained), ("mean IoU", "above what it began with"), strict=True):
        tidy(axes)
        if points:
            draw_over_labels(axes, points, styles, label)


def _sections(rows_csv: Path) -> Iterator[tuple[Section, Path]]:
    """The sections that compare starts, each with its file of single images."""
    for section in sections_of(read_rows(rows_csv)):
        if len(_plain(section, section.budgets[-1])) > 1:
            yield section, rows_csv.parent / "per_image" / f"{section.rows[0]['experiment']}.csv.gz"


def _schedule(section: Section) -> str:
    """The epochs; and their images, where these are more than the labelled ones are at the largest budget."""
    images = int(section.rows[0].get("epoch_images") or 0)
    return section.schedule + (f", {images:,} images each" if images > section.budgets[-1] > 0 else "")


def _plain(section: Section, labels: int) -> list[Arm]:
    return [arm for arm in section.at(labels) if not arm.variant]


def _gains(arms: Sequence[Arm], per_image: Path) -> Iterator[Gain]:
    for arm in arms:
        began = "imagenet" if arm.init.startswith("imagenet+") else "random"
        reference = next((one for one in arms if one.is_reference and one.init == began), None)
        if "ae:" not in arm.init or reference is None:
            continue
        if common := sorted(set(arm.seeds) & set(reference.seeds)):
            mine, other = (read_scores(per_image, one.rows).of_seeds(common) for one in (arm, reference))
            yield Gain(arm, began, difference_interval(mine, other, LEVEL))


def _mean_and_spread(arm: Arm) -> str:
    values = [float(row["miou"]) for row in arm.rows]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _signed(interval: Interval) -> str:
    text = f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text
