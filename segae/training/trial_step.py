"""One step that leaves no trace, to see whether a device has the memory for it."""

from __future__ import annotations

from typing import Any

import torch

from segae.training.ceiling import TrainingStep


def trial_step(learner: Any, count: int, size: int, classes: int | None) -> None:
    """Forward and backward of a Learner's whole model on black images, beside the room of AdamW's two moments.

    They are there from the first step of the optimizer to the end of a training, so each later batch has to fit beside
    them. Weights, BatchNorm statistics, gradients and random numbers are afterwards what they were.

    Args:
        learner: from ``pretraining_learner`` or ``segmentation_learner``, not yet fitted.
        count: images.
        size: their side in pixels.
        classes: of the masks; None for a pretraining.

    Raises:
        torch.OutOfMemoryError: they are too many.
    """
    batch = [torch.zeros(count, 3, size, size)]
    if classes is not None:
        batch.append((torch.arange(count * size * size) % classes).view(count, size, size))
    model = learner.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device = next(model.parameters()).device
    learner.unfreeze()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments: list[torch.Tensor] = []
    try:
        moments += [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            step = TrainingStep(learner, batch)
            step.backward(step.forward(*step.show()))
    finally:
        moments.clear()
        model.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        learner.opt = None  # made anew by the first phase
