from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics.classification as other
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segae.errors import SegaeError
from segae.training.metrics import (
    SegmentationMetrics,
    SegmentationScores,
    boundary_region,
    boundary_width,
    confusion_matrix,
)

NAMES = ("pet", "background", "border", "sky")


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Class count, prediction and truth (B, H, W); often with classes that are nowhere."""
    classes = draw(st.integers(2, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)))
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes))
    truth = generator.choice(present, shape)
    wrong = generator.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    prediction = np.where(wrong, generator.choice(present, shape), truth)
    return classes, torch.from_numpy(prediction), torch.from_numpy(truth)


def scores_of(classes: int, prediction: torch.Tensor, truth: torch.Tensor, batch: int = 2) -> SegmentationScores:
    metrics = SegmentationMetrics(NAMES[:classes])
    for predicted, true in zip(prediction.split(batch), truth.split(batch), strict=True):
        metrics.update(predicted, true)
    return metrics.compute()


@given(batches())
@settings(deadline=None)
def test_scores_equal_torchmetrics(batch: tuple[int, torch.Tensor, torch.Tensor]) -> None:
    classes, prediction, truth = batch
    scores = scores_of(classes, prediction, truth)
    theirs = other.MulticlassConfusionMatrix(classes)(prediction, truth)
    assert scores.confusion.tolist() == theirs.tolist()
    jaccard = other.MulticlassJaccardIndex(classes, average=None)(prediction, truth)
    f1 = other.MulticlassF1Score(classes, average=None)(prediction, truth)
    present = theirs.sum(0) + theirs.sum(1) > 0  # a class that is nowhere has 0 there, NaN here
    assert np.array(scores.iou)[present] == pytest.approx(jaccard[present].numpy(), abs=1e-6)
    assert np.isnan(np.array(scores.iou)[~present]).all()
    macro = other.MulticlassJaccardIndex(classes)(prediction, truth)
    assert scores.miou == pytest.approx(macro.item(), abs=1e-6)
    assert scores.dice == pytest.approx(f1[present].mean().item(), abs=1e-6)
    accuracy = other.MulticlassAccuracy(classes, average="micro")(prediction, truth)
    assert scores.pixel_accuracy == pytest.approx(accuracy.item(), abs=1e-6)


def naive_iou(prediction: NDArray, truth: NDArray, classes: int) -> list[float]:
    found = []
    for index in range(classes):
        both = either = 0
        for predicted, true in zip(prediction.flat, truth.flat, strict=True):
            both += predicted == index and true == index
            either += predicted == index or true == index
        found.append(both / either if either else math.nan)
    return found


def naive_boundary(mask: NDArray, width: int) -> NDArray:
    """A pixel of the mask is at its boundary if a pixel `width` or fewer steps away is not in the mask."""
    height, length = mask.shape
    region = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        for dy in range(-width, width + 1):
            for dx in range(-width, width + 1):
                inside = 0 <= y + dy < height and 0 <= x + dx < length
                region[y, x] |= not (inside and mask[y + dy, x + dx])
    return region


@given(batches())
@settings(deadline=None, max_examples=50)
def test_scores_equal_naive_loops(batch: tuple[int, torch.Tensor, torch.Tensor]) -> None:
    classes, prediction, truth = batch
    scores = scores_of(classes, prediction, truth)
    assert scores.iou == pytest.approx(naive_iou(prediction.numpy(), truth.numpy(), classes), nan_ok=True)
    per_image = [np.nanmean(naive_iou(p, t, classes)) for p, t in zip(prediction.numpy(), truth.numpy(), strict=True)]
    assert scores.per_image == pytest.approx(per_image)
    assert scores.per_image_miou == pytest.approx(np.mean(per_image))
    both, either = np.zeros(classes), np.zeros(classes)
    for predicted, true in zip(prediction.numpy(), truth.numpy(), strict=True):
        for index in range(classes):
            regions = [naive_boundary(mask == index, 1) for mask in (predicted, true)]
            both[index] += (regions[0] & regions[1]).sum()
            either[index] += (regions[0] | regions[1]).sum()
    assert scores.boundary_iou == pytest.approx(np.mean(both[either > 0] / either[either > 0]))


@given(batches(), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_the_batch_size_does_not_matter(batch: tuple[int, torch.Tensor, torch.Tensor], size: int) -> None:
    row, whole = scores_of(*batch, batch=size).as_row(), scores_of(*batch, batch=4).as_row()
    assert row == pytest.approx(whole, nan_ok=True)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.integers(1, 4),
    st.sampled_from([0.03, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=50)
def test_boundary_region_equals_a_naive_loop(seed: int, shape: tuple[int, int], width: int, holes: float) -> None:
    mask = np.random.default_rng(seed).random(shape) >= (0 if holes == 1.0 else holes)
    assert (boundary_region(mask, width) == naive_boundary(mask, width)).all()


def test_boundary_width_is_two_percent_of_the_diagonal_and_at_least_one_pixel() -> None:
    assert boundary_width(300, 400) == 10
    assert boundary_width(8, 8) == 1
    assert boundary_width(128, 128) == 4


def test_boundary_iou_sees_a_shifted_contour_that_iou_hardly_sees() -> None:
    truth = torch.zeros(1, 200, 200, dtype=torch.long)
    truth[:, 20:180, 20:180] = 1
    scores = scores_of(2, truth.roll(4, dims=2), truth)
    assert scores.miou > 0.9
    assert scores.boundary_iou < 0.7


def test_a_class_that_is_nowhere_is_nan_and_left_out_of_the_means() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]]])
    scores = scores_of(3, torch.tensor([[[0, 1, 1, 1]]]), truth)
    assert scores.iou[:2] == pytest.approx((1 / 2, 2 / 3))
    assert math.isnan(scores.iou[2])
    assert scores.miou == pytest.approx(7 / 12)
    assert scores.dice == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_row_has_the_columns_of_a_results_table() -> None:
    truth = torch.tensor([[[0, 1]]])
    row = scores_of(2, truth, truth).as_row()
    assert list(row) == [
        *("miou", "dice", "pixel_accuracy", "per_image_miou", "boundary_iou"),
        *("iou_pet", "iou_background"),
    ]
    assert set(row.values()) == {1.0}


def test_images_of_different_sizes_add_up() -> None:
    metrics = SegmentationMetrics(("pet", "background"))
    metrics.update(torch.zeros(1, 2, 3, dtype=torch.uint8), torch.zeros(1, 2, 3, dtype=torch.long))
    metrics.update(torch.ones(1, 1, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, dtype=torch.int32))
    scores = metrics.compute()
    assert scores.confusion.tolist() == [[6, 4], [0, 0]]
    assert scores.per_image.tolist() == [1.0, 0.0]


def test_rows_are_the_truth() -> None:
    assert confusion_matrix(torch.tensor([[1, 1]]), torch.tensor([[0, 1]]), 2).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([0, 2], [0, 1], "The prediction holds values from 0 to 2"),
        ([0, 1], [-1, 1], "The truth holds values from -1 to 1"),
        ([0, 1], [255, 1], "The truth holds values from 1 to 255"),
        ([0.0, 1.0], [0, 1], "float32 values"),
        ([0, 1, 1], [0, 1], r"shape \(3,\) and the truth \(2,\)"),
    ],
)
def test_wrong_values_are_errors(prediction: list, truth: list, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        confusion_matrix(torch.tensor(prediction), torch.tensor(truth), 2)


def test_a_lone_mask_and_an_empty_set_are_errors() -> None:
    metrics = SegmentationMetrics(("pet", "background"))
    with pytest.raises(SegaeError, match=r"shape \(2, 2\), but \(images, height, width\)"):
        metrics.update(torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(SegaeError, match="0 images to score"):
        metrics.compute()


@given(batches(), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_the_pixels_of_each_image_make_every_score(batch: tuple[int, torch.Tensor, torch.Tensor], size: int) -> None:
    classes, prediction, truth = batch
    scores = scores_of(classes, prediction, truth, batch=size)
    both_nk, either_nk = scores.per_image_intersection, scores.per_image_union
    assert both_nk.dtype == either_nk.dtype == np.int64
    assert both_nk.shape == either_nk.shape == (len(truth), classes)
    for image, (predicted, true) in enumerate(zip(prediction, truth, strict=True)):
        for index in range(classes):
            assert both_nk[image, index] == ((predicted == index) & (true == index)).sum()
            assert either_nk[image, index] == ((predicted == index) | (true == index)).sum()
    with np.errstate(invalid="ignore"):
        assert scores.iou == pytest.approx(both_nk.sum(0) / either_nk.sum(0), nan_ok=True)
        assert scores.per_image == pytest.approx(np.nanmean(both_nk / either_nk, axis=1))


def test_shapes_that_differ_are_refused_though_they_hold_as_many_pixels():
    with pytest.raises(SegaeError, match=r"\(2, 3\) and the truth \(3, 2\)"):
        confusion_matrix(torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, 2, dtype=torch.long), 2)
