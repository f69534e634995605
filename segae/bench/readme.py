"""The README's results table, made from results/*.csv: ``make readme``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from segae.tasks.rows import read_rows

BEGIN, END = "<!-- results: made by `make readme` -->", "<!-- end of results -->"
_HEADER = ("init", "schedule", "seeds", "mIoU", "pet", "background", "border", "mean per-image mIoU")
_COLUMNS = ("miou", "iou_pet", "iou_background", "iou_border", "per_image_miou")


def results_table(rows: Sequence[dict[str, str]]) -> str:
    """Mean over seeds of each init and schedule, with the spread of mIoU, as a Markdown table.

    Args:
        rows: result rows of one data set, encoder, decoder and split.
    """
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["init"], row["freeze_epochs"], row["epochs"]), []).append(row)
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + "---|" * len(_HEADER)]
    ordered = sorted(groups.items(), key=lambda item: (int(item[0][2]), _mean(item[1], "miou")))
    for (init, frozen, full), members in ordered:
        values = [f"{_mean(members, column):.3f}" for column in _COLUMNS]
        values[0] = f"{values[0]} ± {_spread(members, 'miou'):.3f}"
        cells = [init, f"{frozen} + {full}", str(len(members)), *values]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render(readme: str, table: str) -> str:
    """The README with ``table`` between its two markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def readme_with_results(root: Path) -> str:
    """What README.md below ``root`` should say."""
    return render((root / "README.md").read_text(), results_table(read_rows(root / "results" / "pet_sample.csv")))


def _mean(rows: Sequence[dict[str, str]], column: str) -> float:
    return statistics.fmean(float(row[column]) for row in rows)


def _spread(rows: Sequence[dict[str, str]], column: str) -> float:
    values = [float(row[column]) for row in rows]
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent.parent
    (root / "README.md").write_text(readme_with_results(root))
