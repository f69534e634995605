"""The figures of a report: matplotlib ``Figure`` objects with a text for those who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from segae.bench.report_arms import REFERENCES
from segae.bench.report_numbers import Numbers, Result
from segae.bench.report_style import ReportFigure, Style, legend, panel, plain, shortened
from segae.bench.report_text import number
from segae.tasks.page import name_of
from segae.training.figures import DPI, INK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from segae.bench.statistics import Interval


def efficiency_figures(numbers: Numbers, styles: Mapping[str, Style], name: str) -> list[ReportFigure]:
    """Mean IoU at each label budget, and the differences to random and to ImageNet, each with its interval."""
    points = [Point(one.arm.name, one.arm.labels, one.miou, one.interval) for one in numbers.results]
    made = [_over_labels(points, styles, name, "mean IoU")]
    for init in REFERENCES:
        points = [
            Point(one.arm.name, one.arm.labels, one.against[init].difference.estimate, one.against[init].difference)
            for one in numbers.results
            if init in one.against
        ]
        if points:
            made.append(_over_labels(points, styles, f"{name}-above-{init}", f"mean IoU above {name_of(init)}"))
    return made


def classes_figure(
    results: Sequence[Result], classes: Sequence[str], styles: Mapping[str, Style], name: str
) -> ReportFigure:
    """IoU of each class, one mark for each arm, a bar from the lowest to the highest seed."""
    columns = {f"iou_{one}": one for one in classes}
    title = f"IoU of each class, {results[0].arm.labels} labels; bars from the lowest seed to the highest"
    return _strips(results, columns, styles, name, title, "IoU")


def boundary_figure(results: Sequence[Result], styles: Mapping[str, Style], name: str) -> ReportFigure:
    """Boundary IoU beside plain IoU: how much of an arm's quality is at the contours (arXiv 2103.16562)."""
    columns = {"miou": "mean IoU", "boundary_iou": "boundary IoU"}
    title = f"Boundary quality, {results[0].arm.labels} labels; bars from the lowest seed to the highest"
    return _strips(results, columns, styles, name, title, "score")


def convergence_figures(
    results: Sequence[Result], curves: pd.DataFrame, styles: Mapping[str, Style], name: str
) -> list[ReportFigure]:
    """Training loss over the epochs, and validation scores where there are any; means over seeds with their range."""
    panels = {"train_loss": "training loss", "valid_loss": "validation loss", "miou": "validation mean IoU"}
    made = []
    for column, label in panels.items():
        figure, axes = panel()
        said = []
        for result in results:
            mine = curves[curves["settings"].isin([row["settings"] for row in result.arm.rows])]
            table = mine.groupby("epoch")[column].agg(["mean", "min", "max"]).dropna() if column in mine else mine[:0]
            if len(table):
                style = styles[result.arm.name]
                axes.plot(
                    table.index,
                    table["mean"],
                    color=style.colour,
                    ls=style.line,
                    marker=style.marker,
                    ms=4,
                    label=plain(result.arm.name),
                )
                axes.fill_between(table.index, table["min"], table["max"], color=style.colour, alpha=0.15, lw=0)
                said.append(f"{result.arm.name} {number(table['mean'].iloc[0])} to {number(table['mean'].iloc[-1])}")
        if said:
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            legend(figure, axes)
            title = f"{label.capitalize()}, {results[0].arm.labels} labels"
            alt = f"{title}, first epoch to last: {'; '.join(said)}."
            made.append(ReportFigure(f"{name}-{column.replace('_', '-')}", title, alt, figure))
    return made


def confusion_figure(arm: str, confusion: NDArray[np.int64], classes: Sequence[str], name: str) -> ReportFigure:
    """Where the pixels of each true class went, in per cent of that class; (K, K), rows truth."""
    total = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    side = 1.6 + max(0.7 * len(classes), 1.6) if len(classes) <= 8 else 6.0
    figure = Figure(figsize=(side + 0.4, side), layout="constrained", facecolor="white", dpi=DPI)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    words = [plain(shortened(one)) for one in classes]
    axes.set_xticks(range(len(classes)), words, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), words)
    axes.set(xlabel="predicted", ylabel="true", title=plain(arm))
    axes.title.set_fontsize(10)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(share) if len(classes) <= 8 else ():
        text = "–" if np.isnan(value) else f"{100 * value:.0f} %"
        axes.text(column, row, text, ha="center", va="center", color="white" if value > 0.55 else INK)
    right = "; ".join(f"{one} {100 * share[i, i]:.0f} %" for i, one in enumerate(classes) if not np.isnan(share[i, i]))
    return ReportFigure(name, arm, f"Confusion matrix of {arm}. Pixels given their true class: {right}.", figure)


def cost_figure(results: Sequence[Result], styles: Mapping[str, Style], name: str) -> ReportFigure:
    """Mean IoU against the minutes of training, pretraining included."""
    figure, axes = panel()
    said = []
    for result in results:
        tuning, before = (result.arm.mean(column) / 60 for column in ("seconds", "pretrain_seconds"))
        minutes = tuning + (0 if np.isnan(before) else before)
        style = styles[result.arm.name]
        axes.plot(
            minutes, result.miou, color=style.colour, marker=style.marker, ms=7, ls="", label=plain(result.arm.name)
        )
        said.append(f"{result.arm.name} {minutes:.1f} minutes, mean IoU {number(result.miou)}")
    axes.set(xlabel="minutes of training, our pretraining included", ylabel="mean IoU", xlim=(0, None))
    legend(figure, axes)
    title = f"What it costs, {results[0].arm.labels} labels"
    return ReportFigure(name, title, f"{title}: {'; '.join(said)}.", figure)


@dataclass(frozen=True)
class Point:
    """A value of an arm at a label budget, with its interval if there is one."""

    arm: str
    labels: int
    value: float
    interval: Interval | None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval, or the value twice where there is none."""
        known = self.interval is not None and not np.isnan(self.interval.low)
        return (self.interval.low, self.interval.high) if known and self.interval else (self.value, self.value)

    def __str__(self) -> str:
        low, high = self.ends
        return number(self.value) if low == high else f"{number(self.value)} ({number(low)} to {number(high)})"


def _over_labels(points: Sequence[Point], styles: Mapping[str, Style], name: str, label: str) -> ReportFigure:
    """An error bar for each point over the number of labels; a single budget becomes a dot plot."""
    budgets = sorted({point.labels for point in points})
    if len(budgets) == 1:
        return _dots(points, styles, name, label)
    figure, axes = panel()
    draw_over_labels(axes, points, styles, label)
    legend(figure, axes)
    said = "; ".join(f"{point.arm}, {point.labels} labels: {point}" for point in points)
    title = f"{label[:1].upper()}{label[1:]} against labels, with intervals"
    return ReportFigure(name, title, f"{title}. {said}.", figure)


def draw_over_labels(axes: Axes, points: Sequence[Point], styles: Mapping[str, Style], label: str) -> None:
    """A line with error bars for each arm, over the label budgets; zero is marked where ``label`` says "above"."""
    budgets = sorted({point.labels for point in points})
    names = list(dict.fromkeys(point.arm for point in points))
    for place, arm in enumerate(names):
        mine = sorted((point for point in points if point.arm == arm), key=lambda point: point.labels)
        shift = 1.03 ** (place - (len(names) - 1) / 2)  # intervals beside one another, not on one another
        style, values = styles[arm], [point.value for point in mine]
        bars = list(zip(*(_bars(point.value, *point.ends) for point in mine), strict=True))
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ls": style.line, "label": plain(arm)}
        axes.errorbar([point.labels * shift for point in mine], values, bars, capsize=2.5, ms=5, lw=1.5, **look)
    if "above" in label:
        axes.axhline(0, color=INK, lw=1)
    axes.set(xscale="log", xlabel="labelled training images", ylabel=label)
    axes.set_xticks(budgets, [str(one) for one in budgets])
    axes.xaxis.set_minor_locator(NullLocator())


def _dots(points: Sequence[Point], styles: Mapping[str, Style], name: str, label: str) -> ReportFigure:
    """The arms of one budget below one another, each with its interval."""
    figure, axes = panel()
    figure.set_figheight(1.1 + 0.34 * len(points))
    for place, point in enumerate(points):
        style, (low, high) = styles[point.arm], point.ends
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "capsize": 3, "lw": 1.6}
        axes.errorbar(point.value, place, xerr=[[end] for end in _bars(point.value, low, high)], **look)
    axes.set_yticks(range(len(points)), [plain(shortened(point.arm, 36)) for point in points])
    axes.set(xlabel=label, ylim=(len(points) - 0.5, -0.5))
    axes.grid(axis="x", color="#E6E6E6", lw=0.8)
    if "above" in label:
        axes.axvline(0, color=INK, lw=1)
    title = f"{label[:1].upper()}{label[1:]}, {points[0].labels} labels, with intervals"
    said = "; ".join(f"{point.arm}: {point}" for point in points)
    return ReportFigure(name, title, f"{title}. {said}.", figure)


def _bars(value: float, low: float, high: float) -> tuple[float, float]:
    """How far an interval reaches down and up; a mean of equal values may lie outside them by a last bit."""
    return max(value - low, 0.0), max(high - value, 0.0)


def _strips(
    results: Sequence[Result],
    columns: Mapping[str, str],
    styles: Mapping[str, Style],
    name: str,
    title: str,
    label: str,
) -> ReportFigure:
    """One group of marks for each column, a mark for each arm, bars from the lowest seed to the highest."""
    figure, axes = panel()
    said = []
    for place, one in enumerate(results):
        style = styles[one.arm.name]
        shift = 0.7 * ((place + 0.5) / len(results) - 0.5)
        for group, column in enumerate(columns):
            found = [float(row[column]) for row in one.arm.rows if row.get(column)]
            if found:
                low, mean, high = min(found), sum(found) / len(found), max(found)
                text = plain(one.arm.name) if group == 0 else None
                bars = [[end] for end in _bars(mean, low, high)]
                axes.errorbar(
                    group + shift, mean, bars, color=style.colour, marker=style.marker, ms=5, ls="", label=text
                )
                said.append(f"{one.arm.name}, {columns[column]}: {number(mean)}")
    names = [plain(shortened(one)) for one in columns.values()]
    slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, names)) > 48 else {}
    axes.set_xticks(range(len(columns)), names, **slant)  # type: ignore[arg-type]
    axes.set(ylabel=label, xlim=(-0.5, len(columns) - 0.5))
    legend(figure, axes)
    return ReportFigure(name, title, f"{title}. {'; '.join(said)}.", figure)
