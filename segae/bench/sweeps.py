"""Figures of how a score follows one setting of a pretraining: its passes, the share it hides, the size of a patch."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.bench.report_style import tidy, write_svg
from segae.tasks.rows import read_rows
from segae.training.figures import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, str]
Series = dict[float, list[float]]

_COLOURS = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "purple")]
_SCORE = "validation mIoU, mean, and seeds as points"


def passes_figure(rows: Sequence[Row]) -> Figure:
    """Validation mIoU of `layers` against its passes over the images; from random weights and ImageNet's as lines.

    Args:
        rows: of ``benchmarks/layers_ablation.py``; those of the encoder with the most lengths are shown.
    """
    wholes = [row for row in rows if (row["variant"], row["transfer"]) == ("layers", "encoder+decoder")]
    wholes = [row for row in wholes if row["init"] == "random"]
    lengths = {row["encoder"]: len({one["pretrain_epochs"] for one in wholes if one["encoder"] == row["encoder"]})
               for row in wholes}  # fmt: skip
    encoder = max(lengths, key=lambda name: lengths[name])
    series: dict[str, Series] = {}
    for row in sorted(wholes, key=lambda row: (float(row["boundary"]), row["fitted_head"])):
        if row["encoder"] == encoder:
            _add(series.setdefault(_name(row), {}), float(row["pretrain_epochs"]), row)
    figure, (axes,) = _panels(1)
    _draw(axes, series)
    for init, style in (("random", ":"), ("imagenet", "--")):
        names = (encoder, "no pretraining", init)
        bare = [float(row["miou"]) for row in rows if (row["encoder"], row["variant"], row["init"]) == names]
        if bare:
            level = statistics.fmean(bare)
            axes.axhline(level, color="grey", linestyle=style, linewidth=1)
            place: dict[str, Any] = {"xy": (0.02, level), "xytext": (0, 3), "xycoords": ("axes fraction", "data")}
            axes.annotate(f"{init}, no pretraining", **place, textcoords="offset points", fontsize=8)
    _scale(axes, {length for points in series.values() for length in points})
    axes.set_xlabel("passes over the images", fontsize=9)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    return figure


def masks_figure(rows: Sequence[Row]) -> Figure:
    """Validation mIoU of `mask` against the share of the image that is hidden, and against the side of a patch.

    Args:
        rows: result rows of ``segae compare --arms ae:mask``; each panel shows those that agree in the other setting
            with most rows.
    """
    patches, ratios = ([_setting(row, name) for row in rows] for name in ("patch", "mask_ratio"))
    patch, ratio = (max(set(values), key=values.count) for values in (patches, ratios))
    figure, panels = _panels(2)
    share: Series = {}
    side: Series = {}
    for row, one, other in zip(rows, patches, ratios, strict=True):
        if one == patch:
            _add(share, other, row)
        if other == ratio:
            _add(side, one, row)
    _draw(panels[0], {"": share})
    _draw(panels[1], {"": side})
    panels[0].set_title(f"patches of {patch:g} px", fontsize=10, loc="left")
    panels[0].set_xlabel("share of the patches that is hidden", fontsize=9)
    panels[1].set_title(f"{ratio:g} of the patches hidden", fontsize=10, loc="left")
    panels[1].set_xlabel("side of a patch in pixels", fontsize=9)
    _scale(panels[1], set(side))
    return figure


def draw_passes(rows_csv: Path, path: Path) -> None:
    """Write :func:`passes_figure` of a file of rows as SVG."""
    write_svg(passes_figure(read_rows(rows_csv)), path)


def draw_masks(rows_csv: Path, path: Path) -> None:
    """Write :func:`masks_figure` of a file of rows as SVG."""
    write_svg(masks_figure(read_rows(rows_csv)), path)


def _name(row: Row) -> str:
    head = "fitted head" if row["fitted_head"] == "1" else "random head"
    return f"{'with' if float(row['boundary']) else 'without'} the boundary, {head}"


def _setting(row: Row, name: str) -> float:
    found = re.search(rf"\b{name} ([\d.]+)", row["pretrain_settings"])
    if found is None:
        raise ValueError(f"a row of {row['init']} does not say its {name}: {row['pretrain_settings']!r}")
    return float(found[1])


def _add(points: Series, place: float, row: Row) -> None:
    points.setdefault(place, []).append(float(row["miou"]))


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 4.0 * count, 3.8), layout="constrained", facecolor="white")
    panels = list(figure.subplots(1, count, squeeze=False, sharey=True)[0])
    for axes in panels:
        tidy(axes)
    panels[0].set_ylabel(_SCORE, fontsize=9)
    return figure, panels


def _draw(axes: Axes, series: Mapping[str, Series]) -> None:
    for (name, points), colour in zip(series.items(), _COLOURS, strict=False):
        places = sorted(points)
        for place in places:
            axes.plot([place] * len(points[place]), points[place], ".", color=colour, markersize=5)
        means = [statistics.fmean(points[place]) for place in places]
        axes.plot(places, means, "-o", color=colour, markersize=5, label=name or None)


def _scale(axes: Axes, places: set[float]) -> None:
    """A logarithmic axis that names the places themselves."""
    axes.set_xscale("log")
    axes.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
    axes.minorticks_off()
