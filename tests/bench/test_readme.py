"""A page whose table is not that of the rows is found, whichever page and row it is."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from segae.bench.readme import FIGURES, SECTIONS, draw_figures, pages_with_results, stale_figures
from segae.tasks.rows import read_rows

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """The pages and the rows again, to be spoilt."""
    needed = {name for page, _, rows, _ in SECTIONS for name in (page, rows)} | {rows for _, rows, _ in FIGURES}
    for name in {name for name in needed if (ROOT / name).exists()}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "results" / "per_image", tmp_path / "results" / "per_image")
    for path, text in pages_with_results(tmp_path).items():
        path.write_text(text)
    return tmp_path


def stale(root: Path) -> set[str]:
    return {str(page.relative_to(root)) for page, text in pages_with_results(root).items() if page.read_text() != text}


@pytest.mark.parametrize("rows", sorted({rows for _, _, rows, _ in SECTIONS if (ROOT / rows).exists()}))
def test_a_row_that_changes_makes_its_pages_stale(pages: Path, rows: str) -> None:
    assert not stale(pages)
    lines = read_rows(pages / rows)
    number = next(name for name in ("miou", "exchanged_over_loss", "value") if name in lines[0])
    # of the rows of speed not every one is shown
    line = next(line for line in lines if line.get("metric", "rate_over_ceiling") == "rate_over_ceiling")
    line[number] = str(float(line[number]) + 0.1)
    with (pages / rows).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    assert stale(pages) == {other for other, _, same, _ in SECTIONS if same == rows}


@pytest.mark.parametrize("page", sorted({page for page, _, _, _ in SECTIONS}))
def test_a_number_that_is_changed_by_hand_makes_the_page_stale(pages: Path, page: str) -> None:
    name = next(name for where, name, _, _ in SECTIONS if where == page)
    before, mark, table = (pages / page).read_text().partition(f"<!-- {name}: made by")
    assert "0." in table
    (pages / page).write_text(before + mark + table.replace("0.", "0.9", 1))
    assert stale(pages) == {page}


def test_no_figure_is_older_than_its_rows() -> None:
    assert stale_figures(ROOT) == [], "run `make readme`"


@pytest.mark.parametrize(("figure", "rows"), [(figure, rows) for figure, rows, _ in FIGURES if (ROOT / rows).exists()])
def test_a_row_that_changes_makes_its_figure_stale_until_it_is_drawn_again(pages: Path, figure: str, rows: str) -> None:
    (pages / "docs" / "figures").mkdir()
    assert figure in stale_figures(pages)  # there is none yet
    draw_figures(pages)
    assert stale_figures(pages) == []
    lines = (pages / rows).read_text().splitlines(keepends=True)
    (pages / rows).write_text("".join(lines[:-1]))
    assert stale_figures(pages) == [name for name, same, _ in FIGURES if same == rows]
