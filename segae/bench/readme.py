"""The README's results table, made from results/*.csv: ``make readme``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from segae.tasks.rows import read_rows

BEGIN, END = "<!-- results: made by `make readme` -->", "<!-- end of results -->"
_HEADER = (
    "init",
    "images seen in pretraining",
    "labels",
    "schedule",
    "seeds",
    "mIoU",
    "pet",
    "background",
    "border",
    "mean per-image mIoU",
    "mIoU above random, paired by seed",
)
_SETTINGS = (  # rows that agree in all of these are seeds of one thing
    *("experiment", "dataset", "split", "labels", "encoder", "decoder", "init", "transfer", "image_size"),
    *("freeze_epochs", "epochs", "batch_size", "lr", "lr_ratio", "bn_mode", "pretrain_dataset", "pretrain_epochs"),
)
_COLUMNS = ("miou", "iou_pet", "iou_background", "iou_border", "per_image_miou")


def results_table(rows: Sequence[dict[str, str]]) -> str:
    """Mean over seeds of each init and schedule, with spread and gain over random weights, as a Markdown table.

    Args:
        rows: result rows of one data set, encoder, decoder and split.
    """
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _SETTINGS), []).append(row)
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + "---|" * len(_HEADER)]
    for members in sorted(groups.values(), key=lambda group: (int(group[0]["epochs"]), _mean(group, "miou"))):
        first = members[0]
        if len({row["seed"] for row in members}) < len(members):
            raise ValueError(f"two rows of {first['init']} share a seed; they are no independent runs")
        seen = sum(int(row["pretrain_images_seen"] or 0) for row in members) / len(members)
        values = [f"{_mean(members, column):.3f}" for column in _COLUMNS]
        if len(members) > 1:
            values[0] += f" ± {statistics.stdev(float(row['miou']) for row in members):.3f}"
        values.append(_above_random(members, rows))
        schedule = f"{first['freeze_epochs']} + {first['epochs']}"
        start = [first["init"], f"{seen:,.0f}", first["labels"], schedule, str(len(members))]
        lines.append("| " + " | ".join([*start, *values]) + " |")
    return "\n".join(lines)


def _above_random(members: Sequence[dict[str, str]], rows: Sequence[dict[str, str]]) -> str:
    """Mean difference to the random init of the same seed and schedule, with its 95 % t-interval over seeds."""
    names = ("experiment", "dataset", "split", "labels", "encoder", "decoder", "image_size", "freeze_epochs", "epochs")
    random = {
        row["seed"]: float(row["miou"])
        for row in rows
        if row["init"] == "random" and all(row[name] == members[0][name] for name in names)
    }
    gains = [float(row["miou"]) - random[row["seed"]] for row in members if row["seed"] in random]
    if members[0]["init"] == "random" or len(gains) < 2:
        return ""
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.fmean(gains)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


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


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent.parent
    (root / "README.md").write_text(readme_with_results(root))
