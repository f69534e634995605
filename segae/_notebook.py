"""What objects show of themselves: a short line, and in notebooks a small table with colors and pictures."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from segae._io import data_uri

_MOST_CLASSES = 24  # that are shown with their colors
_CELL = Markup("<tr><th style='text-align:left;vertical-align:top'>{}</th><td style='text-align:left'>{}</td></tr>")
_CHIP = Markup("<span style='white-space:nowrap'>{}{}</span> ")
_COLOR = Markup(
    "<span style='display:inline-block;width:0.9em;height:0.9em;background:{};border:1px solid #888'></span> "
)


class ShownInNotebooks:
    """Base of what has a short ``repr``, and in notebooks a table, both made of ``_facts``."""

    def _facts(self) -> dict[str, Any]:
        """What there is to know, by name."""
        raise NotImplementedError

    def _pictures(self) -> dict[str, Any]:
        """Rows that a notebook shows in addition, or in place of facts of the same name; texts or ``Markup``."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        return str(html_table(type(self).__name__, self._facts() | self._pictures()))


def html_table(title: str, rows: Mapping[str, Any]) -> Markup:
    """A small table of names and values; what is no ``Markup`` is escaped."""
    body = Markup("").join(_CELL.format(name, value) for name, value in rows.items())
    caption = "<caption style='text-align:left;font-weight:bold;caption-side:top'>{}</caption>"
    return Markup(f"<table>{caption}{{}}</table>").format(title, body)


def html_frame(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table with a line of column names; what is no ``Markup`` is escaped."""

    def line(kind: str, values: Iterable[Any]) -> Markup:
        cells = (
            Markup(f"<{kind} style='text-align:left;vertical-align:top'>{{}}</{kind}>").format(value)
            for value in values
        )
        return Markup("<tr>{}</tr>").format(Markup("").join(cells))

    body = Markup("").join(line("td", row) for row in rows)
    return Markup("<table>{}{}</table>").format(line("th", columns), body)


def html_classes(classes: Sequence[str], palette: Sequence[Sequence[int]]) -> Markup:
    """The names of classes, each behind a square of its color (red, green, blue in 0-255)."""
    codes = ["#{:02x}{:02x}{:02x}".format(*color) for color in palette]
    pairs = [*zip(classes, codes, strict=True)][:_MOST_CLASSES]
    more = f"and {len(classes) - len(pairs)} more" if len(classes) > len(pairs) else ""
    return Markup("").join(_CHIP.format(_COLOR.format(code), name) for name, code in pairs) + more


def html_picture(pixels: Any) -> Markup:
    """Pixels, uint8 (H, W, 3), as an image."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Markup("<img src='{}'>").format(data_uri("image/png", file.getvalue()))


def html_run(model: ShownInNotebooks, folder: Path) -> dict[str, Markup]:
    """What a training made, as rows: the model, and the curves if they are in the run folder."""
    curves = folder / "curves.png"
    picture = "<img src='{}' style='max-width:40em'>"
    shown = {"curves": Markup(picture).format(data_uri("image/png", curves.read_bytes()))} if curves.is_file() else {}
    return {"model": Markup(model._repr_html_())} | shown


def log_facts(log: Any) -> dict[str, str]:
    """Length and last losses of a training, from its table with a row per epoch."""
    last = {name: f"{log[name].iloc[-1]:.4f}" for name in ("train_loss", "valid_loss") if name in log}
    return {"epochs": f"{len(log)} in {log['seconds'].sum():.0f} s"} | last


def list_names(names: Sequence[str], most: int = 8) -> str:
    """The first names of a list, and how many there are."""
    more = f", ... ({len(names)})" if len(names) > most else ""
    return ", ".join(names[:most]) + more
