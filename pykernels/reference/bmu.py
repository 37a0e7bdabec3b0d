"""Best matching units and sums by unit, written as their equations in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bmu", "distances", "unit_sums"]


def distances(input: Tensor, codebook: Tensor, metric: str = "euclidean") -> Tensor:
    """Of each row of [..., N, D] from each of [..., K, D]: [..., N, K]."""
    if metric == "euclidean":
        return torch.cdist(input, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "manhattan":
        return torch.cdist(input, codebook, p=1)
    norms = (
        torch.linalg.vector_norm(input, dim=-1)[..., :, None] * torch.linalg.vector_norm(codebook, dim=-1)[..., None, :]
    )
    zero = norms == 0
    cosine = torch.where(zero, 0, input @ codebook.mT / torch.where(zero, 1, norms))
    return (1 - cosine).clamp_min(0)


def bmu(input: Tensor, codebook: Tensor, k: int = 1, metric: str = "euclidean") -> tuple[Tensor, Tensor]:
    """The twin of `pykernels.functional.bmu`: the same arguments."""
    found = distances(input.double(), codebook.double(), metric)
    distance, index = found.sort(dim=1, stable=True)  # (what is not a number comes last)
    distance, index = distance[:, :k].to(input.dtype), index[:, :k]
    return (distance[:, 0], index[:, 0]) if k == 1 else (distance, index)


def unit_sums(input: Tensor, index: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The twin of `torch.ops.pykernels.unit_sums`: the sum of each unit's rows [units, D], and how many these are."""
    sums = input.new_zeros(units, input.shape[1], dtype=torch.float64).index_add(0, index, input.double())
    return sums, torch.bincount(index, minlength=units)
