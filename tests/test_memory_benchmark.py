"""The memory of a pretraining does not grow with the number of images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's smaps_rollup")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "memory", raising=False)
    import memory

    return memory


def test_what_is_held_is_seen(memory):
    with memory.Watch() as idle:
        pass
    with memory.Watch() as watch:
        held = bytearray(b"1") * 200_000_000
        watch._ended.wait(0.5)
    assert watch.peak["own"] - idle.peak["own"] > 150
    assert len(held) == 200_000_000


def test_every_image_is_there_as_a_file_of_its_own(memory, tmp_path):
    drawn = memory.draw(tmp_path)
    (folder,) = memory.lay_out(drawn, tmp_path / "many", 2000, tar=False)
    assert len(list(folder.rglob("*.jpg"))) == 2000
    assert len(memory.lay_out(drawn, tmp_path / "tars", 3000, tar=True)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", ["cache", "live", "tar"])
def test_memory_is_flat_from_a_thousand_to_a_hundred_thousand_images(memory, path):
    few, many = memory.compare(memory.parse(["--paths", path]))[path]
    assert few["trained"] > 0 < many["trained"]
    assert many["own"] < 1.1 * few["own"]
