"""Tables and a figure of speed: the ceiling of each encoder, where a step's time goes, what each switch gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from segae.bench.tables import as_table
from segae.training.ceiling import PHASES
from segae.training.figures import OKABE_ITO

Row = Mapping[str, str]
Cell = tuple[str, str, int]
"""Task, encoder, side of the images in pixels."""
_DECODED = "decoded"  # before the training, on whichever path

_CEILINGS = (
    "task",
    "encoder",
    "px",
    "ceiling, images/s",
    "rate over ceiling: decoded",
    "live",
    "waits: decoded",
    "live",
)
_PEERS = (
    "task",
    "encoder",
    "px",
    "plain loop: decoded",
    "live",
    "fastai, stock",
    "lightly's SimSiam",
    "timm's classifier",
)
_DECODING = ("pictures", "px", "decoded whole, ms", "live, ms", "time live / whole", "grey levels apart")
_SWITCHES = ("switch", "task", "encoder", "px", "on, ms", "off, ms", "time on / off", "kept on, MB", "off, MB")


def by_device(make: Callable[[Sequence[Row]], str]) -> Callable[[Sequence[Row]], str]:
    """A table for each device in the rows, under its name; a sentence where nothing has been measured."""

    def tables(rows: Sequence[Row]) -> str:
        devices = dict.fromkeys(row["device"] for row in rows)
        made = [(device, make([row for row in rows if row["device"] == device])) for device in devices]
        parts = [f"**{device}**\n\n{table}" for device, table in made if table.count("\n") > 1]
        return "\n\n".join(parts) or "Not measured yet."

    return tables


def ceilings_table(rows: Sequence[Row]) -> str:
    """How fast each step is at most, what of that whole epochs reach, and the share of time that waits for images.

    Args:
        rows: of results/throughput_<device>.csv; those of other scripts are passed over.
    """
    lines = []
    for cell in _cells(rows):
        ratios = [_of(rows, cell, "rate_over_ceiling", path) for path in (_DECODED, "live")]
        waits = [_of(rows, cell, "data_wait", path) for path in (_DECODED, "live")]
        ceiling = _of(rows, cell, "ceiling", _DECODED)
        lines.append([*map(str, cell), _digits(ceiling), *map(_spread, ratios), *map(_percent, waits)])
    return as_table(_CEILINGS, lines)


def peers_table(rows: Sequence[Row]) -> str:
    """How many times as many images per second segae trains as others do, and what the encoder alone would allow."""
    lines = []
    for cell in _cells(rows):
        ratios = [_of(rows, cell, "ratio_to_plain_loop", path) for path in (_DECODED, "live")]
        ratios += [_of(rows, cell, f"ratio_to_{name}", _DECODED) for name in ("fastai_unet_learner", "lightly_simsiam")]
        timm = _of(rows, cell, "ceiling", _DECODED, "timm-classifier")
        lines.append([*map(str, cell), *map(_spread, ratios), f"{_digits(timm)} images/s" if timm else ""])
    return as_table(_PEERS, lines)


def switches_table(rows: Sequence[Row]) -> str:
    """What each switch costs and gives: medians over pairs, with the least and the most."""
    found: dict[tuple[str, Cell], dict[str, Row]] = {}
    for row in rows:
        if row["benchmark"] == "switches":
            found.setdefault((row["system"], _cell(row)), {})[row["metric"]] = row
    lines = []
    for (switch, cell), metrics in found.items():
        times = [_digits(metrics.get(name)) for name in ("step_ms_on", "step_ms_off")]
        kept = [_digits(metrics.get(name)) for name in ("kept_mb_on", "kept_mb_off")]
        lines.append([switch, *map(str, cell), *times, _spread(metrics.get("time_on_over_off")), *kept])
    return as_table(_SWITCHES, lines)


def decoding_table(rows: Sequence[Row]) -> str:
    """What a picture costs on one core, by set and size wanted."""
    found: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row["benchmark"] == "decoding":
            found.setdefault((row["data_path"], row["image_size"]), {})[row["system"], row["metric"]] = row
    lines = []
    for (pictures, size), values in found.items():
        times = [_digits(values.get((way, "ms"))) for way in ("whole", "live")]
        apart = _digits(values.get(("live", "grey_levels_apart")))
        lines.append([pictures, size, *times, _spread(values.get(("live", "time_over_whole"))), apart])
    return as_table(_DECODING, lines)


def shares(rows: Sequence[Row], cell: Cell) -> dict[str, float]:
    """Where an epoch's time goes, from decoded images: the phases of the step, the wait for images, and the rest.

    The phases share the time that the ceiling's step would take; the rest is what an epoch takes beyond that and the
    wait, and no less than 0: phases, ceiling and epochs were timed one after the other.
    """
    phases = {name: _number(_of(rows, cell, f"{name}_ms", _DECODED)) for name in PHASES}
    wait = _number(_of(rows, cell, "data_wait", _DECODED))
    step = min(_number(_of(rows, cell, "rate_over_ceiling", _DECODED)), 1 - wait)
    parts = {name: step * value / sum(phases.values()) for name, value in phases.items()}
    return {**parts, "wait": wait, "rest": 1 - step - wait}


def draw_shares(rows: Sequence[Row], path: Path) -> None:
    """Write an SVG: a bar for each cell, its epoch's time by phase.

    Args:
        rows: of results/throughput_<device>.csv.
        path: the .svg file.
    """
    cells = [cell for cell in _cells(rows) if _of(rows, cell, "forward_ms", _DECODED)]
    names = (*PHASES, "wait", "rest")
    colours = dict(zip(names, (colour for name, colour in OKABE_ITO.items() if name != "yellow"), strict=False))
    figure = Figure(figsize=(7.2, 0.8 + 0.27 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{task}, {encoder}, {size} px" for task, encoder, size in cells]
    left = [0.0] * len(cells)
    for name in names:
        widths = [100 * shares(rows, cell)[name] for cell in cells]
        axes.barh(labels, widths, left=left, label=name, color=colours[name], height=0.72)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="share of an epoch's time, %", xlim=(0, 100))
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    figure.legend(ncols=len(names), loc="outside upper center", frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "segae"}):
        figure.savefig(path, metadata={"Date": None})


def _cells(rows: Sequence[Row]) -> list[Cell]:
    """Those that throughput.py has measured."""
    found = {_cell(row) for row in rows if (row["benchmark"], row["metric"]) == ("throughput", "rate_over_ceiling")}
    return sorted(found, key=lambda cell: (cell[0], cell[2], cell[1]))


def _cell(row: Row) -> Cell:
    return row["task"], row["encoder"], int(row["image_size"])


def _of(rows: Sequence[Row], cell: Cell, metric: str, beside: str, system: str = "segae") -> Row | None:
    """The row of a value; None where it was not measured. `decoded` images lie on the device, or else in the cache."""
    for path in ("device", "cache") if beside == _DECODED else (beside,):
        wanted = ("throughput", metric, path, system)
        for row in rows:
            if (row["benchmark"], row["metric"], row["beside"], row["system"]) == wanted and _cell(row) == cell:
                return row
    return None


def _number(row: Row | None) -> float:
    return float(row["value"]) if row else 0.0


def _digits(row: Row | None) -> str:
    """Three significant digits."""
    if row is None:
        return ""
    value = float(row["value"])
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(row: Row | None) -> str:
    if row is None:
        return ""
    span = f" ({float(row['lowest']):.2f} to {float(row['highest']):.2f})" if row["lowest"] else ""
    return f"{float(row['value']):.2f}{span}"


def _percent(row: Row | None) -> str:
    return f"{_number(row):.1%}" if row else ""
