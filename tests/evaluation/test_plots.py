"""Figures show what they were given: pictures in their places, readable titles, lines with their names."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from segae.errors import DataError, SegaeError
from segae.evaluation import normalize, plots
from segae.methods import create_autoencoder, create_method
from segae.methods.losses import normalize_patches

RED, GREEN, BLUE = (250, 10, 20), (10, 200, 30), (0, 0, 255)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
MASKS = np.random.default_rng(1).integers(0, 2, (2, 2, 64, 64))
CLEAN = normalize(IMAGES, MEAN, STD, "cpu")
LOG = pd.DataFrame({"epoch": [1, 2, 3, 4], "phase": ["frozen", "full", "full", "full"]}).assign(
    train_loss=[1.0, 0.8, 0.7, 0.6], valid_loss=[1.1, 0.9, 0.8, 0.8], miou=[0.2, 0.4, 0.5, 0.6]
)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that was saved."""
    kept: list[Figure] = []
    save = plots.save_figure

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        assert Image.open(path).format == "PNG"
        kept.append(figure)

    monkeypatch.setattr(plots, "save_figure", keep)
    return kept


def columns_of(figure: Figure) -> dict[str, np.ndarray]:
    """Pictures of a contact sheet by the title of their column, in the order in which a reader sees them."""
    places: dict[float, list] = {}
    for axes in sorted(figure.axes, key=lambda axes: -axes.get_position().y0):
        places.setdefault(round(axes.get_position().x0, 3), []).append(axes)
    columns = [places[left] for left in sorted(places)]
    return {column[0].get_title(): np.stack([axes.images[0].get_array() for axes in column]) for column in columns}


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_an_overlay_is_the_weighted_mean_of_image_and_color(alpha):
    assert (plots.denormalize(CLEAN[0].numpy() * 0 + 1e4, MEAN, STD) == 255).all()
    colors = plots.colorize(MASKS[0, 0], (RED, GREEN))
    assert (colors == np.array([RED, GREEN])[MASKS[0, 0]]).all()
    mixed = (1 - alpha) * IMAGES[0] + alpha * colors
    assert np.abs(plots.overlay(IMAGES[0], MASKS[0, 0], (RED, GREEN), alpha) - mixed).max() <= 0.501
    with pytest.raises(SegaeError, match="mask .*64"):
        plots.overlay(IMAGES[0], MASKS[0, 0, :8], (RED, GREEN))
    for value in (-1, 2, 254):
        with pytest.raises(SegaeError, match=f"palette .*{value}"):
            plots.overlay(IMAGES[0], MASKS[0, 0] * value, (RED, GREEN))


def test_a_segmentation_sheet_shows_every_picture_in_its_place(tmp_path, figures):
    look = {"classes": ("pet", "sky"), "palette": (RED, GREEN), "row_labels": ("worst", "best")}
    plots.segmentation_sheet(list(IMAGES), *MASKS, tmp_path / "new" / "sheet.png", **look)
    columns = columns_of(figures[0])
    assert list(columns) == ["image", "truth", "prediction"]
    assert (columns["image"] == IMAGES).all()
    assert (columns["truth"] == np.array([RED, GREEN])[MASKS[0]]).all()
    assert (columns["prediction"] == np.array([RED, GREEN])[MASKS[1]]).all()
    assert [text.get_text() for text in figures[0].texts] == ["worst", "best"]


TITLES = [
    ["imagenet+pseudo_masks:features+decoder", "ImageNet + autoencoder (spark) with its decoder", "truth"],
    ["W" * 30, "W" * 31, "i" * 90, "a title of $5 and $10, not of math", "", "a\nb " * 12],
]


@pytest.mark.parametrize("titles", TITLES)
def test_titles_of_any_length_stay_apart_and_inside(tmp_path, figures, titles):
    legend = {f"class {index} with a long name": BLUE for index in range(9)}
    plots.contact_sheet(dict.fromkeys(titles, IMAGES), tmp_path / "sheet.png", legend=legend)
    (figure,) = figures
    figure.canvas.draw()
    shown = [axes for axes in figure.axes if axes.get_title()]
    boxes = [axes.title.get_window_extent() for axes in shown]
    assert all(left.x1 + 4 < right.x0 for left, right in pairwise(boxes))  # pixels of space
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)
    assert {"".join(axes.get_title().split()) for axes in shown} == {"".join(t.split()) for t in titles} - {""}
    box = figure.legends[0].get_window_extent()
    assert box.y1 < min(axes.get_window_extent().y0 for axes in figure.axes)
    assert box.width <= figure.bbox.width


@pytest.mark.parametrize("columns", [{}, {"image": []}, {"image": IMAGES, "truth": IMAGES[:1]}])
def test_a_sheet_with_uneven_or_no_rows_is_an_error(tmp_path, columns):
    with pytest.raises(SegaeError, match="columns .*same number"):
        plots.contact_sheet(columns, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


class Oracle(nn.Module):
    """Gives a fixed answer, and keeps the mask that came with the images."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, images, mask=None):
        assert not self.training
        self.hidden = None if mask is None else mask[:, 0].numpy() > 0
        return self.answer


@pytest.fixture
def columns_for(tmp_path, figures):
    def draw(model: nn.Module, method: str) -> dict[str, np.ndarray]:
        model.info = SimpleNamespace(mean=MEAN, std=STD)
        plots.reconstruction_sheet(model, create_method(method), IMAGES, tmp_path / "s.png")
        assert model.training
        columns = columns_of(figures[-1])
        assert near(columns["image"], IMAGES)
        return columns

    return draw


def test_a_right_answer_in_normalized_patches_shows_the_image(columns_for):
    columns = columns_for(Oracle(normalize_patches(CLEAN, 32)), "spark")
    assert list(columns) == ["image", "input", "reconstruction", "holes filled"]
    assert near(columns["reconstruction"], IMAGES)
    assert not near(columns["input"], IMAGES)


def test_the_predicted_object_is_cut_out_of_the_input(columns_for):
    left = torch.zeros(2, 1, 64, 64)
    left[..., :32] = 1
    columns = columns_for(Oracle(torch.cat([CLEAN, 50 * (1 - left), 50 * left, 0 * left], dim=1)), "pseudo_masks")
    assert list(columns) == ["image", "input", "reconstruction", "pseudo-mask", "predicted object"]
    assert near(columns["predicted object"][:, :, :32], columns["input"][:, :, :32])
    assert columns["predicted object"][:, :, 33:].std(axis=(1, 2)).max() < 1
    assert (columns["pseudo-mask"] != columns["predicted object"]).mean() > 0.2


def test_visible_pixels_are_kept_where_holes_are_filled(columns_for):
    model = Oracle(torch.zeros_like(CLEAN))
    columns, hidden = columns_for(model, "inpaint"), model.hidden
    assert 0 < hidden.mean() < 1
    assert near(columns["holes filled"][~hidden], IMAGES[~hidden])
    assert near(columns["holes filled"][hidden], columns["reconstruction"][hidden])


def test_a_model_that_takes_no_mask_and_one_with_statistics_of_its_own_are_shown(columns_for, figures, tmp_path):
    assert "holes filled" in columns_for(nn.Sequential(nn.Conv2d(3, 3, 1)), "inpaint")
    model = create_autoencoder("test_resnet", method="inpaint")
    plots.reconstruction_sheet(model, create_method("inpaint"), IMAGES, tmp_path / "sheet.png")
    assert near(columns_of(figures[-1])["image"], IMAGES)


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def lines_of(figure: Figure) -> list[list[list[float]]]:
    """Heights of the lines of each panel, without the mark of the unfreezing."""
    panels = [[line for line in axes.get_lines() if line.get_linestyle() == "-"] for axes in figure.axes]
    return [[list(line.get_ydata()) for line in lines] for lines in panels]


def test_curves_give_every_score_of_the_log_a_panel_of_its_own(tmp_path, figures):
    scores = {"probe_miou": [np.nan, 0.3, np.nan, 0.4], "rankme": [9.0, 12.0, 30.0, 40.0], "r2": [-0.5, 0.1, 0.2, 0.3]}
    plots.draw_curves(LOG.assign(**scores), tmp_path / "curves.png")
    losses = [LOG["train_loss"].tolist(), LOG["valid_loss"].tolist()]
    assert lines_of(figures[0]) == [losses, [LOG["miou"].tolist()], [[0.3, 0.4]], [scores["rankme"]], [scores["r2"]]]
    assert texts_of(figures[0]).count("encoder unfrozen") == 5
    assert figures[0].axes[4].get_ylim()[0] <= -0.5  # nothing is cut off


def test_curves_draw_only_what_the_log_has(tmp_path, figures):
    LOG.assign(miou=math.nan, train_loss=[1.0, 0.8, math.inf, 0.6]).to_csv(tmp_path / "log.csv", index=False)
    plots.draw_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    plots.draw_curves(LOG[LOG["phase"] == "full"][["epoch", "phase", "train_loss"]], tmp_path / "full.png")
    assert lines_of(figures[0]) == [[[1.0, 0.8, 0.6], [1.1, 0.9, 0.8]]]
    assert texts_of(figures[1]) == ["training"]


@pytest.mark.parametrize("log", [LOG[:0], LOG[["epoch"]], LOG.assign(train_loss="high"), "nowhere.csv"])
def test_a_log_that_cannot_be_drawn_is_an_error(tmp_path, log):
    with pytest.raises(DataError, match="log .*train_loss"):
        plots.draw_curves(log, tmp_path / "curves.png")


def test_curves_name_the_losses_beside_their_ends(tmp_path, figures):
    log = LOG[["epoch", "train_loss"]].assign(valid_loss=LOG["train_loss"] + 1e-4)
    plots.draw_curves(log, tmp_path / "curves.png")
    (figure,) = figures
    figure.canvas.draw()
    (axes,) = figure.axes
    labels = {text.get_text(): text.get_color() for text in axes.texts}
    assert labels == {line.get_label(): line.get_color() for line in axes.get_lines()}
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert min(box.x0 for box in boxes) >= axes.get_window_extent().x1
    assert max(box.y1 for box in boxes) <= figure.bbox.y1


def test_a_confusion_matrix_is_shown_in_percent_of_each_true_class(tmp_path, figures):
    plots.confusion_figure(
        np.array([[90, 10], [0, 0]]), ("pet", "a name that is too long to be shown"), tmp_path / "2.png"
    )
    assert texts_of(figures[0]) == ["90.0", "10.0", "no pixels", "no pixels"]
    assert [len(tick.get_text()) < 30 for tick in figures[0].axes[0].get_yticklabels()] == [True, True]
    plots.confusion_figure(np.eye(37), [f"breed_{index}" for index in range(37)], tmp_path / "37.png")
    assert texts_of(figures[1]) == []
    with pytest.raises(SegaeError, match="2.png"):
        plots.confusion_figure(np.eye(2), ("pet", "sky"), tmp_path / "2.png" / "in the way.png")
