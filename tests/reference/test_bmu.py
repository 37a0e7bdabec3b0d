"""The twins of best matching units and of sums by unit, against loops over the equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pykernels import reference as twins

METRICS = ("euclidean", "cosine", "manhattan")
every_metric = pytest.mark.parametrize("metric", METRICS)


def apart(x: list[float], w: list[float], metric: str) -> float:
    if metric == "euclidean":
        return math.dist(x, w)
    if metric == "manhattan":
        return math.fsum(abs(a - b) for a, b in zip(x, w, strict=True))
    norms = math.hypot(*x) * math.hypot(*w)
    return 1 - math.fsum(a * b for a, b in zip(x, w, strict=True)) / norms if norms else 1.0


@every_metric
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 2), (7, 9, 6), (4, 2, 0)], ids=str)
def test_against_loops(metric, shape):
    samples, units, features = shape
    input, codebook = (torch.randn(n, features, dtype=torch.float64) for n in (samples, units))
    table = [[apart(x, w, metric) for w in codebook.tolist()] for x in input.tolist()]
    found = twins.distances(input, codebook, metric)
    torch.testing.assert_close(found, torch.tensor(table, dtype=torch.float64).reshape(samples, units))
    for k in range(1, units + 1):
        distance, index = twins.bmu(input, codebook, k, metric)
        for row, x in enumerate(table):
            order = sorted(range(units), key=lambda unit: x[unit])[:k]
            assert index.reshape(samples, k)[row].tolist() == order or features == 0
            torch.testing.assert_close(distance.reshape(samples, k)[row], distance.new_tensor([x[u] for u in order]))


@every_metric
def test_distances_of_batches(metric):
    input, codebook = torch.randn(2, 3, 6, 4), torch.randn(2, 1, 5, 4)
    found = twins.distances(input, codebook, metric)
    assert found.shape == (2, 3, 6, 5)
    torch.testing.assert_close(found[1, 2], twins.distances(input[1, 2], codebook[1, 0], metric))


def test_a_tie_goes_to_the_lowest():
    codebook = torch.tensor([[2.0], [0.0], [2.0], [0.0]])
    for k in (1, 2, 3, 4):
        _, index = twins.bmu(torch.tensor([[1.0], [2.0]]), codebook, k)
        assert index.reshape(2, k).tolist() == [[0, 1, 2, 3][:k], [0, 2, 1, 3][:k]]


@every_metric
def test_what_is_not_a_number_comes_last(metric):
    codebook = torch.randn(5, 3)
    codebook[1] = math.nan
    distance, index = twins.bmu(torch.randn(4, 3), codebook, 5, metric)
    assert (index[:, -1] == 1).all() and distance[:, -1].isnan().all() and not distance[:, :-1].isnan().any()


def test_an_offset_changes_nothing():
    input, codebook = torch.randint(-9, 9, (50, 3)).double(), torch.randint(-9, 9, (20, 3)).double()
    assert torch.equal(twins.bmu(input, codebook, 2)[1], twins.bmu(input + 1e9, codebook + 1e9, 2)[1])


@every_metric
def test_derivatives(metric):
    leaves = tuple(torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    function = lambda x, w: twins.bmu(x, w, 2, metric)[0]  # noqa: E731
    exact = metric == "cosine"  # (torch's cdist has no forward mode and no second derivative)
    assert gradcheck(function, leaves, check_forward_ad=exact)
    assert not exact or gradgradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_by_unit(dtype):
    input, index = torch.randn(30, 4).to(dtype), torch.randint(0, 6, (30,))
    sums, counts = twins.unit_sums(input, index, 8)
    assert sums.dtype == torch.float64 and counts.dtype == torch.int64
    assert not sums[6:].any() and not counts[6:].any()
    for unit in range(6):
        rows = [row.double() for row, its in zip(input, index.tolist(), strict=True) if its == unit]
        assert counts[unit] == len(rows)
        torch.testing.assert_close(sums[unit], sum(rows, torch.zeros(4, dtype=torch.float64)))


def test_sums_of_nothing():
    sums, counts = twins.unit_sums(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 2)
    assert sums.tolist() == [[0, 0, 0], [0, 0, 0]] and counts.tolist() == [0, 0]


def test_derivatives_of_sums():
    index = torch.tensor([0, 2, 2, 1])
    input = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: twins.unit_sums(x, index, 4)[0], input, check_forward_ad=True)
