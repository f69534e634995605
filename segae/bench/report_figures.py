"""Figures of the report: at most six lines, labeled directly, one idea each; inlined into the page or exported."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from segae._io import data_uri, write_atomically
from segae.errors import DataError

MAX_LINES = 6  # in one figure; more cannot be followed
INK, FAINT = "#1d2230", "#e6e6e6"
# Okabe and Ito's colors for color-blind readers, without yellow, which is too faint on white
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP"
_DPI, _SIZE = 120, (5.4, 3.3)
_SVG_LIMIT = 20_000  # bytes: a smaller SVG is never larger than the PNG
_SHEET_WIDTH = 960  # pixels: wider pictures are scaled down


@dataclass(frozen=True)
class ReportFigure:
    """A figure, the name of its file, its title on the page, and its content in words (alt text)."""

    name: str
    title: str
    alt: str
    figure: Figure

    @property
    def uri(self) -> str:
        """Data URI: SVG or PNG, whichever is smaller."""
        files = {"image/svg+xml": save(self.figure, "svg")}
        if len(files["image/svg+xml"]) > _SVG_LIMIT:
            files["image/png"] = save(self.figure, "png")
        return data_uri(*min(files.items(), key=lambda item: len(item[1])))


def efficiency_figure(results: pd.DataFrame, names: Sequence[str], name: str) -> ReportFigure:
    """Mean IoU against the number of labels, with intervals where there are any; a dot plot for a single budget.

    ``results`` has the columns ``name``, ``labels``, ``miou``, ``low`` and ``high`` (NaN without an interval); of
    ``names`` six variants at most are shown; the figure's file is called ``name``.
    """
    shown = results[results["name"].isin(names[:MAX_LINES])]
    budgets = sorted(set(shown["labels"]))
    said = "; ".join(f"{row['name']}, {row['labels']} labels: {_spoken(row)}" for _, row in shown.iterrows())
    figure, axes = _panel()
    if len(budgets) == 1:
        _draw_dots(figure, axes, shown, names)
        title = f"Mean IoU with {budgets[0]} labels"
        return ReportFigure(name, title, f"{title}. {said}.", figure)
    lines: dict[str, Any] = {}
    for place, one in enumerate(names[:MAX_LINES]):
        mine = shown[shown["name"] == one].sort_values("labels")
        shift = 1.03 ** (place - (len(names) - 1) / 2)  # intervals beside one another, not on one another
        look: dict[str, Any] = {"color": COLORS[place], "marker": _MARKERS[place], "ms": 5, "lw": 1.6, "capsize": 2.5}
        lines[one], *_ = axes.errorbar(mine["labels"] * shift, mine["miou"], _bars(mine), **look)
    axes.set(xscale="log", xlabel="labeled training images", ylabel="mean IoU")
    axes.set_xticks(budgets, [str(one) for one in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    _label_ends(axes, lines)
    return ReportFigure(name, "Mean IoU against the number of labels", f"Mean IoU against labels. {said}.", figure)


def curves_figure(curves: pd.DataFrame, runs: Mapping[str, Sequence[str]], name: str) -> ReportFigure | None:
    """Training loss over the epochs, the mean over the seeds of each variant; None where no run has a log.

    ``curves`` has the columns ``run_id``, ``epoch``, ``train_loss``; ``runs`` are the run ids of at most six variants.
    """
    figure, axes = _panel()
    lines: dict[str, Any] = {}
    for one, ids, color, marker in zip(runs, runs.values(), COLORS, _MARKERS, strict=False):
        loss = curves[curves["run_id"].isin(ids)].groupby("epoch")["train_loss"].mean().dropna()
        if len(loss):
            (lines[one],) = axes.plot(loss.index, loss, color=color, marker=marker, ms=4, lw=1.6)
    if not lines:
        return None
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_ends(axes, lines)
    said = "; ".join(f"{one} {line.get_ydata()[-1]:.3f}" for one, line in lines.items())
    return ReportFigure(name, "Training loss", f"Training loss after the last epoch: {said}.", figure)


def picture_uri(path: Path) -> str:
    """Data URI of a picture file, scaled down to at most 960 pixels of width, as JPEG; unreadable is a DataError."""
    content = BytesIO()
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            scaled = picture.convert("RGB")
            scaled.thumbnail((_SHEET_WIDTH, picture.height), Image.Resampling.LANCZOS, reducing_gap=None)
            scaled.save(content, "JPEG", quality=85)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from error
    return data_uri("image/jpeg", content.getvalue())


def save(figure: Figure, kind: str) -> bytes:
    """The figure as a file: svg, png or pdf; the same figure gives the same bytes."""
    content = BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "segae", "pdf.fonttype": 42}):  # words as words
        figure.savefig(content, format=kind, metadata=metadata, dpi=_DPI)
    return content.getvalue()


def export(figures: Sequence[ReportFigure], folder: Path) -> None:
    """Write each figure as SVG and PDF."""
    for one in figures:
        for kind in ("svg", "pdf"):
            write_atomically(folder / f"{one.name}.{kind}", save(one.figure, kind))


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white", dpi=_DPI)
    axes = figure.subplots()
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_dots(figure: Figure, axes: Axes, shown: pd.DataFrame, names: Sequence[str]) -> None:
    """The variants of one budget below one another, the best on top, each with its interval."""
    ordered = shown.sort_values("miou", ascending=False).reset_index(drop=True)
    figure.set_figheight(1.0 + 0.42 * len(ordered))
    for place in range(len(ordered)):
        one = ordered.iloc[[place]]
        color = COLORS[list(names).index(one["name"].iloc[0])]
        axes.errorbar(one["miou"], [place], xerr=_bars(one), color=color, marker="o", capsize=3, lw=1.6)
    names = ["\n".join(textwrap.wrap(one, 30)) for one in ordered["name"]]
    axes.set_yticks(range(len(ordered)), names, parse_math=False)
    axes.set(xlabel="mean IoU", ylim=(len(ordered) - 0.5, -0.5))
    axes.grid(axis="x", color=FAINT, lw=0.8)


def _label_ends(axes: Axes, lines: Mapping[str, Any]) -> None:
    """Write each name at the right end of its line, in its color, in place of a legend; names keep apart."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    texts = {one: textwrap.wrap(one, 22) or [""] for one in lines}
    halves = {one: (high - low) / 16.5 * len(text) / 2 for one, text in texts.items()}  # of their height
    style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
    high -= 2 * sum(halves.values())
    for one, line in sorted(lines.items(), key=lambda item: float(item[1].get_ydata()[-1])):
        high += 2 * halves[one]  # above it there is space for the names that follow
        place = min(max(float(line.get_ydata()[-1]), low + halves[one]), high - halves[one])
        axes.text(1.03, place, "\n".join(texts[one]), color=line.get_color(), parse_math=False, **style)
        low = place + halves[one]


def _bars(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Distances from the means down and up to the ends of their intervals; 0 where there is none."""
    bars = np.stack([rows["miou"] - rows["low"], rows["high"] - rows["miou"]]).astype(float)
    return np.nan_to_num(np.maximum(bars, 0))


def _spoken(row: pd.Series) -> str:
    known = not np.isnan(row["low"])
    return f"{row['miou']:.3f}" + (f" ({row['low']:.3f} to {row['high']:.3f})" if known else "")
