"""Pictures of what a model does: reconstructions while pretraining, masks while segmenting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segae.objectives.corruption import ScaledNoise
from segae.objectives.object_crop import LayersAndPixels, cut_out
from segae.objectives.patches import average_patches, spread_patches
from segae.objectives.presets import Objective
from segae.objectives.reconstruction import PatchNormalisedError
from segae.training.colour import colour_mask, denormalise
from segae.training.evaluation import normalise
from segae.training.figures import contact_sheet
from segae.training.forward import evaluating, model_inputs, takes_hidden


def reconstruction_sheet(
    model: nn.Module,
    objective: Objective,
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
) -> None:
    """Write a sheet of image, input and reconstruction, one row for each of ``images`` (uint8 N, S, S, 3).

    Where pixels were hidden, a fourth column puts the reconstruction into the holes of the image. Where an
    objective asks for something else than pixels, the image that was meant is computed from the output; where it asks
    for the object, this is cut out of the input, as it was sought and as it was said.
    """
    device = next(model.parameters()).device
    clean = normalise(images, mean, std, device)
    corrupted = objective.corruption(clean, torch.Generator(device).manual_seed(0))
    seen, hidden = corrupted.image_bchw, corrupted.hidden_b1hw
    with evaluating(model), torch.no_grad():
        output = model(*model_inputs(seen, hidden, with_hidden=takes_hidden(model))).float()
        shown = _as_image(objective, output, seen, clean)
        columns = {"image": clean, "input": seen, "reconstruction": shown}
        if isinstance(objective.reconstruction, LayersAndPixels) and corrupted.target_bchw is not None:
            object_b1hw = corrupted.target_bchw[:, -1:]
            said_b1hw = objective.reconstruction.object_said(output)
            columns |= {"object sought": cut_out(seen, object_b1hw), "object said": cut_out(seen, said_b1hw)}
            if not objective.reconstruction.pixel_weight:
                del columns["reconstruction"]
    if hidden is not None:
        columns["with holes filled"] = torch.where(hidden > 0, shown, clean)
    contact_sheet(
        {title: [denormalise(image.cpu(), mean, std) for image in batch] for title, batch in columns.items()}, path
    )


def _as_image(objective: Objective, output_bchw: Tensor, seen_bchw: Tensor, clean_bchw: Tensor) -> Tensor:
    """The image that a prediction stands for; channels beside the image's are left out."""
    judge, corruption = objective.reconstruction, objective.corruption
    output_bchw = output_bchw[:, : clean_bchw.shape[1]]
    if isinstance(judge, PatchNormalisedError):
        return denormalise_patches(output_bchw, clean_bchw, judge.patch)
    if isinstance(corruption, ScaledNoise) and corruption.predict == "noise":
        return seen_bchw * math.sqrt(1 + corruption.sigma**2) - corruption.sigma * output_bchw
    return output_bchw


def denormalise_patches(prediction_bchw: Tensor, clean_bchw: Tensor, patch: int) -> Tensor:
    """Give patches of mean 0 and variance 1 the mean and variance of the clean image's: a look, not a score."""
    height, width = clean_bchw.shape[2:]
    mean_b1rc = average_patches(clean_bchw.mean(dim=1, keepdim=True), patch)
    mean_b1hw = spread_patches(mean_b1rc, patch, height, width)
    variance_b1rc = average_patches((clean_bchw - mean_b1hw).square().mean(dim=1, keepdim=True), patch)
    return prediction_bchw * spread_patches(variance_b1rc.sqrt(), patch, height, width) + mean_b1hw


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
