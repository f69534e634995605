"""Pictures of a run: masks in colour, contact sheets, curves, confusion matrices.

Only matplotlib's ``Figure`` objects are used, never ``pyplot``: nothing global changes, no display is needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from segae.errors import SegaeError
from segae.files import write_atomically
from segae.training.colour import Colour

OKABE_ITO: dict[str, str] = {  # told apart by colour-blind readers: Okabe and Ito, jfly.uni-koeln.de/color
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
_TITLE_WIDTH = 22  # letters that fit over a picture of a contact sheet
INK, FAINT = "#222222", "#8A8A8A"
DPI = 144
_SCORES = {  # columns of a log with a panel of their own: label, colour, upper end of the scale
    "miou": ("mean IoU (validation)", "green", 1.0),
    "probe_miou": ("mean IoU of a linear probe", "purple", 1.0),
    "feature_rank": ("effective rank of the features", "orange", float("inf")),
}
_FROZEN = ("frozen", "decoder")  # phases in which the encoder rests
LARGEST_LABELLED_CONFUSION = 12  # classes; with more, numbers in the cells would not be legible


def contact_sheet(
    columns: Mapping[str, Sequence[NDArray[np.uint8]]],
    path: Path,
    *,
    row_labels: Sequence[str] = (),
    legend: Mapping[str, Colour] | None = None,
) -> None:
    """Draw pictures side by side, one row per example, and save them as PNG.

    Args:
        columns: title of each column and its pictures, uint8 (H, W, 3), any sizes; as many in each column.
        path: where the PNG goes.
        row_labels: a text left of each row, or none.
        legend: what the colours of masks mean: name and colour, 0-255.

    Raises:
        SegaeError: there is nothing to draw, or the columns are of different lengths.
    """
    rows = _rows_of(columns, row_labels)
    titles = [textwrap.fill(title, _TITLE_WIDTH) for title in columns]
    more = max(title.count("\n") for title in titles)
    cell, gap, side, top = 1.8, 0.06, 0.9 if row_labels else 0.1, 0.34 + 0.17 * more  # inches
    bottom = 0.42 if legend else 0.1
    width = side + len(columns) * (cell + gap) + 0.1
    height = top + rows * (cell + gap) + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for column, (title, pictures) in enumerate(zip(titles, columns.values(), strict=True)):
        for row, picture in enumerate(pictures):
            left, low = side + column * (cell + gap), height - top - row * (cell + gap) - cell
            axes = figure.add_axes((left / width, low / height, cell / width, cell / height))
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=10, color=INK, pad=6)
            if column == 0 and row_labels:
                place = ((side - 0.12) / width, (low + cell / 2) / height)
                figure.text(*place, row_labels[row], ha="right", va="center", fontsize=8.5, color=INK)
    if legend:
        _colour_legend(figure, legend)
    save_figure(figure, path)


def training_curves(log: Path | pd.DataFrame, path: Path) -> None:
    """Draw a run's losses and, beside them, whatever scores its log has, over the epochs, as PNG.

    Args:
        log: CSV file or table, one row per epoch: ``epoch`` (counted from 1), ``train_loss``; where they
            exist ``valid_loss``, ``miou`` and ``probe_miou`` in [0, 1], ``feature_rank``, and ``phase``: a line
            stands where the encoder is unfrozen. Rows may lack a score.
        path: where the PNG goes.

    Raises:
        SegaeError: the log has no row or lacks ``epoch`` or ``train_loss``.
    """
    table = log if isinstance(log, pd.DataFrame) else pd.read_csv(log)
    if missing := {"epoch", "train_loss"} - set(table.columns):
        raise SegaeError(f"The log has the columns {list(table.columns)} and lacks {sorted(missing)}: add them.")
    if table.empty:
        raise SegaeError("The log has 0 epochs, at least 1 is wanted: train first.")
    scores = [column for column in _SCORES if column in table and table[column].notna().any()]
    figure = Figure(figsize=(5.2 + 4.0 * len(scores), 3.4), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 1 + len(scores), squeeze=False, gridspec_kw={"wspace": 0.08})[0]
    curves = [("train_loss", "training", "blue", "o"), ("valid_loss", "validation", "vermillion", "s")]
    for column, label, colour, marker in curves:
        if column in table and table[column].notna().any():
            _curve(panels[0], table, column, label, colour, marker)
    _dress(panels[0], table, "loss")
    panels[0].legend(frameon=False, fontsize=9)
    for axes, column in zip(panels[1:], scores, strict=True):
        label, colour, highest = _SCORES[column]
        _curve(axes, table, column, label, colour, "s")
        _dress(axes, table, label)
        axes.set_ylim(bottom=0, top=max(0.05, min(highest, 1.15 * float(table[column].max()))))
    save_figure(figure, path)


def confusion_figure(confusion: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as PNG: each row shows where the pixels of one true class went, in per cent.

    Args:
        confusion: pixel counts (K, K), rows truth, columns prediction.
        classes: K names.
        path: where the PNG goes.
    """
    counts = np.asarray(confusion, np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    labelled = len(classes) <= LARGEST_LABELLED_CONFUSION
    side = 2.2 + (0.75 if labelled else 0.22) * len(classes)
    figure = Figure(figsize=(side + 0.9, side), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#F0F0F0")  # seen where a true class has no pixels
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    slant = 0 if len(classes) <= 4 and max(map(len, classes)) <= 11 else 45
    axes.set_xticks(ticks, classes, rotation=slant, ha="right" if slant else "center", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.tick_params(length=0, labelsize=9 if labelled else 6.5, colors=INK)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(share) if labelled else ():
        text = "no pixels" if np.isnan(value) else f"{100 * value:.1f} %"
        colour = "white" if value > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    cax = axes.inset_axes((1.04, 0, 0.15 / (0.75 if labelled else 0.22) / len(classes), 1))
    bar = figure.colorbar(drawn, cax=cax, format=lambda value, _: f"{100 * value:.0f} %")
    bar.set_label("share of the true class", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK, length=0)
    bar.outline.set_visible(False)
    save_figure(figure, path)


def _rows_of(columns: Mapping[str, Sequence[NDArray[np.uint8]]], row_labels: Sequence[str]) -> int:
    lengths = {title: len(pictures) for title, pictures in columns.items()}
    if row_labels:
        lengths["row labels"] = len(row_labels)
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise SegaeError(
            f"A contact sheet wants columns of one length, at least 1, and got {lengths}: "
            "give every column one picture per row."
        )
    return lengths.popitem()[1]


def _curve(axes: Axes, table: pd.DataFrame, column: str, label: str, colour: str, marker: str) -> None:
    shown = table[table[column].notna()]
    size = 5 if len(table) <= 30 else 0  # single epochs are visible in short runs, lines in long ones
    axes.plot(
        shown["epoch"],
        shown[column],
        marker=marker,
        markersize=size,
        color=OKABE_ITO[colour],
        label=label,
        lw=1.8,
    )


def _dress(axes: Axes, table: pd.DataFrame, label: str) -> None:
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    frozen = table.loc[table["phase"].isin(_FROZEN), "epoch"] if "phase" in table else table["epoch"][:0]
    if 0 < len(frozen) < len(table):
        axes.axvline(frozen.max() + 0.5, color=FAINT, lw=1, ls="--")
        axes.annotate(
            "encoder unfrozen",
            (frozen.max() + 0.5, 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=8,
            color=FAINT,
        )


def _colour_legend(figure: Figure, legend: Mapping[str, Colour]) -> None:
    patches = [
        Patch(facecolor="#{:02X}{:02X}{:02X}".format(*colour), edgecolor=FAINT, lw=0.5, label=name)
        for name, colour in legend.items()
    ]
    figure.legend(handles=patches, loc="lower center", ncols=min(len(patches), 6), frameon=False, fontsize=9)


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, atomically."""
    png = BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight", pad_inches=0.1)
    write_atomically(path, lambda file: file.write(png.getvalue()))
