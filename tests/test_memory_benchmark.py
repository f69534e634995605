"""The memory of a training does not grow with the number of images."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's smaps_rollup")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("memory", "pages", "rows"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import memory

    return memory


_HOLD = """
import json, pages
with pages.Watch() as idle:
    pass
with pages.Watch() as watch:
    held = bytearray(b"1") * 200_000_000
    watch._ended.wait(0.5)
print(json.dumps([idle.peak["own"], watch.peak["own"]]))
"""


def test_what_is_held_is_seen():
    # in a process of its own: the one of the tests gives back memory of earlier tests meanwhile
    run = subprocess.run(
        [sys.executable, "-c", _HOLD], cwd=BENCHMARKS, stdout=subprocess.PIPE, check=True, text=True, timeout=120
    )
    idle, holding = json.loads(run.stdout)
    assert 190 < holding - idle < 210


def test_every_image_is_there_as_a_file_of_its_own(memory, tmp_path):
    drawn = memory.draw(tmp_path)
    (folder,) = memory.lay_out(drawn, tmp_path / "many", 2000, "folders")
    assert len(list(folder.rglob("*.jpg"))) == 2000
    assert len(memory.lay_out(drawn, tmp_path / "tars", 3000, "tar")) == 3


def test_every_mask_belongs_to_an_image(memory, tmp_path):
    from segae.data.open import open_dataset

    drawn = memory.draw(tmp_path)
    (folder,) = memory.lay_out(drawn, tmp_path / "labelled", 2000, "labelled")
    data = open_dataset(folder)
    assert sum(len(pairs) for pairs in data.splits.values()) == 2000
    assert data.classes == memory.CLASSES


@pytest.mark.slow
def test_a_worker_s_memory_counts(memory):
    words = ["--task", "segment", "--paths", "live", "--counts", "1000", "--seconds", "0.1"]
    alone, helped = (
        memory.compare(memory.parse([*words, "--workers", workers]))["segment", "live"][0] for workers in ("0", "1")
    )
    assert helped["own"] > 1.05 * alone["own"]


def test_rows_of_other_workers_stand_beside_each_other(memory, tmp_path):
    out = tmp_path / "rows.csv"
    for workers in ("0", "2", "2"):
        given = memory.parse(["--counts", "1000", "3000", "--workers", workers, "--out", str(out)])
        memory.write("segment", "cache", [{"own": 500.0}, {"own": 510.0}], given)
    with out.open(newline="") as file:
        rows = {(row["system"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert rows["1000 images, 2 workers", "peak_memory_mb"] == 500
    assert rows["3000 images, 0 workers", "peak_over_smaller"] == 1.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "path"), [("pretrain", "cache"), ("pretrain", "live"), ("pretrain", "tar"), ("segment", "cache")]
)
def test_memory_is_flat_from_a_thousand_to_a_hundred_thousand_images(memory, task, path):
    few, many = memory.compare(memory.parse(["--task", task, "--paths", path]))[task, path]
    assert few["trained"] > 0 < many["trained"]
    assert many["own"] < 1.1 * few["own"]
