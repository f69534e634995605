"""Images whose object is known."""

from __future__ import annotations

import torch
from torch import Tensor


def disc(size: int, x: float = 0.5, y: float = 0.5, radius: float = 0.28) -> Tensor:
    """Where a disc is (1, 1, size, size), centre and radius in shares of the side."""
    place = (torch.arange(size) + 0.5) / size
    return ((place.view(-1, 1) - y).square() + (place.view(1, -1) - x).square() < radius**2).float()[None, None]


def scene(size: int = 96, **where: float) -> tuple[Tensor, Tensor]:
    """Two images of a disc of two mottled colours on a ground of two others, and where the disc is."""
    generator = torch.Generator().manual_seed(0)
    shape = disc(size, **where)
    coarse = torch.randn(2, 1, size // 8, size // 8, generator=generator)
    mottled = torch.nn.functional.interpolate(coarse, size=size) > 0
    thing = torch.where(
        mottled, torch.tensor([0.9, 0.6, 0.2]).view(1, 3, 1, 1), torch.tensor([0.5, 0.3, 0.1]).view(1, 3, 1, 1)
    )
    ground = torch.where(
        mottled, torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1), torch.tensor([0.1, 0.6, 0.4]).view(1, 3, 1, 1)
    )
    noise = 0.05 * torch.randn(2, 3, size, size, generator=generator)
    return torch.where(shape > 0, thing, ground) + noise, shape


def overlap(first: Tensor, second: Tensor) -> float:
    both, either = (first > 0.5) & (second > 0.5), (first > 0.5) | (second > 0.5)
    return float(both.sum() / either.sum())
