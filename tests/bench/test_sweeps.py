"""Figures of one setting show the rows that differ in it, and no others."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from segae.bench.sweeps import draw_masks, draw_passes, masks_figure, passes_figure
from segae.tasks.rows import write_rows


def ablated(variant: str, passes: int, miou: float, **more: object) -> dict[str, str]:
    row = {"encoder": "lite", "variant": variant, "init": "random", "transfer": "encoder+decoder", "seed": 0}
    row |= {"pretrain_epochs": passes, "boundary": 0.0, "fitted_head": 0, "miou": miou, **more}
    return {name: str(value) for name, value in row.items()}


def masked(patch: int, ratio: float, miou: float) -> dict[str, str]:
    settings = f"noise_sigma None; patch {patch}; mask_ratio {ratio}; hard_mask_share 0.0"
    return {"init": "ae:mask", "pretrain_settings": settings, "miou": str(miou)}


def lines(axes) -> dict[str, dict[float, float]]:
    return {
        line.get_label(): dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axes.lines
        if line.get_linestyle() == "-"
    }


def test_passes_have_a_line_for_each_way_and_the_starts_beside_them(tmp_path: Path) -> None:
    rows = [ablated("layers", passes, 0.4 + passes / 1000) for passes in (20, 5)]
    rows += [ablated("layers", 20, 0.5, seed=seed, fitted_head=1, boundary=0.02) for seed in (0, 1)]
    rows += [ablated("layers", 5, 0.9, encoder="other"), ablated("without the cut", 5, 0.1)]
    rows += [ablated("layers", 5, 0.2, transfer="encoder"), ablated("layers", 5, 0.95, init="imagenet")]
    rows += [ablated("no pretraining", 10, score, boundary="", init=init) for init, score in
             (("random", 0.3), ("random", 0.4), ("imagenet", 0.7))]  # fmt: skip
    (axes,) = passes_figure(rows).axes
    found = lines(axes)
    assert found["without the boundary, random head"] == pytest.approx({5: 0.405, 20: 0.42})
    assert found["with the boundary, fitted head"] == pytest.approx({20: 0.5})
    assert len(found) == 2
    level = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() in (":", "--")]
    assert level == pytest.approx([statistics.fmean([0.3, 0.4]), 0.7])
    write_rows(tmp_path / "rows.csv", rows)
    for name in ("one.svg", "two.svg"):
        draw_passes(tmp_path / "rows.csv", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_masks_vary_one_setting_at_a_time(tmp_path: Path) -> None:
    rows = [masked(16, 0.6, 0.40), masked(16, 0.6, 0.42), masked(16, 0.9, 0.3), masked(8, 0.6, 0.45)]
    rows += [masked(32, 0.75, 0.99)]  # differs in both
    share, side = masks_figure(rows).axes
    (shares,), (sides,) = (list(lines(axes).values()) for axes in (share, side))
    assert shares == pytest.approx({0.6: 0.41, 0.9: 0.3})
    assert sides == pytest.approx({8: 0.45, 16: 0.41})
    assert share.get_title(loc="left") == "patches of 16 px"
    assert [label.get_text() for label in side.get_xticklabels()] == ["8", "16"]
    write_rows(tmp_path / "rows.csv", rows)
    draw_masks(tmp_path / "rows.csv", tmp_path / "masks.svg")
    assert "share of the patches that is hidden" in (tmp_path / "masks.svg").read_text()
    with pytest.raises(ValueError, match="a row of ae:mask does not say its patch: 'nothing'"):
        masks_figure([{**rows[0], "pretrain_settings": "nothing"}])
