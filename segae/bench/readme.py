"""Tables and figures of the README and of docs/, made from results/*.csv: ``make readme``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segae.bench.answers import answer_table, draw_answer
from segae.bench.curves import draw_curves
from segae.bench.evidence import draw_parts, draw_ways
from segae.bench.parts import parts_table
from segae.bench.speed_tables import (
    by_device,
    ceilings_table,
    decoding_table,
    draw_shares,
    peers_table,
    switches_table,
)
from segae.bench.sweeps import draw_masks, draw_passes
from segae.bench.tables import levels_table, protocol_table, results_table
from segae.tasks.rows import read_rows


def of_rows(make: Callable[[Sequence[Any]], str]) -> Callable[[Path], str]:
    """What makes a table from rows, for the file that holds them."""
    return lambda rows_csv: make(read_rows(rows_csv))


SECTIONS: tuple[tuple[str, str, str, Callable[[Path], str]], ...] = (
    ("README.md", "results", "results/bench.csv", answer_table),
    ("README.md", "long", "results/pretraining_gpu.csv", answer_table),
    ("docs/pretraining.md", "objectives", "results/pretraining.csv", of_rows(results_table)),
    ("docs/pretraining.md", "levels", "results/level_use.csv", of_rows(levels_table)),
    ("docs/pretraining.md", "parts", "results/layers_ablation.csv", of_rows(parts_table)),
    ("docs/training.md", "protocols", "results/protocol_validation.csv", of_rows(protocol_table)),
    *(
        ("docs/speed.md", f"{name}-{device}", f"results/throughput_{device}.csv", of_rows(by_device(make)))
        for device in ("cpu", "cuda")
        for name, make in (("ceilings", ceilings_table), ("peers", peers_table), ("switches", switches_table))
    ),
    ("docs/speed.md", "decoding", "results/throughput_cpu.csv", of_rows(by_device(decoding_table))),
)
"""Page, name of the table in it, rows, and what makes the table from the file of rows."""


def render(page: str, name: str, table: str) -> str:
    """The page with ``table`` between the two markers of ``name``.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- {name}: made by `make readme` -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no place for the table {name!r}: {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def pages_with_results(root: Path) -> dict[Path, str]:
    """What each page below ``root`` should say."""
    pages: dict[Path, str] = {}
    for page, name, rows, make in SECTIONS:
        path = root / page
        pages[path] = render(pages.get(path) or path.read_text(), name, make(root / rows))
    return pages


FIGURES: tuple[tuple[str, str, Callable[[Path, Path], None]], ...] = (
    ("docs/figures/labels.svg", "results/bench.csv", draw_answer),
    ("docs/figures/ways.svg", "results/bench.csv", draw_ways),
    ("docs/figures/parts.svg", "results/layers_ablation.csv", draw_parts),
    ("docs/figures/passes.svg", "results/layers_ablation.csv", draw_passes),
    ("docs/figures/masks.svg", "results/mask_settings.csv", draw_masks),
    (
        "docs/figures/images_seen.svg",
        "results/pretraining.csv",
        lambda rows_csv, path: draw_curves(read_rows(rows_csv), path),
    ),
    *(
        (
            f"docs/figures/speed_{device}.svg",
            f"results/throughput_{device}.csv",
            lambda rows_csv, path: draw_shares(read_rows(rows_csv), path),
        )
        for device in ("cpu", "cuda")
    ),
)
"""Figure, rows, and what draws it from the file of rows."""


def mark_of(rows_csv: Path) -> str:
    """What stands at the end of a figure's file: the rows it was drawn from."""
    rows = rows_csv.read_text().encode()  # whatever ends its lines
    return f"<!-- drawn by `make readme` from rows with SHA-256 {hashlib.sha256(rows).hexdigest()} -->"


def stale_figures(root: Path) -> list[str]:
    """The figures below ``root`` that are missing or were drawn from other rows than those there."""
    stale = []
    for name, rows, _ in FIGURES:
        if (root / rows).exists():
            drawn = (root / name).read_text() if (root / name).exists() else ""
            stale += [] if drawn.rstrip().endswith(mark_of(root / rows)) else [name]
    return stale


def draw_figures(root: Path) -> None:
    """Draw every figure that has rows."""
    for name, rows, draw in FIGURES:
        if (root / rows).exists():
            draw(root / rows, root / name)
            with (root / name).open("a") as file:
                file.write(f"{mark_of(root / rows)}\n")


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent.parent
    for path, text in pages_with_results(root).items():
        path.write_text(text)
    draw_figures(root)
