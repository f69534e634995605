"""One self-contained HTML page from result rows: verdict, figure and table on top, everything else folded below.

Every number comes from the comparison tables of :func:`segae.bench.comparison.compare_rows`, computed once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from segae._io import logger, write_atomically
from segae._settings import takes_settings_of
from segae.bench.comparison import SETTINGS, Section, Variant, compare_rows, parse_json, parse_settings
from segae.bench.next_steps import find_weights_file, is_pretrained_here, next_steps
from segae.bench.report_figures import MAX_LINES, curves_figure, efficiency_figure, export, picture_uri
from segae.bench.results import DETAILS, read_details, read_rows
from segae.config import ReportConfig
from segae.errors import SegaeError

Cell = str | tuple[str, ...]
"""Text, or text with smaller lines below it."""
Table = list[dict[str, Cell]]
"""Rows: cells by the names of the columns."""

MAX_WORDS = 25  # of the verdict
_FEW_SEEDS, _FEW_IMAGES = 5, 200
_STILL_FALLING = 0.95  # last epoch's loss over that of the epoch before
_SCORES = {
    **{"boundary_iou": "boundary IoU", "dice": "Dice", "pixel_accuracy": "pixel accuracy"},
    **{"per_image_miou": "mean per-image IoU", "miou_without_border": "mIoU without border"},
}
_COST = {"seconds": "fine-tuning, s", "pretrain_seconds": "pretraining, s", "pretrain_images_seen": "images seen"}
_COST |= {"peak_memory_mb": "peak MB", "energy_wh": "fine-tuning, Wh", "pretrain_energy_wh": "pretraining, Wh"}


@takes_settings_of(ReportConfig)
def report(config: ReportConfig) -> Path:
    """Make one self-contained HTML page from a CSV file of result rows, and return its path.

    All settings are those of ``segae.config.ReportConfig``. The tables in per_image/, curves/ and confusion/ beside the
    rows are read where they exist; of ``runs``, the name of a run's folder ends with its run_id.

    Raises:
        SegaeError: rows are missing, of several studies or cannot be compared; names file, row and column.
    """
    source = Path(config.rows)
    table = read_rows(source, experiment=config.experiment)
    if len(studies := sorted(set(table["experiment"]))) > 1:
        raise SegaeError(f"experiment must be one of {', '.join(studies)} in {source}, got none")
    sheets = sorted(Path(config.runs).rglob("test/sheet.png")) if config.runs else []
    near = read_details(source, studies[0], "near_duplicates")
    images = 0 if near is None else near["test_image"].nunique()
    return write_report(
        table,
        source.with_suffix(".html") if config.out is None else Path(config.out),
        **{kind: read_details(source, studies[0], kind) for kind in DETAILS},
        pictures={path.parent.parent.name.rpartition("-")[2]: path for path in sheets},
        notes=[f"{images} test images look like images that were trained on."] if images else [],
        figures=None if config.figures is None else Path(config.figures),
    )


def write_report(
    rows: pd.DataFrame,
    out: Path,
    *,
    per_image: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
    confusion: pd.DataFrame | None = None,
    pictures: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
    figures: Path | None = None,
) -> Path:
    """Write the page of one study from its rows, as :func:`segae.bench.results.read_rows` gives them.

    Args:
        rows: of one experiment.
        out: the HTML file.
        per_image: pixel counts of single images by run_id; without them intervals are over seeds alone.
        curves: logs of the runs by run_id.
        confusion: pixel counts of pairs of classes by run_id.
        pictures: a picture of images and predictions (sheet.png) for each run_id.
        notes: further reasons to doubt the result.
        figures: folder that gets each figure as SVG and PDF.
    """
    sections = compare_rows(rows, per_image)
    pages = [_page(one, place, curves, confusion, pictures or {}) for place, one in enumerate(sections, 1)]
    template = Environment(loader=PackageLoader("segae.bench", "."), autoescape=True).get_template("report.html.jinja")
    origin = (", ".join(dict.fromkeys(filter(None, rows[name]))) for name in ("commit", "versions", "device", "date"))
    html = template.render(
        experiment=rows["experiment"].iloc[0],
        sections=pages,
        threats=[*notes, *_threats(sections, rows, curves)],
        steps=next_steps(sections[0]),
        origin=[
            f"{len(rows)} rows, each of the weights after the last epoch; no epoch was chosen by its score",
            *filter(None, origin),
        ],
    )
    write_atomically(out, html.encode("utf-8", "replace"))
    if figures is not None:
        export([one for page in pages for one in page["figures"]], figures)
    logger.info("wrote %s (%.1f MB)", out, len(html) / 1e6)
    return out


def verdict(section: Section) -> str:
    """Say in at most 25 words which variant is best with the most labels, and what its pretraining added."""
    here = section.at(section.budgets[0])
    tested, here = here["p"].count(), here[here["kind"] == ""] if (here["kind"] == "").any() else here
    best, others = here.iloc[int(here["miou"].argmax())], here[~here["plain"]]
    start, score = f"With {section.budgets[0]} labels, ", f"{best['miou']:.3f} mIoU"
    ends = [f" reaches {score}."]
    if here["seeds"].min() < 2 and len(here) > 1:
        ends = [f" scored highest, {score}; a single seed cannot rank the variants."]
    elif best["plain"] and len(others):
        other = others.iloc[int(others["miou"].argmax())]
        named = (f"{other['name']}, the best pretraining,", "the best pretraining")
        ends = [f" is highest with {score}; {name} reaches {other['miou']:.3f}." for name in named]
    elif not np.isnan(best["gain"]):
        gain = f"{abs(best['gain']):.3f} {'more' if best['gain'] > 0 else 'less'} than {best['start']}"
        apart = best["gain_low"] > 0 or best["gain_high"] < 0
        doubt = f"not clear after correction for {tested} gains" if apart else "within chance"
        ends = [f" reaches {score}, {gain}; {'clear of chance' if best['clear'] else doubt}."]
    names = [best["name"], best["name"].partition(" [")[0], "the best variant"]
    texts = [start + name + end for name in names for end in ends]
    return next((text for text in texts if len(text.split()) <= MAX_WORDS), f"{start}the best variant reaches {score}.")


def largest_gain(section: Section) -> str:
    """Say which gain with the most labels is the largest, of those that are not within chance if there are any."""
    gains = section.at(section.budgets[0]).dropna(subset=["gain_low"])
    if gains.empty:
        return ""
    sure = gains[gains["gain_low"] > 0]
    shown = gains if sure.empty else sure
    best = shown.iloc[int(shown["gain"].argmax())]
    word = "Largest gain" if best["gain"] > 0 else "No gain; the smallest loss"
    word += "" if sure.empty else " whose interval excludes 0"
    interval = f"{best['gain']:+.3f} ({best['gain_low']:+.3f} to {best['gain_high']:+.3f}, 95 %)"
    chance = ", within chance" if best["gain_low"] <= 0 <= best["gain_high"] else ""
    return f"{word}: {best['name']} over {best['start']}, {interval}{chance}."


def _page(
    section: Section,
    place: int,
    curves: pd.DataFrame | None,
    confusion: pd.DataFrame | None,
    pictures: Mapping[str, Path],
) -> dict[str, Any]:
    """What the template shows of a section."""
    first, largest = section.variants[0].first, section.budgets[0]
    plain = [one for one in section.variants if one.labels == largest and not one.kind] or section.variants
    # plain start weights are shown for sure, of the others the best
    shown = sorted(plain, key=lambda one: (not one.is_start, -one.scores.mean()))[:MAX_LINES]
    runs = {one.name: list(one.rows["run_id"]) for one in plain if one in shown}
    figures = [efficiency_figure(section.results, list(runs), f"{place}-labels")]
    if curves is not None and (loss := curves_figure(curves, runs, f"{place}-loss")) is not None:
        figures.append(loss)
    classes = {str(name): f"IoU {str(name)[4:]}" for name in first.index if str(name).startswith("iou_")}
    smaller = {f"{labels} labels": _gain_table(section, labels) for labels in section.budgets[1:]}
    folded = {
        "Further comparisons": _tests_table(section),
        "Classes and boundaries": _means_table(section, {**classes, **_SCORES}, 3),
        "Cost": _means_table(section, _COST, 0),
        "Settings of fine-tuning": _settings_table(section, pretraining=False),
        "Settings of pretraining": _settings_table(section, pretraining=True),
    }
    images = section.results["images"].max()
    parts = [first["dataset"], f"{images} {first['split']} images" if images else f"{first['split']} split"]
    parts += [first["encoder"], first["decoder"], f"{first['image_size']} px"]
    drawn = plain[0].first["epoch_images"]
    parts += [f"{first['freeze_epochs']} frozen + {first['epochs']} full epochs"]
    parts[-1] += f" of {drawn:,.0f} images" if drawn > largest else ""
    parts += [f"{first['loss']} loss"] if first["loss"] != "cross_entropy" else []
    augment = "own" if first["augment"].startswith("{") else first["augment"]
    parts += [] if augment == "default" else [f"{augment} augmentation".replace("none", "no")]
    parts += [f"{name} {value}" for name, value in parse_json(first["finetune_settings"]).items()]
    matrices = {} if confusion is None else {name: _confusion_table(confusion, ids) for name, ids in runs.items()}
    return {
        "title": ", ".join(parts),
        "verdict": verdict(section),
        "labels": largest,
        "figures": figures,
        "main": _gain_table(section, largest),
        "tested": section.at(largest)["p"].count(),
        "over": "seeds" if section.without_counts else "seeds and test images",
        "smaller": smaller,
        "folded": {title: table for title, table in folded.items() if table},
        "confusion": {name: table for name, table in matrices.items() if table},
        "sheets": {name: picture_uri(pictures[ids[0]]) for name, ids in runs.items() if ids[0] in pictures},
    }


def _gain_table(section: Section, labels: int) -> Table:
    """The answer at one label budget, in at most six columns."""
    here = section.at(labels)
    tested, worth = here["p"].notna().any(), (here["worth"] != "").any()
    rows = []
    for _, one in here.iterrows():
        row: dict[str, Cell] = {"encoder weights": one["name"]}
        row["mIoU"] = (_number(one["miou"]), _span(one, "low", "high"))
        row["gain"] = (*_difference(one), f"over {one['start']}") if one["start"] else "–"
        if tested:
            row["p (Holm)"] = (_p_value(one["p"]), "clear" if one["clear"] else "")
            row["effect size"] = _number(one["effect"], 1, sign=True)
        if worth:
            row["labels its start needs"] = one["worth"] or "–"
        rows.append(row)
    return rows


def _tests_table(section: Section) -> Table:
    """Comparisons with other variants than the start."""
    return [
        {"encoder weights": one["name"], "compared with": one["other"], "labels": str(one["labels"])}
        | {"difference": _difference(one), "p (Holm)": _p_value(one["p"])}
        | {"effect size": _number(one["effect"], 1, sign=True)}
        for _, one in section.tests.iterrows()
    ]


def _means_table(section: Section, columns: Mapping[str, str], digits: int) -> Table:
    """Means over seeds of the columns that have values, most labels first."""
    ordered = sorted(section.variants, key=lambda one: (-one.labels, one.rank))
    means = {name: [pd.to_numeric(one.rows[name]).mean() for one in ordered] for name in columns}
    known = {name: title for name, title in columns.items() if not np.isnan(means[name]).all()}
    rows: Table = []
    for place, one in enumerate(ordered if known else ()):
        cells = {title: _number(means[name][place], digits) for name, title in known.items()}
        rows.append({"encoder weights": one.name, "labels": str(one.labels), **cells})
    return rows


def _settings_table(section: Section, *, pretraining: bool) -> Table:
    """Settings of fine-tuning or pretraining by variant, with the most labels."""
    finetuning = {name.replace("_", " ") for name in SETTINGS if not name.startswith("pretrain_")}
    found = {one.name: parse_settings(one.first) for one in section.variants if one.labels == section.budgets[0]}
    columns = list(dict.fromkeys(name for settings in found.values() for name in settings))
    columns = [name for name in columns if (name in finetuning) != pretraining]
    rows = {name: {key: settings.get(key, "–") for key in columns} for name, settings in found.items()}
    return [{"encoder weights": name, **row} for name, row in rows.items() if {*row.values()} - {"–"}]


def _confusion_table(confusion: pd.DataFrame, runs: Sequence[str]) -> Table:
    """Where the pixels of each true class went, in percent of that class."""
    mine = confusion[confusion["run_id"].isin(runs)]
    classes = list(dict.fromkeys(mine["truth"]))
    pixels = mine.pivot_table(index="truth", columns="prediction", values="pixels", aggfunc="sum", fill_value=0)
    share = (100 * pixels.div(pixels.sum(axis=1), axis=0)).reindex(index=classes, columns=classes, fill_value=0)
    return [
        {"true class": one, **{f"as {name}": f"{_number(value, 0)} %" for name, value in share.loc[one].items()}}
        for one in classes
    ]


def _threats(sections: Sequence[Section], rows: pd.DataFrame, curves: pd.DataFrame | None) -> list[str]:
    """Reasons to doubt the result that the rows show, the gravest first."""
    results = pd.concat([one.results for one in sections])
    pretrained, seeds, images = rows[rows["method"] != ""], results["seeds"].min(), results["images"].max()
    subsets = rows[rows["label_subset"] != ""].groupby(["dataset", "split", "labels", "seed"])["label_subset"].nunique()
    shared = pretrained.groupby(["weights", "method", "labels"])[["seed", "pretrain_seed"]].nunique()
    commits = {*rows["commit"], *pretrained["pretrain_commit"]} - {""}
    count = {name: rows[name].nunique() for name in ("dataset", "encoder", "versions", "device")}
    steps = [pd.Series([one.first["steps"] for one in part.variants if not one.kind]).nunique() for part in sections]
    apart = [len({tuple(one.scores.index) for one in part.variants}) for part in sections]
    alone = "; ".join(sorted({one.without_counts for one in sections} - {""}))
    largest = (one for part in sections for one in part.variants if one.labels == part.budgets[0])
    outside = _list_outside_weights(rows)
    falling = dict.fromkeys(one.name for one in largest if curves is not None and _is_falling(one, curves))
    checks = {
        "Variants with the same seed had different labeled images: the comparison is unfair.": (subsets > 1).any(),
        "Variants do not have the same seeds; only those that two share are paired.": max(apart) > 1,
        f"Pretrained outside of this benchmark: {outside}. segae cannot see on which images; test images may be among "
        "them. Only pretraining inside the benchmark leaves test images out.": bool(outside),
        "Validation images, on which settings were chosen, are scored: too good.": "val" in set(rows["split"]),
        "Label budgets differ in their steps: curves show the schedule too.": max(steps) > 1,
        "Code that was not committed made some rows: nobody can repeat them.": any("+" in one for one in commits),
        f"The code of {len(commits)} commits made the rows.": len(commits) > 1,
        f"{count['versions']} sets of library versions and {count['device']} kinds of device made the rows.":
            max(count["versions"], count["device"]) > 1,
        f"Fewest seeds of a variant: {seeds}. Intervals over few seeds are wide or missing.": seeds < _FEW_SEEDS,
        f"{images} test images: a few hard ones move the mean.": 0 < images < _FEW_IMAGES,
        f"Some intervals say nothing of other test images: {alone}.": bool(alone),
        "One data set: other images may give another order.": count["dataset"] == 1,
        "One encoder: others may gain more or less.": count["encoder"] == 1,
        "One pretraining served several seeds: intervals do not cover another one.":
            ((shared["pretrain_seed"] == 1) & (shared["seed"] > 1)).any(),
        "ImageNet weights rest on a million labeled photographs, which the label counts leave out.":
            "imagenet" in set(rows["weights"]),
        f"Training loss still fell by 5 % in the last epoch; more epochs may change the order: {', '.join(falling)}.":
            bool(falling),
    }  # fmt: skip
    return [sentence for sentence, holds in checks.items() if holds]


def _list_outside_weights(rows: pd.DataFrame) -> str:
    """The files and published names that variants began with, and the data sets that these name."""
    found: dict[str, str] = {}
    for _, row in rows.iterrows():
        if file := find_weights_file(row):
            # of an encoder that the benchmark trained further the row names the benchmark's own images
            found[file] = found.get(file) or (
                "" if is_pretrained_here(row) else f" (on {row['pretrain_dataset'] or '?'})"
            )
    return "; ".join(f"{file}{data}" for file, data in found.items())


def _is_falling(variant: Variant, curves: pd.DataFrame) -> bool:
    loss = curves[curves["run_id"].isin(variant.rows["run_id"])].groupby("epoch")["train_loss"].mean().to_numpy()
    return len(loss) > 1 and bool(loss[-1] < _STILL_FALLING * loss[-2])


def _number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a true minus sign, 0 without one; a dash for NaN."""
    value = round(float(value), digits)
    return "–" if np.isnan(value) else f"{value or 0.0:{'+' if sign and value else ''},.{digits}f}".replace("-", "−")


def _span(line: pd.Series, low: str, high: str, *, sign: bool = False) -> str:
    return "" if np.isnan(line[low]) else f"{_number(line[low], sign=sign)} to {_number(line[high], sign=sign)}"


def _difference(line: pd.Series) -> tuple[str, str]:
    return _number(line["gain"], sign=True), _span(line, "gain_low", "gain_high", sign=True)


def _p_value(p: float) -> str:
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
