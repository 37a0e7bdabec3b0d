"""Drawn problems of best matching units, and the truth about them: distances written out in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import LOW, SEED

METRICS = ("euclidean", "cosine", "manhattan")
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_metric = pytest.mark.parametrize("metric", METRICS)


def measures(input: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """[N, K] in float64: what units are ordered by. The square of a Euclidean distance, whose root rounds ties into
    being."""
    x, w = input.double()[:, None], codebook.double()
    if metric == "euclidean":
        return (x - w).square().sum(-1)
    if metric == "manhattan":
        return (x - w).abs().sum(-1)
    norms = x.square().sum(-1).sqrt() * w.square().sum(-1).sqrt()
    return torch.where(norms == 0, 1, 1 - (x * w).sum(-1) / torch.where(norms == 0, 1, norms)).clamp_min(0)


def truth(input: Tensor, codebook: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Distances [N, k] in float64 and units: the lowest of equal ones, and what is not a number last."""
    found, index = measures(input, codebook, metric).sort(dim=1, stable=True)
    return (found.sqrt() if metric == "euclidean" else found)[:, :k], index[:, :k]


@dataclasses.dataclass(frozen=True)
class Search:
    """One problem. layout: how rows lie in memory. values: normal, or whole numbers, among which many are as far."""

    samples: int = 20
    units: int = 9
    features: int = 5
    k: int = 1
    layout: str = "rows"
    values: str = "normal"
    seed: int = 0

    @property
    def most(self) -> int:
        return min(self.k, self.units)

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        made = []
        for rows in (self.samples, self.units):
            if self.values == "normal":
                t = torch.randn(rows, self.features, generator=draw, dtype=torch.float64)
            else:
                t = torch.randint(-2, 3, (rows, self.features), generator=draw).double()
            made.append(laid_out(t.to(device, dtype), self.layout))
        return made[0], made[1]


def laid_out(rows: Tensor, layout: str) -> Tensor:
    """The same values in another place."""
    if layout == "columns":
        return rows.mT.contiguous().mT
    if layout == "apart":  # rows with a gap between them
        return torch.cat([rows, rows.new_full((len(rows), 3), math.nan)], 1)[:, : rows.shape[1]]
    if layout == "wide":  # values with a gap between them
        return torch.stack([rows, rows * math.nan], -1)[..., 0]
    if layout == "odd":  # at an address that no vector likes
        return torch.cat([rows.new_zeros(1), rows.flatten()])[1:].view(rows.shape)
    return rows


SPACE: dict[str, Any] = {
    "samples": [0, 1, 4, 5, 7, 16, 17, 31, 48, 49, 97, 150], "units": [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 130],
    "features": [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 66], "k": [1, 1, 1, 2, 2, 3, 5, 8],
    "layout": ["rows", "rows", "columns", "apart", "wide", "odd"], "seed": SEED,
}  # fmt: skip
