"""Published numbers exist as rows, and the README says what the rows say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from segae.bench.readme import readme_with_results, results_table
from segae.tasks.rows import COLUMNS

ROOT = Path(__file__).resolve().parent.parent


def test_the_readmes_table_is_that_of_the_rows():
    assert (ROOT / "README.md").read_text() == readme_with_results(ROOT), "stale: run `make readme`"


def test_a_changed_row_makes_the_table_stale():
    with (ROOT / "results" / "pet_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    changed = [{**rows[0], "miou": str(float(rows[0]["miou"]) + 0.1)}, *rows[1:]]
    assert results_table(changed) != results_table(rows)


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("pet_sample*.csv")), ids=lambda path: path.name)
def test_every_row_has_its_provenance(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert set(COLUMNS) <= set(row)
        for name in ("commit", "versions", "date", "device", "seed", "split", "labels", "bn_mode", "seconds"):
            assert row[name] != ""
        assert "+changes" not in row["commit"]
        assert 0 < float(row["miou"]) < 1
    keys = [(row["experiment"], row["split"], row["init"], row["seed"], row["epochs"], row["labels"], row["lr"],
             row["lr_ratio"]) for row in rows]  # fmt: skip
    assert len(keys) == len(set(keys)), "a run stands twice in the table"


def test_the_readme_names_the_two_commands_and_the_five_of_the_pipeline():
    text = (ROOT / "README.md").read_text()
    for command in ("make quickstart", "make test", "segae data", "segae pretrain", "segae segment", "segae evaluate"):
        assert command in text
    assert "segae predict" in text


def test_links_in_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
