"""Sample-by-sample map learning of cuda/, glue and kernels unchanged, executed on the processor: against the
processor's own kernel."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.helpers import SEED, drawn

from .device import WHOLE_SHARED_MEMORY, Device


@dataclasses.dataclass(frozen=True)
class Map:
    rows: int = 5
    columns: int = 4
    features: int = 6
    samples: int = 12
    metric: str = "euclidean"
    neighbourhood: str = "gaussian"
    torus: bool = False
    bounded: bool = False
    missing: bool = False
    sigma: float = 1.5
    seed: int = 0


def learn(case: Map, dtype: torch.dtype, operator) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(case.seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    units = case.rows * case.columns
    codebook, x = some(units, case.features), some(case.samples, case.features)
    bounds = torch.stack([some(case.features) - 1, some(case.features) + 1]) if case.bounded else None
    if bounds is not None:
        bounds = bounds.sort(0).values
        codebook = codebook.clamp(*bounds)
    if case.missing and case.features:
        codebook[units // 2, 0] = x[case.samples // 2, -1] = torch.nan
    grid = torch.cartesian_prod(torch.arange(case.rows), torch.arange(case.columns)).double().view(units, 2)
    periods = [float(case.rows), float(case.columns)] if case.torus else [0.0, 0.0]
    sigma = torch.linspace(case.sigma, 0.3, case.samples, dtype=torch.float64)
    rate = torch.linspace(0.5, 0.01, case.samples, dtype=torch.float64)
    distance = operator(codebook, x, grid, periods, sigma, rate, bounds, case.neighbourhood, case.metric)
    return codebook, distance


def check(device: Device, case: Map, dtype: torch.dtype) -> None:
    found = learn(case, dtype, device.kernels.som_learn_)
    expected = learn(case, dtype, torch.ops.pykernels.som_learn_)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@every_dtype
@drawn(
    16,
    of=Map,
    rows=(1, 7),
    columns=(1, 6),
    features=[0, 2, 3, 8, 33],
    samples=[1, 2, 9, 40],
    metric=["euclidean", "cosine", "manhattan"],
    neighbourhood=["gaussian", "bubble", "mexican_hat"],
    torus=[False, True],
    bounded=[False, True],
    missing=[False, True],
    sigma=[0.4, 2.0],
    seed=SEED,
)
def test_learns_what_the_processor_learns(device, dtype, case):
    device.configure(case.seed)
    check(device, case, dtype)


@every_dtype
def test_however_the_units_are_laid_out(device, dtype):
    """A block or many, units in shared memory or not, samples staged or not: the same bits, but for how lanes share a
    sum."""
    large, deep = Map(12, 9, 700, 5), Map(3, 3, 5000, 4)
    for case, blocks, shared in (
        (large, 1, WHOLE_SHARED_MEMORY),
        (large, 4, WHOLE_SHARED_MEMORY),
        (large, 8, 100_000),
        (large, 2, 40_000),
        (deep, 1, WHOLE_SHARED_MEMORY),
        (Map(20, 60, 2, 35), 1, WHOLE_SHARED_MEMORY),
    ):
        device.configure(1, blocks, shared)
        check(device, case, dtype)


def test_nothing_to_learn(device):
    device.configure(2)
    check(device, Map(samples=0), torch.float32)
