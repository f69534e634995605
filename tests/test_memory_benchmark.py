"""The memory of a pretraining does not grow with the number of images."""

from __future__ import annotations

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
    monkeypatch.delitem(sys.modules, "memory", raising=False)
    import memory

    return memory


_HOLD = """
import json, memory
with memory.Watch() as idle:
    pass
with memory.Watch() as watch:
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
    (folder,) = memory.lay_out(drawn, tmp_path / "many", 2000, tar=False)
    assert len(list(folder.rglob("*.jpg"))) == 2000
    assert len(memory.lay_out(drawn, tmp_path / "tars", 3000, tar=True)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", ["cache", "live", "tar"])
def test_memory_is_flat_from_a_thousand_to_a_hundred_thousand_images(memory, path):
    few, many = memory.compare(memory.parse(["--paths", path]))[path]
    assert few["trained"] > 0 < many["trained"]
    assert many["own"] < 1.1 * few["own"]
