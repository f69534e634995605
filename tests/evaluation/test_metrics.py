"""Scores equal torchmetrics and naive loops, whatever the batches; per-image rows hold all that a bootstrap needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics.classification as other
from hypothesis import given, settings
from hypothesis import strategies as st

from segae.errors import SegaeError
from segae.evaluation import SegmentationMetrics, SegmentationScores, confusion_matrix, mean_iou
from segae.evaluation.metrics import boundary_region, boundary_width

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
    return classes, torch.from_numpy(np.where(wrong, generator.choice(present, shape), truth)), torch.from_numpy(truth)


def scores_of(classes: int, prediction: torch.Tensor, truth: torch.Tensor, batch: int = 2) -> SegmentationScores:
    metrics = SegmentationMetrics(NAMES[:classes])
    for pair in zip(prediction.split(batch), truth.split(batch), strict=True):
        metrics.update(*pair)
    return metrics.compute()


@given(batches())
@settings(deadline=None, max_examples=60)
def test_scores_equal_torchmetrics(batch):
    classes, prediction, truth = batch
    scores = scores_of(*batch)
    theirs = other.MulticlassConfusionMatrix(classes)(prediction, truth)
    assert scores.confusion.tolist() == theirs.tolist() == confusion_matrix(prediction, truth, classes).tolist()
    jaccard = other.MulticlassJaccardIndex(classes, average=None)(prediction, truth)
    f1 = other.MulticlassF1Score(classes, average=None)(prediction, truth)
    present = theirs.sum(0) + theirs.sum(1) > 0  # a class that is nowhere has 0 there, NaN here
    assert list(scores.iou.values()) == pytest.approx(jaccard.where(present, math.nan).tolist(), abs=1e-6, nan_ok=True)
    assert scores.miou == pytest.approx(jaccard[present].mean().item(), abs=1e-6)
    assert mean_iou(theirs) == mean_iou(scores.confusion) == scores.miou
    assert scores.dice == pytest.approx(f1[present].mean().item(), abs=1e-6)
    accuracy = other.MulticlassAccuracy(classes, average="micro")(prediction, truth)
    assert scores.pixel_accuracy == pytest.approx(accuracy.item(), abs=1e-6)


@given(batches(), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_ignored_pixels_count_nowhere_as_in_torchmetrics(batch, share):
    classes, prediction, truth = batch
    ignored = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < share
    truth = truth.masked_fill(ignored, 255)
    how = {"average": None, "ignore_index": 255}
    scores = scores_of(classes, prediction, truth)
    assert scores.confusion.tolist() == confusion_matrix(prediction[~ignored], truth[~ignored], classes).tolist()
    if ignored.all():
        assert all(math.isnan(value) for value in scores.as_row().values())
        return
    jaccard = other.MulticlassJaccardIndex(classes, **how)(prediction, truth)
    present = torch.from_numpy(scores.confusion.sum(0) + scores.confusion.sum(1) > 0)
    assert list(scores.iou.values()) == pytest.approx(jaccard.where(present, math.nan).tolist(), abs=1e-6, nan_ok=True)
    f1 = other.MulticlassF1Score(classes, **how)(prediction, truth)
    assert scores.dice == pytest.approx(f1[present].mean().item(), abs=1e-6)
    whole = [index for index, image in enumerate(ignored) if not image.all()]
    alone = [scores_of(classes, prediction[[index]], truth[[index]]).miou for index in whole]
    assert scores.per_image_miou == pytest.approx(np.mean(alone))
    perfect = scores_of(classes, torch.where(ignored, prediction, truth), truth)
    assert perfect.miou == perfect.boundary_iou == 1


def naive_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """A pixel of the mask is at its boundary if a pixel `width` or fewer steps away is not in the mask."""
    framed, side = np.pad(mask, width), 2 * width + 1
    return mask & ~np.array(
        [[framed[y : y + side, x : x + side].all() for x in range(len(row))] for y, row in enumerate(mask)]
    )


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize(("shape", "width"), [((1, 1), 1), ((7, 14), 1), ((14, 9), 3), ((5, 5), 4)])
def test_boundary_region_and_iou_equal_naive_loops(shape, width, share):
    one, other = np.random.default_rng(width).random((2, *shape)) <= share
    assert (boundary_region(one, width) == naive_boundary(one, width)).all()
    scores, ratios = scores_of(2, *(torch.from_numpy(mask[None].astype(int)) for mask in (one, other))), []
    for value in (False, True):
        sides = [naive_boundary(mask == value, 1) for mask in (one, other)]
        ratios += [(sides[0] & sides[1]).sum() / (sides[0] | sides[1]).sum()] if (sides[0] | sides[1]).any() else []
    assert scores.boundary_iou == pytest.approx(np.mean(ratios))


@given(batches(), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_no_score_depends_on_the_batches_and_per_image_pixels_give_every_iou(batch, size):
    classes, prediction, truth = batch
    scores = scores_of(*batch, batch=size)
    whole = scores_of(*batch, batch=4)
    assert scores.as_row() == pytest.approx(whole.as_row(), nan_ok=True)
    assert scores.per_image.equals(whole.per_image)
    names = NAMES[:classes]
    both = scores.per_image[[f"intersection_{name}" for name in names]].to_numpy()
    either = scores.per_image[[f"union_{name}" for name in names]].to_numpy()
    for index in range(classes):
        assert both[:, index].tolist() == ((prediction == index) & (truth == index)).sum((1, 2)).tolist()
        assert either[:, index].tolist() == ((prediction == index) | (truth == index)).sum((1, 2)).tolist()
    with np.errstate(invalid="ignore"):
        assert list(scores.iou.values()) == pytest.approx(both.sum(0) / either.sum(0), nan_ok=True)
        assert scores.per_image["miou"].tolist() == pytest.approx(np.nanmean(both / either, axis=1).tolist())
    assert scores.per_image_miou == pytest.approx(scores.per_image["miou"].mean())


def test_a_class_that_is_nowhere_is_nan_and_left_out_of_the_means():
    scores = scores_of(3, torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    assert list(scores.iou) == ["pet", "background", "border"]
    assert scores.iou["pet"] == pytest.approx(1 / 2)
    assert math.isnan(scores.iou["border"])
    assert scores.miou == pytest.approx(7 / 12)
    assert scores.dice == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert math.isnan(mean_iou(np.zeros((2, 2), np.int64)))
    means = ["miou", "dice", "pixel_accuracy", "per_image_miou", "boundary_iou"]
    assert list(scores.as_row()) == [*means, "iou_pet", "iou_background", "iou_border"]
    assert [boundary_width(*size) for size in ((300, 400), (8, 8))] == [10, 1]  # 2 % of the diagonal


def test_images_of_different_sizes_and_types_add_up_under_their_names():
    metrics = SegmentationMetrics(("pet", "background"))
    metrics.update(torch.zeros(1, 2, 3, dtype=torch.uint8), torch.zeros(1, 2, 3, dtype=torch.long), ["cat"])
    metrics.update(torch.ones(1, 1, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, dtype=torch.int32))
    scores = metrics.compute()
    assert scores.confusion.tolist() == [[6, 4], [0, 0]]
    assert scores.per_image[["name", "miou"]].values.tolist() == [["cat", 1.0], ["", 0.0]]


def score(prediction: list, truth: list):
    return lambda metrics, mask: confusion_matrix(torch.tensor(prediction), torch.tensor(truth), 2)


WRONG = [
    (score([0, 2], [0, 1]), "prediction .*0 to 2"),
    (score([0, 1], [-1, 1]), "truth .*-1 to 1"),
    (score([0, 1], [254, 1]), "truth .*1 to 254"),
    (score([0.0, 1.0], [0, 1]), "prediction .*float32"),
    (score([[0, 1, 1], [0, 1, 1]], [[0, 1], [0, 1], [0, 1]]), r"prediction .*\(1, 3, 2\), got \(1, 2, 3\)"),
    (lambda metrics, mask: metrics.update(mask, mask), r"truth .*\(2, 2\)"),
    (lambda metrics, mask: metrics.update(mask[None], mask[None], ["a", "b"]), "names .*2"),
    (lambda metrics, mask: metrics.compute(), "images .*0"),
    (lambda metrics, mask: SegmentationMetrics(("pet", "pet")), "classes"),
]


@pytest.mark.parametrize(("use", "message"), WRONG)
def test_what_cannot_be_scored_is_an_error_that_names_the_argument(use, message):
    with pytest.raises(SegaeError, match=message):
        use(SegmentationMetrics(("pet", "background")), torch.zeros(2, 2, dtype=torch.long))
