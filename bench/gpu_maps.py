"""What `bench.gpu` measures of best matching units and sums by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench import ours
from bench.gpu_questions import Question, check
from bench.limits import Work


@dataclass(frozen=True)
class BmuCase:
    """The nearest unit of each sample; torch stores all distances. Units are samples with noise, as a map's are."""

    samples: int
    units: int
    features: int

    @property
    def label(self) -> str:
        return f"bmu N{self.samples} K{self.units} D{self.features}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        x = torch.randn(self.samples, self.features, device=device)
        w = x[torch.randint(self.samples, (self.units,), device=device)]
        x, w = x.to(dtype), (w + torch.randn_like(w) / 4).to(dtype)

        def mine() -> tuple[torch.Tensor, torch.Tensor]:
            return ours.library().functional.bmu(x, w)

        def theirs() -> tuple[torch.Tensor, torch.Tensor]:  # (there is no cdist of 16-bit types)
            return torch.cdist(x.float(), w.float()).min(1)

        check(mine()[0], theirs()[0].to(dtype))
        works: dict[str, Callable[[], object]] = {
            "ours": mine,
            "torch": lambda: torch.cdist(x.float(), w.float()).argmin(1),
        }
        work = Work(2.0 * self.samples * self.units * self.features, x.nbytes + w.nbytes + 8 * self.samples)
        yield Question("gpu-bmu", works, work, False)


@dataclass(frozen=True)
class UnitSumsCase:
    """Rows added up by unit, in double precision and always in the same order; torch's order is that of atomics."""

    samples: int
    units: int
    features: int

    @property
    def label(self) -> str:
        return f"sums by unit N{self.samples} K{self.units} D{self.features}"

    def questions(self, dtype: torch.dtype, device: torch.device) -> Iterator[Question]:
        x = torch.randn(self.samples, self.features, device=device).to(dtype)
        index = torch.randint(self.units, (self.samples,), device=device)

        def mine() -> torch.Tensor:
            return torch.ops.pykernels.unit_sums(x, index, self.units)[0]

        def theirs() -> torch.Tensor:
            zeros = torch.zeros(self.units, self.features, dtype=torch.float64, device=device)
            return zeros.index_add_(0, index, x.double())

        check(mine(), theirs())
        work = Work(0.0, x.nbytes + index.nbytes + 8.0 * self.units * self.features)
        yield Question("gpu-unit-sums", {"ours": mine, "torch": theirs}, work, False)
