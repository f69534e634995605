"""How much the number of images seen in pretraining matters: a figure made from result rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from segae.bench.tables import images_seen, seeds_of_one_thing
from segae.training.figures import OKABE_ITO

Row = Mapping[str, str]

_COLOURS = [colour for name, colour in OKABE_ITO.items() if name != "yellow"]  # yellow is too faint on white
_REFERENCES = {"random": ":", "imagenet": "--"}


def curves_of(rows: Sequence[Row], schedule: str) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """For each autoencoder init and transfer its points (images seen, mean mIoU, standard deviation over seeds).

    Args:
        rows: result rows of one data set, encoder and decoder; of each init one way to pretrain, at several lengths.
        schedule: such as ``1 + 3``.
    """
    curves: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    pretrained = [row for row in rows if "ae:" in row["init"] and _schedule(row) == schedule]
    for members in seeds_of_one_thing(pretrained):
        scores = [float(row["miou"]) for row in members]
        point = (images_seen(members), statistics.fmean(scores), _spread(scores))
        curves.setdefault((members[0]["init"], members[0]["transfer"]), []).append(point)
    return {key: sorted(points) for key, points in curves.items()}


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Write an SVG: test mIoU against images seen, one panel for each schedule, random and ImageNet as lines.

    What was pretrained for one length only is no curve: such arms are grey dots.

    Args:
        rows: result rows of one data set, encoder and decoder.
        path: the .svg file.
    """
    schedules = sorted({_schedule(row) for row in rows}, key=lambda text: int(text.split()[-1]))
    figure = Figure(figsize=(4.8 * max(len(schedules), 1), 3.6), layout="constrained")
    found = {schedule: curves_of(rows, schedule) for schedule in schedules}
    lengths = sorted({point[0] for curves in found.values() for points in curves.values() for point in points})
    names = sorted({key for curves in found.values() for key, points in curves.items() if len(points) > 1})
    colours = {key: _COLOURS[index % len(_COLOURS)] for index, key in enumerate(names)}
    for column, schedule in enumerate(schedules, start=1):
        axes = figure.add_subplot(1, len(schedules), column)
        for init, style in _REFERENCES.items():
            scores = [float(row["miou"]) for row in rows if row["init"] == init and _schedule(row) == schedule]
            if scores:
                axes.axhline(statistics.fmean(scores), color="grey", linestyle=style, linewidth=1, label=init)
        for (init, transfer), points in found[schedule].items():
            seen, means, spreads = zip(*points, strict=True)
            if (init, transfer) not in names:
                axes.plot(seen, means, ".", color="silver", label="others, each of one length")
                continue
            style = "-" if transfer == "encoder" else "-."
            label = init if transfer == "encoder" else f"{init}, decoder too"
            colour = colours[init, transfer]
            axes.errorbar(seen, means, spreads, color=colour, linestyle=style, marker="o", capsize=2, label=label)
        axes.set(title=f"{schedule} epochs", xlabel="images seen in pretraining", xscale="log")
        if lengths:  # the same in every panel
            axes.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if column == 1:
            axes.set_ylabel("test mIoU, mean and sd over seeds")
        axes.grid(alpha=0.3)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    # words as words, and the same bytes for the same rows
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "segae"}):
        figure.savefig(path, metadata={"Date": None})


def _schedule(row: Row) -> str:
    return f"{row['freeze_epochs']} + {row['epochs']}"


def _spread(scores: Sequence[float]) -> float:
    return statistics.stdev(scores) if len(scores) > 1 else 0.0
