"""How a comparison scores a finished fine-tuning: on the test split, or on training images that were kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segae.tasks.compare import Compare
    from segae.training.metrics import SegmentationScores

VAL_FRACTION = 0.2
"""Share of the labelled training images that a comparison keeps apart to choose settings on."""


def score_test(config: Compare, folder: Path) -> SegmentationScores:
    """Scores on the test split; what ``segae evaluate`` writes goes to the run folder's ``test``."""
    from segae.tasks.evaluate import Evaluate
    from segae.tasks.evaluate import run as evaluate

    return evaluate(
        Evaluate(
            model=folder / "model.safetensors",
            data=config.data,
            split="test",
            out=folder / "test",
            classes=config.classes,
            merge=config.merge,
            device=config.device,
        )
    )


def score_validation(config: Compare, folder: Path, seed: int) -> SegmentationScores:
    """Scores on the training images that fine-tuning with this seed kept apart; the test split stays closed."""
    from segae.data.cache import cache_pairs
    from segae.data.dataset import split_off_validation, take_labels
    from segae.data.open import open_dataset
    from segae.data.quarantine import Quarantine
    from segae.models.segmenter import load_segmenter
    from segae.training.device import choose_device
    from segae.training.evaluation import evaluate_model

    data = open_dataset(config.data, config.classes, config.merge)
    _, kept = split_off_validation(take_labels(data.splits["train"], config.labels, seed), VAL_FRACTION, seed)
    model, description = load_segmenter(folder / "model.safetensors")
    cached = cache_pairs(kept, description.image_size, data.mask_values, Quarantine())
    return evaluate_model(
        model,
        cached.images,
        cached.masks,
        classes=description.classes,
        mean=description.mean,
        std=description.std,
        device=choose_device(config.device),
    )
