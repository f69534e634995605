"""What every peer has: the work it is asked to do, and the training loop of everybody."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from segae.training.pace import synchronise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Absent(Exception):
    """A peer that does not exist here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """One of them, ready to run.

    Attributes:
        system: its name in the rows.
        metric: what ``rate`` gives.
        data_path: how it gets its batches.
        rate: runs once, over an epoch or some steps, and gives images per second.
    """

    system: str
    metric: str
    data_path: str
    rate: Callable[[], float]


@dataclass(frozen=True)
class Work:
    """What a peer is asked to do.

    Attributes:
        root: folder above torchvision's.
        encoder: timm name.
        size: side of the input in pixels.
        batch_size: images in a step.
        device: where to compute.
        workers: processes that decode.
        steps: of a peer that has no epochs.
    """

    root: Path
    encoder: str
    size: int
    batch_size: int
    device: torch.device
    workers: int
    steps: int


class Loop:
    """The training loop of everybody: one epoch over a loader, autocast, AdamW, a rate that falls."""

    def __init__(self, work: Work, model: nn.Module, loader: DataLoader, loss: Callable) -> None:
        self.work, self.loader, self.loss = work, loader, loss
        self.shown: Any = None
        self.model = model.to(work.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=work.device.type == "cuda" or None)

    def epoch(self) -> float:
        """Images per second of one epoch, after one step that is not timed, as all turns have it."""
        if self.shown is not None:
            self._step(self.shown)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, len(self.loader))
        synchronise(self.work.device)
        images, started = 0, time.perf_counter()
        for batch in self.loader:
            self._step(batch)
            schedule.step()
            self.shown = batch
            images += self.work.batch_size
        synchronise(self.work.device)
        return images / (time.perf_counter() - started)

    def _step(self, batch: Any) -> None:
        with autocast(self.work.device):
            loss = self.loss(self.model, batch, self._place)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _place(self, part: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if part.dim() == 4 else torch.preserve_format
        return part.to(self.work.device, non_blocking=True, memory_format=layout)


def make_loader(images: Any, work: Work) -> DataLoader:
    """Shuffled batches, decoded by workers."""
    return DataLoader(
        images,
        work.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=work.workers,
        pin_memory=work.device.type == "cuda",
        persistent_workers=work.workers > 0,
    )


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
