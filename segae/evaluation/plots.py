"""Figures of a run: masks in color, contact sheets, learning curves, confusion matrices.

Only matplotlib's ``Figure`` objects are used, never ``pyplot``: nothing global changes, no display is needed.
"""

import inspect
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from segae._io import write_atomically
from segae.data.image_io import IGNORE_INDEX
from segae.errors import DataError, SegaeError
from segae.image_format import to_picture
from segae.methods import Method, cut_out
from segae.models.encoder import evaluation_mode
from segae.models.inference import input_settings, normalize

Color = tuple[int, int, int]
Images = Sequence[NDArray[np.uint8]]
Log = pd.DataFrame | str | os.PathLike[str]
OKABE_ITO = {"blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "vermillion": "#D55E00"}
OKABE_ITO |= {"purple": "#CC79A7", "sky": "#56B4E9", "yellow": "#F0E442", "black": "#000000"}
"""Colors distinguishable for color-blind readers (Okabe and Ito, jfly.uni-koeln.de/color)."""
INK, FAINT = "#222222", "#8A8A8A"
DPI = 120
_CELL, _GAP = 1.8, 0.08  # inches: side of a picture of a contact sheet, and the space between two
_SCORES = {  # columns of a log with a panel of their own: title, color, upper end of the scale
    "miou": ("mean IoU (validation)", "green", 1.0),
    "accuracy": ("accuracy (validation)", "green", 1.0),
    "probe_miou": ("mean IoU of a linear probe", "purple", 1.0),
    "rankme": ("effective rank of the features (RankMe)", "orange", math.inf),
    "r2": ("R\N{SUPERSCRIPT TWO} of the prediction (validation)", "sky", 1.0),
}


def colorize(mask: NDArray[np.integer], palette: Sequence[Color]) -> NDArray[np.uint8]:
    """Paint each class index of a mask (H, W) in its color (red, green, blue in 0-255), 255 white: uint8 (H, W, 3)."""
    counted = mask[mask != IGNORE_INDEX]
    if counted.size and (counted.min() < 0 or counted.max() >= len(palette)):
        seen = f"{len(palette)} for {counted.min()} to {counted.max()}"
        raise SegaeError(f"palette must have a color per class, got {seen}")
    colors = np.full((IGNORE_INDEX + 1, 3), 255, np.uint8)
    colors[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return colors[mask]


def overlay(
    image: NDArray[np.uint8], mask: NDArray[np.integer], palette: Sequence[Color], alpha: float = 0.5
) -> NDArray[np.uint8]:
    """Blend the colored mask (H, W) over an image of its size, uint8 (H, W, 3), or of another `ImageFormat`.

    ``alpha`` in [0, 1] is its share.
    """
    if image.shape[:2] != mask.shape:
        raise SegaeError(f"mask must have the size of image, {image.shape[:2]}, got {mask.shape}: resize it first")
    return np.asarray(cv2.addWeighted(to_picture(image), 1 - alpha, colorize(mask, palette), alpha, 0), np.uint8)


def denormalize(image: Tensor | NDArray[np.floating], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Undo ``(x / 255 - mean) / std`` for an image (C, H, W): uint8 (H, W, 3), clipped to 0-255.

    Of more channels than three it shows the first three.
    """
    image_hwc = torch.as_tensor(image).detach().float().cpu().numpy().transpose(1, 2, 0)
    restored = (image_hwc * np.asarray(std, np.float32) + np.asarray(mean, np.float32)) * 255
    return to_picture(np.clip(np.rint(restored), 0, 255).astype(np.uint8))


def contact_sheet(
    columns: Mapping[str, Images],
    path: Path,
    *,
    row_labels: Sequence[str] = (),
    legend: Mapping[str, Color] | None = None,
) -> None:
    """Draw pictures side by side, one row per example, and save them as PNG.

    Args:
        columns: pictures, uint8 (H, W, 3), by column title, the same number in each; long titles are broken.
        path: the PNG file.
        row_labels: a text left of each row, or none.
        legend: name and color, 0-255, of each class.

    Raises:
        SegaeError: there is nothing to draw, or the columns are of different lengths.
    """
    lengths = {title: len(pictures) for title, pictures in columns.items()}
    if row_labels:
        lengths["row_labels"] = len(row_labels)
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise SegaeError(f"columns must have the same number of pictures, 1 or more, got {lengths}")
    rows, names = next(iter(lengths.values())), list(legend or ())
    titles = [_break_text(title, _CELL - _GAP) for title in columns]
    side, top = 0.9 if row_labels else 0.1, 0.34 + 0.17 * max(title.count("\n") for title in titles)
    width = side + len(columns) * (_CELL + _GAP) + 0.1
    per_line = max(1, min(len(names), int(width / (max(map(_text_inches, names), default=0) + 0.5))))
    height = top + rows * (_CELL + _GAP) + 0.1 + (0.1 + 0.2 * math.ceil(len(names) / per_line)) * bool(names)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for column, (title, pictures) in enumerate(zip(titles, columns.values(), strict=True)):
        for row, picture in enumerate(pictures):
            left, low = side + column * (_CELL + _GAP), height - top - row * (_CELL + _GAP) - _CELL
            axes = figure.add_axes((left / width, low / height, _CELL / width, _CELL / height))
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=10, color=INK, pad=6, parse_math=False)
            if column == 0 and row_labels:
                place = ((side - 0.12) / width, (low + _CELL / 2) / height)
                figure.text(*place, row_labels[row], ha="right", va="center", fontsize=9, color=INK, parse_math=False)
    if legend:
        codes = {name: "#{:02X}{:02X}{:02X}".format(*color) for name, color in legend.items()}
        patches = [Patch(facecolor=code, edgecolor=FAINT, lw=0.5, label=name) for name, code in codes.items()]
        figure.legend(handles=patches, loc="lower center", ncols=per_line, frameon=False, fontsize=9)
    save_figure(figure, path)


def segmentation_sheet(
    images: Images,
    truths: Sequence[NDArray[np.integer]],
    predictions: Sequence[NDArray[np.integer]],
    path: Path,
    *,
    classes: Sequence[str],
    palette: Sequence[Color],
    row_labels: Sequence[str] = (),
) -> None:
    """Draw image (uint8 H, W, 3, or of another `ImageFormat`), true and predicted mask (class indices H, W) in rows."""
    true, predicted = ([colorize(mask, palette) for mask in masks] for masks in (truths, predictions))
    columns = {"image": [to_picture(image) for image in images], "truth": true, "prediction": predicted}
    contact_sheet(columns, path, row_labels=row_labels, legend=dict(zip(classes, palette, strict=True)))


def reconstruction_sheet(model: Any, method: Method, images: NDArray[np.uint8], path: Path) -> None:
    """Draw image, corrupted input and reconstruction side by side, one row for each of ``images`` (uint8 N, S, S, C).

    Where pixels were hidden, another column fills the holes of the image with the reconstruction; of a pseudo-mask
    method the target object and the predicted one are cut out of the input.
    """
    mean, std, device = input_settings(model, None, None)
    clean = normalize(images, mean, std, device)
    corrupted = method.corrupt(clean, torch.Generator(device).manual_seed(0))
    seen, mask = corrupted.image, corrupted.mask
    takes_mask = mask is not None and "mask" in inspect.signature(model.forward).parameters
    with evaluation_mode(model), torch.no_grad():
        prediction = (model(seen, mask) if takes_mask else model(seen)).float()
    probability = method.object_probability(prediction)
    columns = {"image": clean, "input": seen, "reconstruction": method.to_image(prediction, seen, clean)}
    if probability is not None and corrupted.target is not None:
        columns["pseudo-mask"] = cut_out(seen, corrupted.target[:, -1:])
        columns["predicted object"] = cut_out(seen, probability)
    for place, name in enumerate(getattr(getattr(model, "info", None), "domains", ())):
        columns[f"decoder {place}: {name}"] = method.to_image(model.reconstruct(seen, place), seen, clean)
    if mask is not None:
        columns["holes filled"] = torch.where(mask > 0, columns["reconstruction"], clean)
    contact_sheet({title: [denormalize(image, mean, std) for image in batch] for title, batch in columns.items()}, path)


def draw_curves(log: Log, path: Path) -> None:
    """Draw a run's losses and, each in a panel of its own, the scores in its log over the epochs, as PNG.

    ``log`` is a table or CSV file, one row per epoch, with ``epoch`` and ``train_loss``. Where they exist,
    ``valid_loss``, ``miou``, ``accuracy``, ``probe_miou``, ``rankme`` and ``r2`` are drawn, and from ``phase`` the
    unfreezing.
    """
    table = _read_log(log)
    scores = [column for column in _SCORES if column in table and table[column].notna().any()]
    across, down = min(2, 1 + len(scores)), math.ceil((1 + len(scores)) / 2)
    figure = Figure(figsize=(4.4 * across, 2.9 * down), dpi=DPI, facecolor="white", layout="constrained")
    first, *others = (figure.add_subplot(down, across, index + 1) for index in range(1 + len(scores)))
    _draw_line(first, table, "train_loss", "training", OKABE_ITO["blue"])
    if "valid_loss" in table and table["valid_loss"].notna().any():
        _draw_line(first, table, "valid_loss", "validation", OKABE_ITO["vermillion"])
    _style(first, "loss", table)
    _label_lines(first)
    for axes, column in zip(others, scores, strict=True):
        title, color, highest = _SCORES[column]
        _draw_line(axes, table, column, "_", OKABE_ITO[color])
        _style(axes, title, table)
        axes.set_ylim(bottom=min(0, table[column].min()), top=max(0.05, min(highest, 1.15 * table[column].max())))
    save_figure(figure, path)


def confusion_figure(confusion: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draw pixel counts (K, K), rows truth, columns prediction, of K classes as PNG, in percent of the true class."""
    counts = np.asarray(confusion, np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    names = [textwrap.shorten(name, 24, placeholder="\N{HORIZONTAL ELLIPSIS}") for name in classes]
    labeled = len(names) <= 12  # with more, numbers in the cells would not be legible
    side = 2.2 + (0.75 if labeled else 0.22) * len(names)
    axes = Figure(figsize=(side, side), dpi=DPI, facecolor="white", layout="constrained").add_subplot()
    axes.set_facecolor("#F0F0F0")  # seen where a true class has no pixels
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    slant = 0 if len(names) <= 4 and max(map(len, names)) <= 11 else 45
    axes.set_xticks(range(len(names)), names, rotation=slant, ha="right" if slant else "center", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=9 if labeled else 7, colors=INK)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.set_title("% of the true class", fontsize=10, color=INK)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(share) if labeled else ():
        text = "no pixels" if np.isnan(value) else f"{100 * value:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if value > 0.55 else INK)
    save_figure(axes.figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Save a figure as PNG, atomically."""
    write_atomically(Path(path), lambda file: figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.1))


def _text_inches(text: str, size: float = 9) -> float:
    """Width of a line of text in matplotlib's default font."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def _break_text(text: str, inches: float) -> str:
    """Break a text of 10 pt into lines that fit, after spaces and ``+ - _ /`` or, if need be, anywhere."""
    lines = [""]
    for word in re.split(r"(?<=[\s+_/-])", " ".join(text.split())):
        for part in [word] if _text_inches(word.rstrip(), 10) <= inches else word:
            if lines[-1] and _text_inches((lines[-1] + part).rstrip(), 10) > inches:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def _read_log(log: Log) -> pd.DataFrame:
    """Rows of a log with numbers under ``epoch`` and ``train_loss``; what is not finite is missing."""
    needed, shown = ["epoch", "train_loss"], str(log)[:200]
    try:
        table = (log if isinstance(log, pd.DataFrame) else pd.read_csv(log)).copy()
        for name in {*needed} | (set(table) & {"valid_loss", *_SCORES}):
            table[name] = pd.to_numeric(table[name]).where(np.isfinite)
        table = table.dropna(subset=needed)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"log must have numbers under {' and '.join(needed)}, got {shown} ({error!r})") from error
    if table.empty:
        raise DataError(f"log must have one or more epochs with train_loss, got 0 in {shown}")
    return table


def _draw_line(axes: Axes, table: pd.DataFrame, column: str, label: str, color: str) -> None:
    shown = table[table[column].notna()]
    marker = "o" if len(table) <= 30 else ""  # single epochs are visible in short runs, lines in long ones
    axes.plot(shown["epoch"], shown[column], marker=marker, markersize=4, color=color, label=label, lw=1.8)


def _style(axes: Axes, title: str, table: pd.DataFrame) -> None:
    """Title, axes and grid, and the epoch of the log in which the encoder was unfrozen."""
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    frozen: Any = table["epoch"][table["phase"].isin(["frozen", "decoder"])] if "phase" in table else ()
    if 0 < len(frozen) < len(table):
        unfrozen = max(frozen) + 0.5
        axes.axvline(unfrozen, color=FAINT, lw=1, ls="--", label="_")
        place: dict[str, Any] = {"xytext": (4, 5), "textcoords": "offset points"}
        axes.annotate("encoder unfrozen", (unfrozen, 0), xycoords=("data", "axes fraction"), color=FAINT, **place)


def _label_lines(axes: Any) -> None:
    """Write each line's label at its right end in its color, in place of a legend; the limits must be final."""
    lines = [line for line in axes.get_lines() if str(line.get_label())[0] != "_"]
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap = 14 / 72 / (axes.figure.get_figheight() * axes.get_position().height) * (high - low)  # a line of text
    style = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 10}
    high -= gap * len(lines)
    for line in sorted(lines, key=lambda one: float(one.get_ydata()[-1])):
        high += gap  # below it there is space for the labels that follow
        height = min(max(float(line.get_ydata()[-1]), low), high)
        axes.text(1.02, height, line.get_label(), color=line.get_color(), **style)
        low = height + gap
