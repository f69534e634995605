"""Pictures that grow with a training: whoever waits for hours can look, and an interrupted run has left some."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from segae.models.encoder import EncoderDescription
    from segae.objectives.presets import Objective

logger = logging.getLogger("segae")

EVERY_S = 60.0  # drawing takes a second or two


def print_and_draw(*draws: Callable[[], object]) -> Callable[[dict[str, Any]], None]:
    """A ``report`` for ``segae.training.fit.fit``: a line for each epoch, and pictures once in ``EVERY_S`` seconds.

    Args:
        draws: each draws one picture, or a few, of the training as it stands; they are called again and again. One
            that fails is told in a warning: the training goes on.
    """
    from segae.training.fit import print_epoch

    drawn_at = time.monotonic()

    def report(row: dict[str, Any]) -> None:
        nonlocal drawn_at
        print_epoch(row)
        if time.monotonic() - drawn_at < EVERY_S:
            return
        for draw in draws:
            try:
                draw()
            except (SegaeError, OSError, RuntimeError) as error:
                logger.warning("a picture could not be drawn (%s); the training goes on without", error)
        drawn_at = time.monotonic()

    return report


def draw_curves(folder: Path) -> None:
    """Draw the run folder's log.csv as curves.png."""
    from segae.training.figures import training_curves

    training_curves(folder / "log.csv", folder / "curves.png")


def draw_panels(
    folder: Path, model: nn.Module, objective: Objective, images: np.ndarray, description: EncoderDescription
) -> None:
    """Draw image, input and reconstruction as reconstructions.png, if there are images (uint8 N, S, S, 3)."""
    from segae.training.panels import reconstruction_sheet

    if len(images):
        target = folder / "reconstructions.png"
        reconstruction_sheet(model, objective, images, description.mean, description.std, target)
