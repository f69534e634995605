"""AdamW that pulls matrices and kernels towards zero, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """torch's AdamW (arXiv 1711.05101), whose weight decay leaves vectors alone.

    Gains and biases of normalisation layers, biases, scales of layers and mask tokens are vectors: one axis at most is
    longer than 1. A decay would shrink them for no gain; over a long pretraining to a third. The decay is done here,
    so that each group keeps both kinds of parameters and fastai its two groups.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Shrink what decays by the learning rate times the decay, then step without a decay."""
        decays = [group["weight_decay"] for group in self.param_groups]
        with torch.no_grad():
            for group in self.param_groups:
                shrink = 1 - float(group["lr"]) * group["weight_decay"]
                moved = [p for p in group["params"] if p.grad is not None and decays_in(p)]
                if moved and shrink != 1:
                    torch._foreach_mul_(moved, shrink)
                group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def decays_in(parameter: Tensor) -> bool:
    """Whether weight decay is for this parameter: two or more of its axes are longer than 1."""
    return sum(side > 1 for side in parameter.shape) > 1
