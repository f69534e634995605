"""The colors of classes: from a setting, classes.csv or classes.json, CVAT's labelmap.txt, or those of PASCAL VOC."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segae.data.folders import read_lines, read_text
from segae.errors import DataError

Color = tuple[int, int, int]
ColorTable = dict[str, Color]
COLOR_TABLES = ("classes.csv", "classes.json")
"""Files that may name the classes of a folder with their colors."""


def parse_colors(texts: Sequence[str]) -> ColorTable:
    """Read texts such as ``pet=255,0,0`` or ``pet=#ff0000`` as class names and their colors, RGB 0..255, in order.

    DataError if a text has another form, or a name or a color comes twice.
    """
    pairs = []
    for text in texts:
        name, equals, color = (part.strip() for part in text.rpartition("="))
        if not (name and equals):
            raise DataError(f"colors must be of the form pet=255,0,0 or pet=#ff0000, got {text!r}")
        pairs.append((name, color))
    return _make_table(pairs, "colors")


def find_class_table(root: Path) -> Path | None:
    """The file of class names in a folder, if there is one; DataError if there are several."""
    found = [root / name for name in (*COLOR_TABLES, "classes.txt") if (root / name).is_file()]
    if len(found) > 1:
        shown = " and ".join(path.name for path in found)
        raise DataError(f"{root} has {shown}, and either may name the classes. Remove one of them.")
    return found[0] if found else None


def read_class_table(root: Path) -> tuple[tuple[str, ...], ColorTable]:
    """The class names of a folder, and their colors if they have some: classes.csv, classes.json or classes.txt.

    classes.csv has a line for each class: name,r,g,b or name,#rrggbb, below a header or not. classes.json is a list of
    names, or of objects with name and color, or an object of colors by name. Nothing is found where there is no file.
    DataError if there are several, or one has another form.
    """
    path = find_class_table(root)
    if path is None:
        return (), {}
    if path.suffix == ".txt":
        return tuple(read_lines(path)), {}
    rows = _read_csv(path) if path.suffix == ".csv" else _read_json(path)
    names = tuple(name for name, _ in rows)
    colored = [(name, color) for name, color in rows if color]
    if colored and len(colored) < len(rows):
        raise DataError(f"{path} must have a color for each class or for none, got {len(colored)} of {len(rows)}")
    if not names or not all(names):
        raise DataError(f"{path} must have a line for each class, with its name")
    return names, _make_table(colored, str(path))


def read_labelmap(path: Path) -> ColorTable:
    """The classes and colors of CVAT's labelmap.txt: lines of ``name:r,g,b:parts:actions``; see `parse_colors`."""
    pairs = []
    for line in read_lines(path):
        name, _, rest = line.partition(":")
        pairs.append((name.strip(), rest.partition(":")[0]))
    return _make_table(pairs, str(path))


def voc_color(value: int) -> Color:
    """The color of an index in the palette of PASCAL VOC: its bits in turn, from the highest bit of each channel."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (value >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]


def _read_csv(path: Path) -> list[tuple[str, Any]]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(read_text(path).splitlines()) if any(row)]
    if rows and rows[0][0].lower() in ("name", "class", "label"):  # a header
        rows = rows[1:]
    return [(row[0], ",".join(cell for cell in row[1:] if cell)) for row in rows]


def _read_json(path: Path) -> list[tuple[str, Any]]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}. Correct it.") from error
    if isinstance(content, Mapping):
        return list(content.items())
    if isinstance(content, list) and all(isinstance(one, str) for one in content):
        return [(name, "") for name in content]
    if isinstance(content, list) and all(isinstance(one, Mapping) for one in content):
        return [(str(one.get("name") or ""), one.get("color", "")) for one in content]
    raise DataError(f"{path} must be a list of classes with name and color, or an object of colors by name")


def _make_table(pairs: Iterable[tuple[str, Any]], source: str) -> ColorTable:
    table: ColorTable = {}
    for name, text in pairs:
        color = _parse_color(text)
        if not name or color is None:
            raise DataError(f"{source} must have a name and a color such as 255,0,0 or #ff0000, got {name} {text!r}")
        if same := [other for other in table if other == name or table[other] == color]:
            raise DataError(f"{source} must have different names and colors, got {same[0]} and {name} with {text}")
        table[name] = color
    return table


def _parse_color(text: Any) -> Color | None:
    """Read 255,0,0 or #ff0000 or a list of three numbers; None if it is none of them."""
    if isinstance(text, list):
        text = ",".join(map(str, text))
    if found := re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", str(text)):
        return int(found[1], 16), int(found[2], 16), int(found[3], 16)
    parts = re.findall(r"\d+", str(text))
    if re.fullmatch(r"\s*\d+\s*[,; ]\s*\d+\s*[,; ]\s*\d+\s*", str(text)) and all(int(part) < 256 for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    return None
