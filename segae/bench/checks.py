"""Validity checks: no test image is trained on, and finished rows can be compared."""

import math

import pandas as pd
from scipy import stats

from segae._io import logger
from segae.data import Duplicate, SegmentationDataset, find_duplicates
from segae.errors import DataError, SegaeError

_MAX_NEAR = 0.02  # of the test images: if all were known by heart, a mean IoU of 0.7 would rise by 0.006
_MAX_STEPS_RATIO = 1.05  # an unreadable image here and there is no other schedule
_SHOWN = 3


def require_no_leak(dataset: SegmentationDataset, *, allow_near: bool = False) -> list[Duplicate]:
    """Check that no test image is a training image, whatever the files are called; return near-duplicates let through.

    An equal picture is always a DataError. Near-duplicates are common in collected photographs, and official splits
    have some: up to 2 % of the test images (one at least) are logged, more are a DataError without ``allow_near``.
    Pretraining leaves out test images and their near-duplicates by itself.
    """
    test = dataset.splits["test"].images
    found = find_duplicates(dataset.splits["train"].images, test)
    exact, touched = [one for one in found if one.exact], {one.of for one in found}
    shown = "; ".join(map(str, (exact or found)[:_SHOWN]))
    if exact:
        raise DataError(f"{len(exact)} training images are test images: {shown}. Put each picture into one split")
    if not found:
        return []
    message = f"{len(touched)} of {len(test)} test images look like training images: {shown}"
    if len(touched) > max(1, int(_MAX_NEAR * len(test))) and not allow_near:
        raise DataError(
            f"{message}. At most {_MAX_NEAR:.0%} are let through: put all copies of a picture into the same split "
            "(train.txt and test.txt), or set allow_near_duplicates"
        )
    logger.warning("%s", message)
    return found


def require_comparable(rows: pd.DataFrame) -> None:
    """Check rows of a study: each run once; same labeled images, size, loss, batches, epoch length for all variants."""
    if (repeated := rows["run_id"].duplicated()).any():
        raise SegaeError(f"run_id must be unique, got {rows.loc[repeated, 'run_id'].iloc[0]} twice")
    same = {
        "label_subset": ["dataset", "split", "labels", "seed"],
        **{name: ["dataset", "split", "encoder"] for name in ("image_size", "loss", "batch_size")},
    }
    for name, columns in same.items():
        for place, values in rows.groupby(columns, dropna=False)[name]:
            if values.nunique() > 1:
                where = ", ".join(f"{key} {value}" for key, value in zip(columns, place, strict=True))
                found = ", ".join(map(str, values.unique()))
                raise SegaeError(f"{name} must be the same for all variants, got {found} for {where}")
    # of validation rows the labels, and with them the epochs, vary with the seed
    images = rows["epoch_images"].fillna(rows["labels"]).where(rows["split"] == "test")
    for dataset, values in images.groupby(rows["dataset"]):
        if values.max() > _MAX_STEPS_RATIO * values.min():
            found = f"{values.min():g} and {values.max():g} on {dataset}"
            raise SegaeError(f"epoch_images must be the same for all variants and label budgets, got {found}")


def compare_with_published(rows: pd.DataFrame, test_images: int) -> str:
    """Say whether the rows of the preset ``smp`` agree with the published result of the same protocol.

    Published: segmentation_models_pytorch's Pets example, seven runs, IoU of the foreground 0.9148, standard deviation
    0.0012. Ours differs in the ImageNet weights (timm's), in AdamW for Adam, and in the Dice loss of two channels.
    """
    mean, deviation, runs, images = 0.9148, 0.0012, 7, 3669
    rows = rows[(rows["weights"] == "imagenet") & (rows["method"] == "")]
    scores = rows.get("iou_foreground", pd.Series(dtype=float)).dropna()
    if test_images != images or scores.empty:
        return f"Published for {images} test images; here are {test_images}, so the results cannot be compared"
    half = stats.t.ppf(0.975, runs - 1) * deviation * math.sqrt(1 / len(scores) + 1 / runs)
    agrees = "agrees" if abs(scores.mean() - mean) <= half else "does not agree"
    return f"IoU {scores.mean():.4f} {agrees} with the published {mean} (95 % of new means are within {half:.4f})"
