"""`torch.ops.pykernels.som_learn_`, sample-by-sample learning, against a loop in plain PyTorch."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import SEED, drawn

from .bmu_cases import METRICS, measures

op = torch.ops.pykernels.som_learn_.default
NEIGHBOURHOODS = ("gaussian", "bubble", "mexican_hat")
WIDE = [torch.float64, torch.float32]
every_dtype = pytest.mark.parametrize("dtype", WIDE, ids=str)


@dataclasses.dataclass(frozen=True)
class Learning:
    """One problem: a grid of rows x columns at whole places (odd rows moved by a half where `shifted`)."""

    samples: int = 12
    rows: int = 3
    columns: int = 4
    features: int = 5
    shifted: bool = False
    torus: bool = False
    bounded: bool = False
    neighbourhood: str = "gaussian"
    metric: str = "euclidean"
    seed: int = 0

    def arguments(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(self.seed)
        unit = torch.arange(self.rows * self.columns, dtype=torch.float64)
        row, column = unit // self.columns, unit % self.columns
        across = column + 0.5 * (row % 2) if self.shifted else column
        codebook = torch.randn(len(unit), self.features, generator=draw, dtype=torch.float64).clamp(-1, 1.25)
        input = 1.5 * torch.randn(self.samples, self.features, generator=draw, dtype=torch.float64)
        bounds = torch.stack([input.new_full((self.features,), -1.0), input.new_full((self.features,), 1.25)])
        fall = torch.linspace(1, 0.2, self.samples, dtype=torch.float64)
        return {
            "codebook": codebook.to(dtype),
            "input": input.to(dtype),
            "coordinates": torch.stack([row, across], 1),
            "periods": [float(self.rows), float(self.columns)] if self.torus else [0.0, 0.0],
            "sigma": 0.3 + 1.9 * fall,
            "rate": 0.6 * fall,
            "bounds": bounds.to(dtype) if self.bounded else None,
            "neighbourhood": self.neighbourhood,
            "metric": self.metric,
        }


def weights(kind: str, squares: Tensor, sigma: float, dimensions: int) -> Tensor:
    bell = torch.exp(-squares / (2 * sigma**2))
    if kind == "gaussian":
        return bell
    if kind == "bubble":
        return (squares.sqrt() <= sigma + 1e-9).double()
    return (1 - squares / (dimensions * sigma**2)) * bell


def loop(codebook, input, coordinates, periods, sigma, rate, bounds, neighbourhood, metric):
    """The codebook in float64, distances, and how surely each sample has one nearest unit."""
    w, found, margins = codebook.double().clone(), [], []
    line = bool((coordinates == coordinates[0]).all(0).any())
    for n, x in enumerate(input.double()):
        apart = measures(x[None], w, metric)[0]
        nearest = apart.sort().values
        margins.append(float(nearest[1] - nearest[0]) if len(w) > 1 else 1.0)
        best = int(apart.argmin())
        found.append(apart[best].sqrt() if metric == "euclidean" else apart[best])
        along = (coordinates - coordinates[best]).abs()
        for axis, period in enumerate(periods):
            if period:
                along[:, axis] = torch.minimum(along[:, axis], period - along[:, axis])
        share = weights(neighbourhood, along.square().sum(1), float(sigma[n]), 1 if line else 2)
        w += float(rate[n]) * share[:, None] * (x - w)
        if bounds is not None:
            w = w.clamp(bounds[0].double(), bounds[1].double())
    return w, torch.stack(found) if found else w.new_zeros(0), margins


def check(given: dict[str, Any], dtype: torch.dtype) -> None:
    expected, distances, margins = loop(**given)
    if margins and min(margins) < 1e4 * torch.finfo(dtype).eps:
        return  # rounding may choose another unit
    codebook = given["codebook"].clone()
    found = op(*{**given, "codebook": codebook}.values())
    loose = 2000 * torch.finfo(dtype).eps
    assert found.dtype == codebook.dtype == dtype
    torch.testing.assert_close(codebook.double(), expected, rtol=loose, atol=loose)
    torch.testing.assert_close(
        found.double(), distances, rtol=loose, atol=loose if given["metric"] != "cosine" else 1e3 * loose
    )


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
@drawn(
    25, of=Learning, samples=[0, 1, 2, 9, 30], rows=[1, 2, 3, 4], columns=[1, 3, 4, 8, 11],
    features=[0, 1, 2, 7, 9, 33], shifted=[False, True], torus=[False, True], bounded=[False, False, True], seed=SEED,
)  # fmt: skip
def test_against_a_loop(cpu_only, dtype, metric, neighbourhood, case):
    case = dataclasses.replace(case, metric=metric, neighbourhood=neighbourhood)
    check(case.arguments(dtype), dtype)


def test_most_cases_are_sure(cpu_only):
    """(Else the test above would show nothing.)"""
    for metric in METRICS:
        sure = 0
        for seed in range(20):
            margins = loop(**Learning(metric=metric, seed=seed).arguments())[2]
            sure += min(margins) > 1e4 * torch.finfo(torch.float32).eps
        assert sure >= 15


@pytest.mark.isa
@every_dtype
def test_a_large_map(cpu_only, dtype):
    given = Learning(40, 13, 17, 20, shifted=True, neighbourhood="mexican_hat", bounded=True).arguments(dtype)
    check(given, dtype)


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("metric", METRICS)
def test_same_bits_for_any_number_of_threads(threads, dtype, metric):
    given = Learning(60, 40, 50, 70, metric=metric).arguments(dtype)
    found = []
    for count in (1, 2, 3):
        threads(count)
        codebook = given["codebook"].clone()
        found.append((op(*{**given, "codebook": codebook}.values()), codebook))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0]) and torch.equal(other[1], found[0][1])


@every_dtype
def test_samples_in_parts(cpu_only, dtype):
    """All at once or some after the others."""
    given = Learning(30, 5, 6, 9).arguments(dtype)
    whole, parts = given["codebook"].clone(), given["codebook"].clone()
    distance = op(*{**given, "codebook": whole}.values())
    found = []
    for begin in range(0, 30, 7):
        some = {name: given[name][begin : begin + 7] for name in ("input", "sigma", "rate")}
        found.append(op(*{**given, **some, "codebook": parts}.values()))
    assert torch.equal(torch.cat(found), distance) and torch.equal(parts, whole)


@every_dtype
def test_a_tie_goes_to_the_lowest_unit(cpu_only, dtype):
    for units in (2, 9, 40):
        codebook = torch.zeros(units, 3, dtype=dtype)
        places = torch.stack([torch.zeros(units), torch.arange(units)], 1).double()
        ones = torch.ones(1, dtype=torch.float64)
        distance = op(
            codebook, torch.ones(1, 3, dtype=dtype), places, [0.0, 0.0], 0.1 * ones, ones, None, "bubble", "euclidean"
        )
        assert codebook[0].tolist() == [1, 1, 1] and not codebook[1:].any()
        torch.testing.assert_close(distance, torch.tensor([math.sqrt(3)], dtype=dtype))


@every_dtype
@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
def test_no_learning_at_rate_zero(cpu_only, dtype, neighbourhood):
    given = Learning(neighbourhood=neighbourhood).arguments(dtype)
    codebook = given["codebook"].clone()
    op(*{**given, "codebook": codebook, "rate": torch.zeros(12, dtype=torch.float64)}.values())
    assert torch.equal(codebook, given["codebook"])


@every_dtype
@pytest.mark.parametrize("metric", METRICS)
def test_a_sample_with_nan_teaches_nothing(cpu_only, dtype, metric):
    given = Learning(12, 4, 5, metric=metric).arguments(dtype)
    given["input"][4, 2] = math.nan
    codebook = given["codebook"].clone()
    distance = op(*{**given, "codebook": codebook}.values())
    assert distance.isnan().nonzero().flatten().tolist() == [4] and not codebook.isnan().any()
    rest = torch.arange(12) != 4
    without = given["codebook"].clone()
    some = {name: given[name][rest] for name in ("input", "sigma", "rate")}
    assert torch.equal(op(*{**given, **some, "codebook": without}.values()), distance[rest])
    assert torch.equal(without, codebook)


@every_dtype
def test_a_unit_with_nan_never_wins(cpu_only, dtype):
    given = Learning(12, 4, 5).arguments(dtype)
    given["codebook"][[0, 7]] = math.nan
    codebook = given["codebook"].clone()
    distance = op(*{**given, "codebook": codebook}.values())
    assert not distance.isnan().any()
    assert torch.equal(codebook.isnan().any(1), given["codebook"].isnan().any(1))


@pytest.mark.parametrize("sigma", [1.0, 2.0, math.sqrt(3)])
@every_dtype
def test_a_bubble_as_wide_as_a_distance_of_a_hexagonal_grid(cpu_only, dtype, sigma):
    """Units exactly as far as sigma belong to it, wherever the best unit is."""
    rows = columns = 60
    unit = torch.arange(rows * columns)
    row, column = (unit // columns).double(), (unit % columns).double()
    places = torch.stack([row * math.sqrt(3) / 2, column + 0.5 * (row % 2)], 1)
    one = torch.ones(1, dtype=torch.float64)
    for best in (5 * 60 + 7, 30 * 60 + 31, 57 * 60 + 52):
        codebook = torch.ones(len(unit), 1, dtype=dtype)
        codebook[best] = 0.25
        sample = torch.zeros(1, 1, dtype=dtype)
        op(codebook, sample, places, [0.0, 0.0], sigma * one, one, None, "bubble", "euclidean")
        reached = (codebook[:, 0] == 0).nonzero().flatten()
        expected = ((places - places[best]).square().sum(1).sqrt() <= sigma + 1e-6).nonzero().flatten()
        assert torch.equal(reached, expected)


def test_opcheck(cpu_only):
    for bounded in (False, True):
        torch.library.opcheck(op, tuple(Learning(bounded=bounded).arguments(torch.float32).values()))


# -- errors -----------------------------------------------------------------------------------------------------------
GOOD = Learning().arguments(torch.float32)
T = torch.zeros
WRONG: list[tuple[dict[str, Any], type, str]] = [
    ({"codebook": T(12, 5).half()}, RuntimeError, "expected codebook of dtype float32 or float64, got Half"),
    ({"codebook": T(5, 12).mT}, RuntimeError, "expected a contiguous codebook of shape [units, features], got [12, 5]"),
    ({"codebook": T(12)}, RuntimeError, "expected a contiguous codebook of shape [units, features], got [12]"),
    ({"codebook": T(0, 5)}, RuntimeError, "expected a contiguous codebook of shape [units, features], got [0, 5]"),
    ({"input": T(12, 4)}, RuntimeError, "expected input of shape [samples, 5] like the codebook, got [12, 4]"),
    ({"input": T(5)}, RuntimeError, "expected input of shape [samples, 5] like the codebook, got [5]"),
    ({"input": T(12, 5).double()}, RuntimeError, "expected input of dtype Float"),
    ({"coordinates": T(12, 2)}, RuntimeError, "expected coordinates of dtype double on the CPU"),
    ({"coordinates": T(12, 3).double()}, RuntimeError, "expected coordinates of shape [12, 2], got [12, 3]"),
    ({"coordinates": T(11, 2).double()}, RuntimeError, "expected coordinates of shape [12, 2], got [11, 2]"),
    ({"periods": [0.0]}, RuntimeError, "expected two periods, got 1"),
    ({"sigma": T(12)}, RuntimeError, "expected sigma of dtype double on the CPU, contiguous, got Float on cpu"),
    ({"sigma": T(11).double()}, RuntimeError, "expected sigma of shape [12], got [11]"),
    ({"rate": T(12, 1).double()}, RuntimeError, "expected rate of shape [12], got [12, 1]"),
    ({"bounds": T(2, 4)}, RuntimeError, "expected bounds of shape [2, 5], got [2, 4]"),
    ({"bounds": T(2, 5).double()}, RuntimeError, "expected bounds of dtype Float"),
    ({"neighbourhood": "cone"}, ValueError, 'expected neighbourhood "gaussian", "bubble" or "mexican_hat", got "cone"'),
    ({"metric": "l2"}, ValueError, 'expected metric "euclidean", "cosine" or "manhattan", got "l2"'),
]  # fmt: skip


@pytest.mark.parametrize("wrong, kind, text", WRONG, ids=lambda v: v[9:60] if isinstance(v, str) else "")
def test_errors_change_nothing(cpu_only, wrong, kind, text):
    codebook = GOOD["codebook"].clone()
    with pytest.raises(kind, match="^" + re.escape("[som_learn_] " + text)):
        op(*{**GOOD, "codebook": codebook, **wrong}.values())
    assert torch.equal(codebook, GOOD["codebook"])
