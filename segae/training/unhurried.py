"""fastai's Learner without the places where it makes a GPU and the program wait for each other."""

from __future__ import annotations

from typing import Any

import torch
from fastai.learner import AvgLoss, AvgSmoothLoss, Learner
from fastai.torch_core import find_bs, norm_types, to_device
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

_CHUNK = 1024


class SmoothLoss(AvgSmoothLoss):
    """fastai's smooth training loss, on the device: its own is copied to the host after every step.

    Every step's value is kept for ``lr_find`` and the plots, four bytes each.
    """

    def reset(self) -> None:
        """Forget everything."""
        self.count, self.val = 0, torch.zeros(())

    def accumulate(self, learn: Any) -> None:
        """Mix in a step's loss."""
        loss = learn.loss.detach().float().mean()
        if self.count % _CHUNK == 0:
            # a device gives out no block below 512 bytes, and single numbers would take one each
            self.chunk = torch.empty(_CHUNK, device=loss.device)
        self.val = torch.lerp(loss, self.val.to(loss.device), self.beta)
        self.count += 1
        self.chunk[(self.count - 1) % _CHUNK] = self.val / (1 - self.beta**self.count)

    @property
    def value(self) -> Tensor:
        """The mean over the last steps, a number on the device."""
        return self.chunk[(self.count - 1) % _CHUNK] if self.count else self.val


class MeanLoss(AvgLoss):
    """fastai's mean validation loss, on the device until it is asked for: its own is copied after every batch.

    With several processes it is that of this one's images; the log has the loss of all.
    """

    def reset(self) -> None:
        """Forget everything."""
        self.total: Any = 0.0
        self.count = 0

    def accumulate(self, learn: Any) -> None:
        """Add a batch's loss, weighed by its size."""
        images = find_bs(learn.yb)
        self.total = self.total + learn.loss.detach().mean() * images
        self.count += images


class UnhurriedLearner(Learner):
    """A Learner that queues copies to the device, and does not ask for the loss, while it runs an epoch."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.recorder.loss = MeanLoss()
        self.recorder.smooth_loss = SmoothLoss(beta=self.recorder.smooth_loss.beta)

    def create_opt(self) -> None:
        """As fastai's, but of a frozen part only BatchNorm goes on training where ``train_bn`` says so.

        fastai counts LayerNorm in, which has no statistics that could follow the images.
        """
        super().create_opt()
        for module in self.model.modules() if self.train_bn else ():
            if isinstance(module, norm_types) and not isinstance(module, _BatchNorm):
                for parameter in module.parameters(recurse=False):
                    self.opt.state[parameter].pop("force_train", None)

    def _set_device(self, b: Any) -> Any:
        # pinned memory is what makes a copy not wait
        return to_device(b, self.dls.device, non_blocking=True)
