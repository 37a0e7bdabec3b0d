"""The radial basis layer, written as its equation in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["default_gamma", "radial_basis"]


def default_gamma(centers: Tensor) -> Tensor:
    """The number of centres over the square of the largest distance between two of them (1 where that is zero)."""
    apart = torch.cdist(centers.detach().double(), centers.detach().double()).amax()
    return torch.where(apart > 0, centers.shape[0] / apart.square(), 1.0)


def radial_basis(input: Tensor, centers: Tensor, gamma: Any = None) -> Tensor:
    """The twin of `pykernels.functional.radial_basis`: the same arguments."""
    gamma = default_gamma(centers) if gamma is None else gamma
    squares = (input[:, None] - centers).square().sum(-1)
    return torch.exp(-gamma * squares).to(input.dtype)
