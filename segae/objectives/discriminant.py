"""Weighted means and the covariance within classes, gathered batch by batch: what a linear discriminant is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SHRINKAGE = 0.01  # of the covariance towards independent features of equal variance


class WeightedSums:
    """Weighted count, sum and products of the vectors of one class."""

    def __init__(self) -> None:
        self.weight: Tensor = torch.zeros(())
        self._sum_c: Tensor = torch.zeros(())
        self._product_cc: Tensor = torch.zeros(())

    def add(self, vector_nc: Tensor, weight_n: Tensor) -> None:
        """Add vectors (N, C) with weights (N,), 0 or more."""
        weighted_nc = vector_nc * weight_n.unsqueeze(1)
        self.weight = self.weight.to(weight_n) + weight_n.sum()
        self._sum_c = self._sum_c.to(weight_n) + weighted_nc.sum(dim=0)
        self._product_cc = self._product_cc.to(weight_n) + weighted_nc.T @ vector_nc

    def mean(self) -> Tensor:
        """(C,)."""
        return self._sum_c / self.weight

    def scatter(self) -> Tensor:
        """(C, C): weighted sum of the products of the vectors' differences from their mean."""
        return self._product_cc - torch.outer(self._sum_c, self._sum_c) / self.weight.clamp(min=1e-12)


def within_covariance(classes: Sequence[WeightedSums]) -> Tensor:
    """Covariance (C, C) of the vectors around the means of their classes, shrunk a little so that it has an inverse."""
    weight = torch.stack([one.weight for one in classes]).sum()
    within_cc = torch.stack([one.scatter() for one in classes]).sum(dim=0) / weight
    floor = _SHRINKAGE * within_cc.diagonal().mean().clamp(min=1e-12)
    return within_cc + floor * torch.eye(len(within_cc), dtype=within_cc.dtype, device=within_cc.device)
