"""Images whose object is known."""

from __future__ import annotations

import torch
from torch import Tensor


def drawing(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(size: int, x: float = 0.5, y: float = 0.5, radius: float = 0.28) -> Tensor:
    """Mask of a disc (1, 1, size, size), center and radius in shares of the side."""
    place = (torch.arange(size) + 0.5) / size
    return ((place.view(-1, 1) - y).square() + (place.view(1, -1) - x).square() < radius**2).float()[None, None]


def scene(size: int = 96, **where: float) -> tuple[Tensor, Tensor]:
    """Two images of a disc of two mottled colors on a ground of two others, and the disc's mask."""
    generator = drawing()
    mask = disc(size, **where)
    mottled = torch.nn.functional.interpolate(torch.randn(2, 1, size // 8, size // 8, generator=generator), size) > 0
    colors = torch.tensor([[0.9, 0.6, 0.2], [0.5, 0.3, 0.1], [0.2, 0.5, 0.9], [0.1, 0.6, 0.4]]).view(4, 1, 3, 1, 1)
    image = torch.where(
        mask > 0, torch.where(mottled, colors[0], colors[1]), torch.where(mottled, colors[2], colors[3])
    )
    return image + 0.05 * torch.randn(2, 3, size, size, generator=generator), mask


def overlap(first: Tensor, second: Tensor) -> float:
    both, either = (first > 0.5) & (second > 0.5), (first > 0.5) | (second > 0.5)
    return float(both.sum() / either.sum())
