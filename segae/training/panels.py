"""Pictures of what a model does: reconstructions while pretraining, masks while segmenting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segae.objectives.presets import Objective
from segae.training.colour import colour_mask, denormalise
from segae.training.evaluation import normalise
from segae.training.figures import contact_sheet


def reconstruction_sheet(
    autoencoder: nn.Module,
    objective: Objective,
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
) -> None:
    """Write a sheet of image, corrupted input and reconstruction, one row for each of ``images`` (uint8 N, S, S, 3)."""
    device = next(autoencoder.parameters()).device
    clean = normalise(images, mean, std, device)
    generator = torch.Generator(device).manual_seed(0)
    was_training = autoencoder.training
    autoencoder.eval()
    with torch.inference_mode():
        corrupted = objective.corruption(clean, generator).image_bchw
        output = autoencoder(corrupted).float()
    autoencoder.train(was_training)
    columns = {"image": clean, "input": corrupted, "reconstruction": output}
    contact_sheet(
        {title: [denormalise(image.cpu(), mean, std) for image in batch] for title, batch in columns.items()}, path
    )


def segmentation_sheet(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    path: Path,
) -> None:
    """Write a sheet of image (uint8 H, W, 3), true and predicted mask (class indices H, W), one row each."""
    legend = dict(zip(classes, palette, strict=True))
    columns = {
        "image": list(images),
        "truth": [colour_mask(mask, palette) for mask in truths],
        "prediction": [colour_mask(mask, palette) for mask in predictions],
    }
    contact_sheet(columns, path, legend=legend)
