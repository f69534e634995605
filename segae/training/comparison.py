"""Curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from segae.training.figures import DPI, INK, OKABE_ITO, save_figure

_COLOURS = [OKABE_ITO[name] for name in ("blue", "orange", "green", "vermillion", "purple", "sky")]


def compare_curves(panels: Mapping[str, Mapping[str, pd.DataFrame]], path: Path) -> None:
    """Draw training losses over epochs, one panel for each entry and one line for each run in it, as PNG.

    Args:
        panels: panel title to run name to log table with ``epoch`` and ``train_loss`` and, drawn dashed,
            ``valid_loss``; empty panels are left out. A run name has the same colour in every panel.
        path: where the PNG goes.
    """
    shown = {title: runs for title, runs in panels.items() if runs}
    names = list(dict.fromkeys(name for runs in shown.values() for name in runs))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    figure = Figure(figsize=(4.6 * len(shown), 3.2), dpi=DPI, layout="constrained", facecolor="white")
    for index, (title, runs) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), index + 1)
        for name, log in runs.items():
            marker = "o" if len(log) <= 30 else ""
            axes.plot(log["epoch"], log["train_loss"], color=colours[name], marker=marker, ms=4, label=name)
            if "valid_loss" in log:
                axes.plot(log["epoch"], log["valid_loss"], color=colours[name], ls="--", label=f"{name}, validation")
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E6E6E6", lw=0.8)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
