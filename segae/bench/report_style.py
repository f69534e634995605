"""How the figures of a report look, and how they get into the page and into files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segae.bench.report_arms import Arm
from segae.files import write_atomically
from segae.training.figures import DPI, INK, OKABE_ITO

_COLOURS = [colour for name, colour in OKABE_ITO.items() if name != "yellow"]  # yellow is too faint on white
_MARKERS = "osD^vP*Xph<>"
_LINES = {"": "-", "frozen": ":", "linear": "-.", "longer": "--"}
_SIZE = (5.0, 3.4)  # inches: one panel, so that its words are legible on a phone too
_SMALL = 20_000  # bytes: a PNG of these sizes is never smaller, and need not be drawn
_WIDE = 30  # letters: a longer name has a line of the legend to itself


@dataclass(frozen=True)
class ReportFigure:
    """A figure, the name of its file, its title on the page, and what it shows in words."""

    name: str
    title: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Style:
    """How an arm is drawn in every figure of a page: colour, marker and line style of matplotlib."""

    colour: str
    marker: str
    line: str


def styles_of(arms: Sequence[Arm]) -> dict[str, Style]:
    """A style for each arm's name: a variant has the colour of the start it varies, and another line and marker."""
    colours: dict[str, str] = {}
    starts: dict[tuple[str, str], str] = {}
    for arm in sorted(arms, key=lambda arm: bool(arm.variant)):
        start = (arm.init, arm.transfer)
        if arm.name not in colours:
            used = len(set(colours.values()))
            new = _COLOURS[used % len(_COLOURS)]
            colours[arm.name] = starts.get(start, new) if arm.variant else new
        starts.setdefault(start, colours[arm.name])
    lines = {arm.name: _LINES[arm.variant] for arm in arms}
    return {
        name: Style(colour, _MARKERS[place % len(_MARKERS)], lines[name])
        for place, (name, colour) in enumerate(colours.items())
    }


def panel() -> tuple[Figure, Axes]:
    """A figure of one panel."""
    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white", dpi=DPI)
    axes = figure.subplots()
    tidy(axes)
    return figure, axes


def tidy(axes: Axes) -> None:
    """Faint horizontal lines, no frame, legible numbers."""
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, axes: Axes) -> None:
    """Name the arms below the panel, which keeps its height."""
    handles, names = axes.get_legend_handles_labels()
    columns = 1 if any(len(name) > _WIDE for name in names) else 2
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(names) // columns))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)


def inline(figure: Figure) -> str:
    """The figure as a data URI: SVG or PNG, whichever is smaller."""
    files = {"image/svg+xml": saved(figure, "svg")}
    if len(files["image/svg+xml"]) > _SMALL:
        files["image/png"] = saved(figure, "png")
    kind = min(files, key=lambda one: len(files[one]))
    return f"data:{kind};base64,{b64encode(files[kind]).decode()}"


def export(figures: Sequence[ReportFigure], folder: Path) -> None:
    """Write each figure as SVG and PDF.

    Raises:
        SegaeError: the folder cannot be written.
    """
    for one in figures:
        for kind in ("svg", "pdf"):
            content = saved(one.figure, kind)
            write_atomically(folder / f"{one.name}.{kind}", lambda file, content=content: file.write(content))  # type: ignore[misc]


def plain(text: str) -> str:
    """A name in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def shortened(text: str, most: int = 24) -> str:
    """A name that fits beside an axis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def saved(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind: svg, png or pdf; the same bytes for the same figure."""
    content = BytesIO()
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]  # the same bytes for the same rows
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "segae", "pdf.fonttype": 42}):  # words as words
        figure.savefig(content, format=kind, metadata=dated, dpi=DPI)
    figure.set_layout_engine("none")  # everything has its place now; laying it out again takes most of the time
    return content.getvalue()


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, atomically; the same figure gives the same bytes."""
    from segae.files import write_atomically

    content = saved(figure, "svg")
    write_atomically(path, lambda file: file.write(content))
