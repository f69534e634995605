"""The tables and the figure of speed say what the rows say."""

from __future__ import annotations

import pytest

from segae.bench.speed_tables import (
    by_device,
    ceilings_table,
    decoding_table,
    draw_shares,
    peers_table,
    shares,
    switches_table,
)

PHASE_MS = {"corruption": 5, "forward": 30, "backward": 60, "optimizer": 5}
BASE = {"task": "segment", "encoder": "resnet18", "image_size": "128", "lowest": "", "highest": "", "device": "one"}


def row(metric: str, value: float, path: str = "cache", benchmark: str = "throughput", **more: str) -> dict[str, str]:
    found = {"benchmark": benchmark, "metric": metric, "value": str(value), "data_path": path, "beside": path}
    return {**BASE, "system": "segae", **found, **more}


ROWS = [
    row("ceiling", 20.04),
    row("rate_over_ceiling", 0.96, lowest="0.9", highest="1.01"),
    row("data_wait", 0.014),
    *(row(f"{name}_ms", value) for name, value in PHASE_MS.items()),
    row("ratio_to_plain_loop", 1.25, lowest="1.1", highest="1.3"),
    row("rate_over_ceiling", 0.88, "live", lowest="0.8", highest="0.9"),
    row("images_per_second", 8.0, system="plain-loop", data_path="live"),
    row("step_ms_on", 91.0, benchmark="switches", system="channels_last"),
    row("ms", 18.4, "2000 x 1500 px", benchmark="decoding", system="live"),
    row("ms", 131.0, "2000 x 1500 px", benchmark="decoding", system="whole"),
    row("time_on_over_off", 0.7, benchmark="switches", system="channels_last", lowest="0.65", highest="0.72"),
]


def test_each_cell_has_a_line_and_a_missing_value_stays_empty():
    lines = ceilings_table(ROWS).splitlines()
    assert lines[2] == "| segment | resnet18 | 128 | 20 | 0.96 (0.90 to 1.01) | 0.88 (0.80 to 0.90) | 1.4% |  |"
    assert len(lines) == 3
    assert "| 1.25 (1.10 to 1.30) |  |" in peers_table(ROWS)
    assert decoding_table(ROWS).splitlines()[2] == "| 2000 x 1500 px | 128 | 131 | 18.4 |  |  |"
    assert "| channels_last | segment | resnet18 | 128 | 91 |  | 0.70 (0.65 to 0.72) |" in switches_table(ROWS)


def test_images_that_lie_on_the_device_are_decoded_ones_too():
    gpu = [one | {"beside": "device"} if one["beside"] == "cache" else one for one in ROWS]
    assert ceilings_table(gpu) == ceilings_table(ROWS)
    assert peers_table(gpu) == peers_table(ROWS)
    assert shares(gpu, ("segment", "resnet18", 128)) == shares(ROWS, ("segment", "resnet18", 128))
    slower = [row("ceiling", 10.0), *gpu]
    assert "| 20 |" in ceilings_table(slower)  # of both, what a GPU with room takes by itself


def test_two_devices_are_not_mixed():
    other = [{**one, "device": "two", "encoder": "resnet50"} for one in ROWS]
    first, second = by_device(ceilings_table)([*ROWS, *other]).split("**two**")
    assert "resnet50" not in first
    assert "resnet18" not in second
    assert by_device(ceilings_table)([]) == "Not measured yet."


def test_the_shares_of_an_epoch_are_the_steps_phases_the_wait_and_the_rest(tmp_path):
    found = shares(ROWS, ("segment", "resnet18", 128))
    assert sum(found.values()) == pytest.approx(1)
    assert found["wait"] == pytest.approx(0.014)
    assert found["rest"] == pytest.approx(1 - 0.96 - 0.014)
    assert found["backward"] == pytest.approx(0.96 * 0.6)
    draw_shares(ROWS, tmp_path / "speed.svg")
    assert "segment, resnet18, 128 px" in (tmp_path / "speed.svg").read_text()


def test_an_epoch_that_was_faster_than_its_ceiling_has_no_rest():
    rows = [row("rate_over_ceiling", 1.03) if one["metric"] == "rate_over_ceiling" else one for one in ROWS]
    found = shares(rows, ("segment", "resnet18", 128))
    assert found["rest"] == pytest.approx(0, abs=1e-12)
    assert sum(found.values()) == pytest.approx(1)
