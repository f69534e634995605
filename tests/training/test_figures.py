from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segae.errors import SegaeError
from segae.training import figures
from segae.training.colour import colour_mask, denormalise, overlay
from segae.training.figures import confusion_figure, contact_sheet, training_curves

RED, GREEN = (250, 10, 20), (10, 200, 30)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=-1).sum())


def plain(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((32, 48, 3), colour, np.uint8)


def test_each_class_gets_its_colour() -> None:
    painted = colour_mask(np.array([[0, 1], [1, 1]]), (RED, GREEN))
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[list(RED), list(GREEN)], [list(GREEN), list(GREEN)]]


@pytest.mark.parametrize("value", [-1, 2, 255])
def test_a_class_without_a_colour_is_an_error(value: int) -> None:
    mask = np.array([[0, value]])
    with pytest.raises(SegaeError, match="0 to 1: give one colour per class"):
        colour_mask(mask, (RED, GREEN))
    with pytest.raises(SegaeError, match="0 to 1: give one colour per class"):
        overlay(np.zeros((1, 2, 3), np.uint8), mask, (RED, GREEN))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_overlay_is_the_weighted_mean_of_image_and_colour(alpha: float) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (5, 7, 3), np.uint8)
    mask = generator.integers(0, 2, (5, 7))
    mixed = (1 - alpha) * image + alpha * np.array([RED, GREEN], float)[mask]
    assert np.abs(overlay(image, mask, (RED, GREEN), alpha) - mixed).max() <= 0.501


def test_overlay_of_another_size_is_an_error() -> None:
    with pytest.raises(SegaeError, match=r"4 x 6 pixels and the mask 6 x 4"):
        overlay(np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4), np.int64), (RED,))


def test_denormalise_undoes_normalisation() -> None:
    image = np.random.default_rng(1).integers(0, 256, (6, 5, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normal = ((torch.from_numpy(image) / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)
    assert (denormalise(normal, mean, std) == image).all()
    assert (denormalise(normal.numpy(), mean, std) == image).all()
    assert (denormalise(normal * 0 + 1e4, mean, std) == 255).all()


def test_contact_sheet_shows_every_picture_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    columns = {"image": [plain(RED), plain((0, 0, 255))], "truth": [plain(GREEN), plain(GREEN)]}
    contact_sheet(columns, path, row_labels=["worst 0.1", "best 0.9"], legend={"pet": (1, 2, 3)})
    sheet = pixels(path)
    red, blue = (np.argwhere((sheet == c).all(axis=-1)) for c in (RED, (0, 0, 255)))
    green = np.argwhere((sheet == GREEN).all(axis=-1))
    assert red[:, 0].max() < blue[:, 0].min()  # rows run down
    assert red[:, 1].max() < green[:, 1].min()  # columns run right
    assert len(green) == pytest.approx(2 * len(red), rel=0.02)
    assert len(red) > 30_000  # pixels: large enough to be seen
    assert count(sheet, (1, 2, 3)) > 50  # the legend's patch


@pytest.mark.parametrize("columns", [{}, {"image": []}, {"image": [plain(RED)], "truth": []}])
def test_a_sheet_with_uneven_or_no_rows_is_an_error(tmp_path: Path, columns: dict) -> None:
    with pytest.raises(SegaeError, match="columns of one length, at least 1"):
        contact_sheet(columns, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


LOG = pd.DataFrame(
    {
        "epoch": [1, 2, 3, 4],
        "phase": ["frozen", "full", "full", "full"],
        "train_loss": [1.0, 0.8, 0.7, 0.6],
        "valid_loss": [1.1, 0.9, 0.8, 0.8],
        "miou": [0.2, 0.4, 0.5, 0.6],
    }
)
BLUE, VERMILLION, BLUISH_GREEN, GREY = (0, 114, 178), (213, 94, 0), (0, 158, 115), (138, 138, 138)


def test_long_titles_of_a_sheet_stay_over_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    titles = ["autoencoder (layers) with its decoder", "ImageNet + autoencoder (mask)", "truth"]
    contact_sheet({title: [np.zeros((8, 8, 3), np.uint8)] for title in titles}, tmp_path / "sheet.png")
    (figure,) = drawn
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)


def test_curves_draw_what_the_log_has(tmp_path: Path) -> None:
    training_curves(LOG, tmp_path / "all.png")
    every = pixels(tmp_path / "all.png")
    assert min(count(every, colour) for colour in (BLUE, VERMILLION, BLUISH_GREEN, GREY)) > 100
    training_curves(LOG[["epoch", "train_loss"]], tmp_path / "loss.png")
    loss = pixels(tmp_path / "loss.png")
    assert count(loss, BLUE) > 100
    # a few grey pixels lie on the smoothed edges of black letters
    assert max(count(loss, colour) for colour in (VERMILLION, BLUISH_GREEN, GREY)) < 30
    assert loss.shape[1] < every.shape[1]


def test_curves_mark_the_unfreezing_only_where_it_happened(tmp_path: Path) -> None:
    training_curves(LOG[LOG["phase"] == "full"], tmp_path / "full.png")
    assert count(pixels(tmp_path / "full.png"), GREY) < 30


def test_curves_read_a_csv_file_with_gaps(tmp_path: Path) -> None:
    LOG.assign(miou=[np.nan] * 4).to_csv(tmp_path / "log.csv", index=False)
    training_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    LOG.drop(columns="miou").to_csv(tmp_path / "without.csv", index=False)
    training_curves(tmp_path / "without.csv", tmp_path / "without.png")
    assert (pixels(tmp_path / "curves.png") == pixels(tmp_path / "without.png")).all()


def test_a_log_without_epochs_or_losses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SegaeError, match="0 epochs"):
        training_curves(LOG[:0], tmp_path / "curves.png")
    with pytest.raises(SegaeError, match=r"lacks \['train_loss'\]"):
        training_curves(LOG[["epoch"]], tmp_path / "curves.png")


def test_confusion_colours_rows_by_their_share(tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"
    confusion_figure(np.array([[90, 0], [900, 0]]), ("pet", "background"), path)
    uneven = pixels(path)
    confusion_figure(np.array([[9, 0], [9, 0]]), ("pet", "background"), path)
    assert (pixels(path) == uneven).all()  # shares, not counts
    confusion_figure(np.array([[9, 0], [0, 9]]), ("pet", "background"), path)
    assert (pixels(path) != uneven).any()


def test_confusion_of_many_classes_and_of_absent_ones_is_drawn(tmp_path: Path) -> None:
    confusion_figure(np.eye(37, dtype=np.int64), [f"breed_{i}" for i in range(37)], tmp_path / "many.png")
    confusion_figure(np.array([[3, 1], [0, 0]]), ("pet", "sky"), tmp_path / "absent.png")
    assert count(pixels(tmp_path / "absent.png"), (240, 240, 240)) > 10_000  # grey where there is no truth
    assert pixels(tmp_path / "many.png").shape[0] > pixels(tmp_path / "absent.png").shape[0]


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SegaeError, match="could not write"):
        confusion_figure(np.eye(2), ("pet", "sky"), tmp_path / "file" / "confusion.png")
