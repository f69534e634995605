"""The figure shows the rows: means over seeds at each number of images seen."""

from __future__ import annotations

import pytest

from segae.bench.curves import curves_of, draw_curves


def row(
    init: str, seen: int, miou: float, epochs: int = 3, transfer: str = "encoder", seed: int = 0, length: int = 0
) -> dict[str, str]:
    values = {"init": init, "transfer": transfer, "freeze_epochs": 1, "epochs": epochs, "miou": miou}
    values |= {"seed": seed, "pretrain_epochs": length}
    return {name: str(value) for name, value in values.items()} | {"pretrain_images_seen": str(seen) if seen else ""}


ROWS = [
    row("random", 0, 0.40),
    row("imagenet", 0, 0.69),
    row("ae:mask", 7990, 0.42, length=8),  # the number of images seen depends on the seed
    row("ae:mask", 8010, 0.44, length=8, seed=1),
    row("ae:mask", 1000, 0.41, length=1),
    row("ae:mask", 8000, 0.50, transfer="encoder+decoder", length=8),
    row("ae:mask", 1000, 0.45, transfer="encoder+decoder", length=1),
    row("ae:denoise", 1000, 0.45, length=1),
    row("ae:mask", 8000, 0.55, epochs=12),
]


def test_points_are_means_over_seeds_in_order_of_images_seen():
    curves = curves_of(ROWS, "1 + 3")
    assert set(curves) == {("ae:mask", "encoder"), ("ae:mask", "encoder+decoder"), ("ae:denoise", "encoder")}
    few, many = curves["ae:mask", "encoder"]
    assert few == (1000, pytest.approx(0.41), 0.0)
    assert many == (8000, pytest.approx(0.43), pytest.approx(0.02 / 2**0.5))
    assert curves_of(ROWS, "1 + 12")["ae:mask", "encoder"][0][1] == pytest.approx(0.55)


def test_the_figure_names_everything_and_is_the_same_each_time(tmp_path):
    draw_curves(ROWS, tmp_path / "docs" / "one.svg")
    draw_curves(ROWS, tmp_path / "two.svg")
    text = (tmp_path / "docs" / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    for words in ("1 + 12 epochs", "ae:mask, decoder too", "imagenet", "random", "images seen", "others, each of"):
        assert words in text
    assert "ae:denoise" not in text
