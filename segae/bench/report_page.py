"""The page of a report: what its template shows of each section."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from segae.bench import report_figures as draw
from segae.bench.pictures import Gallery, galleries, gallery_figure
from segae.bench.report_arms import REFERENCES
from segae.bench.report_findings import findings, headline
from segae.bench.report_numbers import LEVEL, Numbers, Result
from segae.bench.report_style import ReportFigure, inline, styles_of
from segae.bench.report_text import further_table, methods, number, p_value, signed, span, values, worth_text
from segae.bench.report_threats import threats
from segae.data.drawn_pets import is_drawn
from segae.errors import SegaeError
from segae.tasks.page import commits_of, name_of

if TYPE_CHECKING:
    from segae.bench.report import Files

_SCORES = {
    **{"miou": "mean IoU", "boundary_iou": "boundary IoU", "dice": "Dice", "pixel_accuracy": "pixel accuracy"},
    "per_image_miou": "mean per-image IoU",
}
_COST = {"seconds": "minutes of fine-tuning", "pretrain_seconds": "minutes of our pretraining"}
_ENERGY = {"energy_wh": "Wh of fine-tuning", "pretrain_energy_wh": "Wh of our pretraining"}


class SectionPage:
    """One section: its numbers, figures and galleries.

    Args:
        numbers: of the section.
        files: what lies beside the rows.
        index: its place on the page, from 1.
        bytes_left: how much the pictures of images may add to the page.
    """

    def __init__(self, numbers: Numbers, files: Files, index: int, bytes_left: int) -> None:
        self.numbers, self.section, self.files = numbers, numbers.section, files
        self.name = f"{index}-{re.sub('[^A-Za-z0-9]+', '-', self.section.dataset).strip('-') or 'data'}"
        self.largest = numbers.at(self.section.budgets[-1])
        self.figures = self._figures()
        self.galleries, self.no_galleries = self._galleries()
        self.picture_bytes = sum(len(tile.uri) for one in self.galleries for _, tiles in one.rows for tile in tiles)
        if self.picture_bytes > bytes_left:
            self.galleries, self.picture_bytes = [], 0
            self.no_galleries = "The pictures of this section are left out: the page would be too large."

    def all_figures(self) -> list[ReportFigure]:
        """Every figure of the section, galleries included, for files."""
        drawn = [one for group in self.figures.values() for one in group]
        for gallery in self.galleries:
            name = f"{self.name}-{gallery.title.lower().replace(' ', '-')}"
            drawn.append(ReportFigure(name, gallery.title, gallery.note, gallery_figure(gallery)))
        return drawn

    def content(self, title: str) -> dict[str, Any]:
        """What the template wants of the section."""
        section, missing, budgets = self.section, self.files.missing, self.section.budgets[::-1]
        references = [init for init in REFERENCES if any(arm.is_reference and arm.init == init for arm in section.arms)]
        energy = {name: text for name, text in _ENERGY.items() if any(row.get(name) for row in section.rows)}
        costs = {**_COST, **energy, "peak_memory_mb": "peak memory in MB"}
        drawn = {
            kind: [{"title": one.title, "alt": one.alt, "uri": inline(one.figure)} for one in group]
            for kind, group in self.figures.items()
        }
        return {
            "title": title,
            "sentences": findings(self.numbers),
            "smaller_budgets": [headline(self.numbers, one, dataset=False) for one in budgets[1:]],
            "references": [name_of(init) for init in references],
            "budgets": [{"labels": one, "rows": self._table(one, references, costs)} for one in section.budgets],
            "table_note": self._table_note(),
            "further": further_table(self.numbers),
            "worth": [self._worth(init) for init in references if len(section.budgets) > 1],
            **drawn,
            "no_confusion": "" if drawn["confusion"] else missing.get("confusion", "No run of these has counts."),
            "no_convergence": ""
            if drawn["convergence"]
            else missing.get("curves", "No run of this section has a log."),
            "galleries": self.galleries,
            "no_galleries": self.no_galleries,
            "galleries_note": self._galleries_note(),
            "score_columns": [*(f"IoU {name}" for name in section.classes), *_SCORES.values()],
            "cost_columns": list(costs.values()),
            "energy": bool(energy),
            "devices": "; ".join(values(section.rows, "device")),
        }

    def _worth(self, init: str) -> dict[str, Any]:
        """For each start the labels that the reference needs to get as far, at each budget."""
        known = [arm.labels for arm in self.section.arms if arm.is_reference and arm.init == init]
        rows = [
            (arm, {one.budget: worth_text(one, known) for one in found})
            for (arm, reference), found in self.numbers.worth.items()
            if reference == init and len(found) > 1
        ]
        return {"reference": name_of(init), "rows": rows}

    def _table(self, labels: int, references: Sequence[str], costs: dict[str, str]) -> list[dict[str, Any]]:
        columns = [*(f"iou_{name}" for name in self.section.classes), *_SCORES]
        return [
            {
                "name": one.arm.name,
                "seeds": len(one.arm.rows),
                "miou": number(one.miou),
                "interval": span(one.interval) if one.interval is not None else "",
                "against": [_against(one, init) for init in references],
                "scores": [number(one.arm.mean(column)) for column in columns],
                "cost": [_cost(one, column) for column in costs],
            }
            for one in self.numbers.at(labels)
        ]

    def _table_note(self) -> str:
        over = sorted({one.interval.over for one in self.numbers.results if one.interval is not None})
        images = max(one.images for one in self.numbers.results)
        said = f"Small numbers are {100 * LEVEL:.0f} % intervals (over {' or over '.join(over)}). " if over else ""
        if images:
            said += f"{images} images of the {self.section.split} split were scored. "
        if self.numbers.comparisons:
            said += (
                f"Differences are paired by seed; p values are corrected for the {self.numbers.comparisons} "
                f"comparisons of this section by Holm's method; the effect size is {_effect(self.numbers)}. Where the "
                "interval of a difference contains zero, two arms cannot be told apart."
            )
        return said

    def _figures(self) -> dict[str, list[ReportFigure]]:
        styles, name = styles_of(self.section.arms), self.name
        made = {
            "efficiency": draw.efficiency_figures(self.numbers, styles, f"{name}-labels"),
            "classes_figures": [
                draw.classes_figure(self.largest, self.section.classes, styles, f"{name}-classes"),
                draw.boundary_figure(self.largest, styles, f"{name}-boundaries"),
            ],
            "confusion": self._confusion(),
            "convergence": [],
            "cost": [draw.cost_figure(self.largest, styles, f"{name}-cost")],
        }
        if self.files.curves is not None:
            made["convergence"] = draw.convergence_figures(self.largest, self.files.curves, styles, f"{name}-curves")
        return made

    def _confusion(self) -> list[ReportFigure]:
        table = self.files.confusion
        made = []
        for place, one in enumerate(self.largest if table is not None else (), start=1):
            mine = table[table["settings"].isin([row["settings"] for row in one.arm.rows])]  # type: ignore[index]
            classes = list(dict.fromkeys(mine["truth"]))
            if classes:
                counts = mine.pivot_table(
                    index="truth", columns="prediction", values="pixels", aggfunc="sum", fill_value=0
                )
                counts = counts.reindex(index=classes, columns=classes, fill_value=0)
                name = f"{self.name}-confusion-{place}"
                made.append(draw.confusion_figure(one.arm.name, counts.to_numpy("int64"), classes, name))
        return made

    def _galleries(self) -> tuple[list[Gallery], str]:
        if "galleries" in self.files.missing:
            return [], self.files.missing["galleries"]
        data = self.files.data.get(self.section.dataset)
        if data is None:
            given = ", ".join(self.files.data)
            return [], f"No pictures: {self.section.dataset} is none of the data sets given with --data ({given})."
        try:
            return galleries([one.arm for one in self.largest], data, self.files.runs), ""
        except SegaeError as error:  # the numbers are worth a page without pictures too
            return [], f"No pictures: {error}"

    def _galleries_note(self) -> str:
        first = self.largest[0].arm
        return (
            f"Models trained with {first.labels} labels, first seed. Under each prediction its mean IoU on that image."
        )


def render(pages: Sequence[SectionPage], *, name: str, source: str, files: Files) -> str:
    """The page as HTML; every name in it is escaped."""
    from jinja2 import Environment, PackageLoader

    rows = [dict(row) for page in pages for row in page.section.rows]
    main = max(pages, key=lambda page: (len(page.section.budgets), len(page.section.arms)))
    dates = sorted(values(rows, "date"))
    template = Environment(loader=PackageLoader("segae.bench", "."), autoescape=True).get_template("report.html.jinja")
    all_numbers = [page.numbers for page in pages]
    drawn = {name for page in pages for name, one in page.files.data.items() if is_drawn(one.root)}
    return template.render(
        experiment=name,
        headline=headline(main.numbers, main.section.budgets[-1]),
        sections=[page.content(title) for page, title in zip(pages, _titles(pages), strict=True)],
        methods=methods(all_numbers),
        threats=threats(all_numbers, files.curves, drawn, files.near_duplicates),
        drawn=bool(drawn),
        rows=len({row["settings"] for row in rows}),
        source=source,
        commits=commits_of(rows),
        dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
    )


def _titles(pages: Sequence[SectionPage]) -> list[str]:
    """The data set's name, and what else tells the sections apart."""
    parts = [
        {
            "dataset": one.dataset,
            "split": f"{one.split} images",
            "encoder": one.encoder,
            "decoder": one.decoder,
            "size": f"{one.image_size} px",
            "schedule": f"{one.schedule} epochs",
        }
        for one in (page.section for page in pages)
    ]
    differing = [name for name in parts[0] if name == "dataset" or len({part[name] for part in parts}) > 1]
    shown = differing if len(pages) > 1 else ["dataset", "encoder", "decoder", "schedule"]
    return [", ".join(part[name] for name in shown) for part in parts]


def _against(one: Result, init: str) -> dict[str, str]:
    if init not in one.against:
        return dict.fromkeys(("difference", "interval", "p", "effect"), "")
    found = one.against[init]
    return {
        "difference": signed(found.difference.estimate),
        "interval": span(found.difference, signed),
        "p": p_value(found.p_adjusted),
        "effect": signed(found.effect_size, 1),
    }


def _effect(numbers: Numbers) -> str:
    if numbers.without_counts:
        return "the mean difference over the standard deviation of the seeds' differences"
    return "the mean difference over the standard deviation of one seed on one image (Westfall, Kenny and Judd 2014)"


def _cost(one: Result, column: str) -> str:
    value = one.arm.mean(column)
    if math.isnan(value):
        return "–"
    return f"{value / 60:.1f}" if column.endswith("seconds") else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
