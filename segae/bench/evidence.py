"""Figures on what pretraining needs: what of it is used and how, and what its parts are worth; made from rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segae.bench.report_arms import Arm, sections_of
from segae.bench.report_style import write_svg
from segae.tasks.rows import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, str]

_SHORT = "1 + 3"
_STARTS = {"random": "#8A8A8A", "imagenet": "#0072B2", "ae": "#D55E00", "imagenet+ae": "#009E73"}
_APART = {"boundary": "without the boundary", "fitted_head": "with a random head"}
_PARTS = ("no pretraining", "layers")  # what is shown of an encoder that goes alone


@dataclass(frozen=True)
class Line:
    """What is said of a line of a figure, its scores by seed, and a note behind them."""

    label: str
    scores: tuple[float, ...]
    colour: str
    note: str = ""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores)


def ways_figure(rows: Sequence[Row]) -> Figure:
    """All ways to start with all labels after 1 + 3 epochs, a panel for each data set, minutes of pretraining behind.

    Args:
        rows: of one benchmark. Of several encoders that with the most arms is shown.
    """
    panels: dict[str, list[Line]] = {}
    for section in sections_of(rows):
        lines = [_line(arm) for arm in section.at(section.budgets[-1])]
        if section.schedule == _SHORT and len(lines) > max(1, len(panels.get(section.dataset, ()))):
            panels[section.dataset] = sorted(lines, key=lambda line: line.mean)
    return _figure(
        [(f"{name}, all labels", lines) for name, lines in panels.items()], "test mIoU, mean, and seeds as points"
    )


def draw_ways(rows_csv: Path, path: Path) -> None:
    """Write :func:`ways_figure` of a file of rows as SVG."""
    write_svg(ways_figure(read_rows(rows_csv)), path)


def parts_figure(rows: Sequence[Row]) -> Figure:
    """The ablation: a panel for each encoder and init, encoder and decoder with each part changed, best on top.

    Args:
        rows: of ``benchmarks/layers_ablation.py``. What has fewer rows than another length of pretraining is left out.
    """
    panels = []
    kinds = dict.fromkeys((row["encoder"], row["init"]) for row in rows)
    for encoder, init in sorted(kinds, key=lambda kind: (kind[1] != "random", list(kinds).index(kind))):
        of_init = [row for row in rows if (row["encoder"], row["init"]) == (encoder, init)]
        budget = max({_budget(row) for row in of_init}, key=lambda one: sum(_budget(row) == one for row in of_init))
        shown = [row for row in of_init if _budget(row) == budget or row["variant"] == _PARTS[0]]
        shown = [row for row in shown if row["transfer"] == "encoder+decoder" or row["variant"] in _PARTS]
        whole = [row for row in shown if row["transfer"] == "encoder+decoder"]
        differing = [name for name in _APART if len({row[name] for row in whole}) > 1]
        lines: dict[tuple[str, bool], list[float]] = {}
        for row in shown:
            label = _part_label(row, differing)
            lines.setdefault((label, row["variant"] == _PARTS[0]), []).append(float(row["miou"]))
        colour = _STARTS["ae" if init == "random" else "imagenet+ae"]
        found = [
            Line(label, tuple(scores), _STARTS[init] if bare else colour) for (label, bare), scores in lines.items()
        ]
        panels.append((f"{encoder} from {init} weights, {budget[0]} passes", sorted(found, key=lambda line: line.mean)))
    return _figure(panels, "validation mIoU, mean, and seeds as points")


def draw_parts(rows_csv: Path, path: Path) -> None:
    """Write :func:`parts_figure` of a file of rows as SVG."""
    write_svg(parts_figure(read_rows(rows_csv)), path)


def _part_label(row: Row, differing: Sequence[str]) -> str:
    """The variant, and what else of it differs between those that are shown."""
    if row["variant"] == _PARTS[0]:
        return row["variant"]
    label = row["variant"] + (", encoder alone" if row["transfer"] == "encoder" else "")
    lacks = (_APART[name] for name in differing if row["transfer"] != "encoder" and not float(row[name]))
    return label + "".join(f", {words}" for words in lacks)


def _budget(row: Row) -> tuple[str, str]:
    return row["pretrain_epochs"], row["pretrain_image_size"]


def _line(arm: Arm) -> Line:
    kind = ("imagenet+ae" if arm.init.startswith("imagenet+") else "ae") if "ae:" in arm.init else arm.init
    minutes = arm.mean("pretrain_seconds") / 60
    note = f"{minutes:.0f} min" if minutes == minutes else ""
    return Line(arm.name, tuple(float(row["miou"]) for row in arm.rows), _STARTS[kind], note)


def _figure(panels: Sequence[tuple[str, Sequence[Line]]], label: str) -> Figure:
    from matplotlib.figure import Figure

    from segae.bench.report_style import plain

    heights = [len(lines) + 1.5 for _, lines in panels] or [1.0]
    figure = Figure(figsize=(8.4, 0.32 * sum(heights) + 0.4), layout="constrained", facecolor="white")
    places = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (title, lines) in zip(places, panels, strict=False):
        _draw(axes, lines)
        axes.set_title(plain(title), fontsize=10, loc="left")
        axes.set_xlabel(label, fontsize=9)
    return figure


def _draw(axes: Axes, lines: Sequence[Line]) -> None:
    from segae.bench.report_style import plain, tidy

    tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#E6E6E6", lw=0.8)
    lowest = min(score for line in lines for score in line.scores)
    highest = max(score for line in lines for score in line.scores)
    for place, line in enumerate(lines):
        axes.plot(line.scores, [place] * len(line.scores), ".", color=line.colour, markersize=5)
        axes.plot([line.mean], [place], "|", color=line.colour, markersize=14, markeredgewidth=3)
        note = f"{line.mean:.3f}" + (f"  ({line.note} of pretraining)" if line.note else "")
        axes.annotate(note, (max(line.scores), place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(lines)), [plain(line.label) for line in lines], fontsize=8.5)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.locator_params(axis="x", nbins=7)
    wide = max(highest - lowest, 0.01)
    axes.set_xlim(lowest - 0.05 * wide, highest + 0.5 * wide)
