"""Best matching units against distances written out in float64: shapes, dtypes, ties, offsets, what is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import functional
from tests.helpers import LOW, SEED, drawn, python

from .bmu_cases import DTYPES, METRICS, SPACE, Search, every_dtype, every_metric, measures, truth

bmu = functional.bmu
WIDE = [torch.float64, torch.float32]


def searched(input, codebook, k: int = 1, metric: str = "euclidean"):
    """Always [N, k], of the forms that the function promises."""
    distance, index = bmu(input, codebook, k, metric)
    shape = (len(input),) if k == 1 else (len(input), k)
    assert distance.shape == index.shape == shape
    assert distance.dtype == input.dtype and index.dtype == torch.int64 and distance.device == input.device
    return distance.reshape(-1, k), index.reshape(-1, k)


def check(input, codebook, k: int, metric: str, rounding: float = 1e-13) -> None:
    """The units, and the distances to a unit in the last place or what rounds in float64.

    Of an angle the order is only asked for as far as float64 tells it.
    """
    distance, index = searched(input, codebook, k, metric)
    expected, units = truth(input, codebook, k, metric)
    if metric == "cosine":
        apart = measures(input, codebook, metric).gather(1, index)
        torch.testing.assert_close(apart, expected, rtol=0, atol=4e-15, equal_nan=True)
        assert len(index) == 0 or (index.sort(1).values.diff(dim=1) > 0).all()
        ulp = 2e-15
    else:
        assert torch.equal(index, units)
        ulp = 0
    eps = torch.finfo(input.dtype).eps
    expected = expected.to(input.dtype)
    tiny = torch.finfo(input.dtype).smallest_normal if input.dtype in LOW else 0
    torch.testing.assert_close(distance, expected, rtol=max(eps, rounding), atol=ulp + tiny, equal_nan=True)


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@every_metric
@drawn(60, of=Search, **SPACE)
def test_against_float64(device, dtype, metric, case):
    check(*case.tensors(dtype, device), case.most, metric)


BIG = [
    Search(70, 129, 1023), Search(70, 140, 1025, 2), Search(20, 17, 2100, 3), Search(50, 260, 1100, 8),  # depth
    Search(400, 700, 3), Search(300, 1000, 4, 2), Search(130, 513, 20, 1), Search(100, 513, 64, 2),  # groups
    Search(3, 5000, 2, 4), Search(1, 300, 500), Search(4, 129, 9, 8), Search(5, 4099, 1, 8),  # few samples
]  # fmt: skip


@pytest.mark.parametrize("case", BIG, ids=lambda c: f"N{c.samples}-K{c.units}-D{c.features}-k{c.k}")
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@every_metric
def test_more_than_one_block_of_anything(device, dtype, metric, case):
    check(*case.tensors(dtype, device), case.k, metric)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
@every_dtype
@pytest.mark.isa
@drawn(60, of=Search, **{**SPACE, "features": [1, 2, 3, 4, 9], "values": ["whole"]})
def test_the_lowest_of_units_that_are_exactly_as_far(device, dtype, metric, case):
    """Whole numbers are exact in every dtype: ties are plenty, and of the units of a tie the lowest come first."""
    input, codebook = case.tensors(dtype, device)
    distance, index = searched(input, codebook, case.most, metric)
    expected, units = truth(input, codebook, case.most, metric)
    assert torch.equal(index, units)
    eps = torch.finfo(torch.float64).eps if dtype == torch.float64 else 0  # (not every root is rounded as torch's)
    torch.testing.assert_close(distance, expected.to(dtype), rtol=eps, atol=0)


def test_there_are_ties(device):
    """(Else the test above would show nothing.)"""
    found = measures(*Search(50, 33, 3, values="whole").tensors(), "euclidean").sort(1).values
    assert (found.diff(dim=1) == 0).sum() > 500


@every_dtype
@every_metric
@pytest.mark.parametrize("units", [3, 40, 200])
def test_copies_of_units(device, dtype, metric, units):
    """Each unit three times, once twice as large where only its direction counts."""
    input, codebook = Search(60, units, 11, seed=units).tensors(dtype, device)
    other = 2 * codebook if metric == "cosine" else codebook
    found = searched(input, torch.cat([other, codebook, other]), 3, metric)
    alone = searched(input, codebook, 1, metric)
    assert torch.equal(found[0], alone[0].expand(-1, 3))
    assert torch.equal(found[1], alone[1] + torch.tensor([0, units, 2 * units], device=device))


@every_dtype
@every_metric
def test_units_that_are_all_the_same(device, dtype, metric):
    input = torch.randn(30, 6, device=device).to(dtype)
    _, index = searched(input, input[:1].expand(50, 6), 5, metric)
    assert torch.equal(index, torch.arange(5, device=device).expand(30, 5))


@every_dtype
@every_metric
@pytest.mark.parametrize("features", [1, 7, 64])
def test_every_unit_finds_itself(device, dtype, metric, features):
    codebook = (torch.randn(100, features, device=device, dtype=torch.float64) + 1.0).to(dtype)
    distance, _ = searched(codebook, codebook, 1, metric)
    assert distance.max() <= (2e-15 if metric == "cosine" else 0)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("offset", [1e4, -65536.0, 100352.0])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_an_offset_changes_no_winner(device, dtype, offset, k, metric):
    """Values are multiples of 1/64, which such offsets leave exact."""
    draw = torch.Generator().manual_seed(3)
    input, codebook = (
        (torch.randint(-50, 50, (rows, 8), generator=draw).double() / 64).to(device, dtype) for rows in (500, 150)
    )
    near, far = searched(input, codebook, k, metric), searched(input + offset, codebook + offset, k, metric)
    assert torch.equal(near[1], truth(input, codebook, k, metric)[1])
    assert torch.equal(near[1], far[1]) and torch.equal(near[0], far[0])


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_far_away_in_float64(device, metric):
    """At 1e9 the expanded square would have nothing left."""
    input, codebook = Search(300, 50, 6).tensors(device=device)
    check(input + 1e9, codebook + 1e9, 2, metric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("power", [-37, -30, -23, -22, -21, -20, -10, 10, 18, 19, 25, 36])
@pytest.mark.parametrize("k", [1, 3])
@every_metric
def test_scales_whose_squares_leave_float32(device, dtype, power, metric, k):
    input, codebook = ((t * 10.0**power).to(dtype) for t in Search(200, 40, 7, seed=4).tensors(device=device))
    _, index = searched(input, codebook, k, metric)
    assert torch.equal(index, truth(input, codebook, k, metric)[1])


@every_metric
def test_distances_that_overflow_float16(device, metric):
    input, codebook = ((t * 3e4).to(torch.float16) for t in Search(60, 20, 9).tensors(device=device))
    input, codebook = input.nan_to_num(posinf=6e4, neginf=-6e4), codebook.nan_to_num(posinf=6e4, neginf=-6e4)
    distance, index = searched(input, codebook, 2, metric)
    assert torch.equal(index, truth(input, codebook, 2, metric)[1])
    assert distance.isinf().any() == (metric != "cosine") and not distance.isnan().any()


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_one_unit_far_from_all_others(device, dtype):
    """Its norm is part of what rounding may do; it must not decide between the others."""
    input, codebook = Search(200, 60, 5).tensors(dtype, device)
    codebook[17] = 1e6
    for metric in METRICS:
        check(input, codebook, 2, metric)


# -- what is not finite -----------------------------------------------------------------------------------------------
@every_dtype
@every_metric
@pytest.mark.parametrize("samples", [3, 60])
def test_a_sample_with_nan_has_nan_distances(device, dtype, metric, samples):
    input, codebook = Search(samples, 20, 7).tensors(dtype, device)
    input[1, 3] = math.nan
    for k in (1, 2, 4):
        distance, index = searched(input, codebook, k, metric)
        assert distance[1].isnan().all() and torch.equal(index[1], torch.arange(k, device=device))
        others = torch.arange(samples, device=device) != 1
        alone = searched(input[others], codebook, k, metric)
        assert torch.equal(distance[others], alone[0]) and torch.equal(index[others], alone[1])


@pytest.mark.isa
@every_dtype
@every_metric
def test_a_unit_with_nan_wins_against_none(device, dtype, metric):
    input, codebook = Search(60, 12, 7).tensors(dtype, device)
    codebook[[0, 5, 6]] = math.nan
    distance, index = searched(input, codebook, 8, metric)
    assert not torch.isin(index, torch.tensor([0, 5, 6], device=device)).any() and not distance.isnan().any()
    check(input, codebook, 8, metric)
    codebook[1:4] = math.nan
    distance, index = searched(input, codebook, 8, metric)  # six units are left
    assert torch.equal(index[:, 6:], torch.tensor([0, 1], device=device).expand(60, 2))
    assert distance[:, 6:].isnan().all() and not distance[:, :6].isnan().any()


@every_metric
@drawn(60, of=Search, **{**SPACE, "samples": [3, 20, 50], "features": [1, 2, 5, 17], "layout": ["rows"]})
def test_anything_anywhere(device, metric, case):
    """NaN and infinities at drawn places: the order of float64."""
    draw = torch.Generator().manual_seed(case.seed)
    for dtype in WIDE:
        input, codebook = case.tensors(dtype, device)
        for t in (input, codebook):
            where = torch.rand(t.shape, generator=draw).to(device)
            t[where < 0.03] = math.nan
            t[(where > 0.03) & (where < 0.06)] = math.inf
            t[(where > 0.06) & (where < 0.09)] = -math.inf
        distance, index = searched(input, codebook, case.most, metric)
        expected, units = truth(input, codebook, case.most, metric)
        if metric != "cosine":
            assert torch.equal(index, units)
        torch.testing.assert_close(distance, expected.to(dtype), equal_nan=True, rtol=1e-6, atol=1e-14)


@every_dtype
def test_a_zero_has_no_direction(device, dtype):
    input = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], device=device, dtype=dtype).repeat(4, 1)
    codebook = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]], device=device, dtype=dtype)
    distance, index = bmu(input, codebook, 3, "cosine")
    assert distance[:3].tolist() == [[1, 1, 1], [0, 1, 1], [1, 1, 2]]
    assert index[:3].tolist() == [[0, 1, 2], [1, 0, 2], [0, 2, 1]]
    assert torch.equal(distance[3:6], distance[:3]) and torch.equal(index[3:6], index[:3])


# -- forms ------------------------------------------------------------------------------------------------------------
@every_metric
@pytest.mark.parametrize("shapes", [((0, 3), (4, 3)), ((5, 0), (4, 0)), ((50, 0), (40, 0)), ((0, 0), (1, 0))], ids=str)
def test_empties(device, metric, shapes):
    for k in (1, min(3, shapes[1][0])):
        input, codebook = (torch.randn(shape, device=device) for shape in shapes)
        distance, index = searched(input, codebook, k, metric)
        assert torch.equal(index, torch.arange(k, device=device).expand(shapes[0][0], k))
        assert (distance == (1 if metric == "cosine" else 0)).all()


def test_arguments_are_left_as_they_were(device):
    input, codebook = Search(50, 40, 6).tensors(torch.float32, device)
    before = input.clone(), codebook.clone()
    for metric in METRICS:
        bmu(input, codebook, 3, metric)
    assert torch.equal(input, before[0]) and torch.equal(codebook, before[1])


def test_rows_that_are_one_row(device):
    input, codebook = torch.randn(1, 9, device=device).expand(40, 9), torch.randn(7, 9, device=device)
    distance, index = bmu(input, codebook)
    assert (distance == distance[0]).all() and (index == index[0]).all()
    assert torch.equal(index, truth(input, codebook, 1, "euclidean")[1][:, 0])
    assert torch.equal(bmu(codebook, codebook[:1].expand(3, 9))[1], torch.zeros(7, dtype=torch.int64, device=device))


@pytest.mark.parametrize("of_input", DTYPES, ids=str)
@pytest.mark.parametrize("of_codebook", DTYPES, ids=str)
def test_mixed_dtypes_are_promoted(device, of_input, of_codebook):
    input, codebook = Search(20, 9, 5).tensors(device=device)
    input, codebook = input.to(of_input), codebook.to(of_codebook)
    dtype = torch.promote_types(of_input, of_codebook)
    found, expected = bmu(input, codebook), bmu(input.to(dtype), codebook.to(dtype))
    assert found[0].dtype == dtype
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_negated_views(device):
    """(The imaginary part of a conjugate is a view that is negated where it is read.)"""
    z = torch.randn(20, 5, dtype=torch.complex64, device=device)
    view = z.conj().imag
    assert view.is_neg()
    codebook = torch.randn(9, 5, device=device)
    for found in (bmu(view, codebook), bmu(codebook, view)):
        other = view.resolve_neg()
        expected = bmu(other, codebook) if len(found[0]) == 20 else bmu(codebook, other)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


# -- threads ----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@every_metric
@drawn(4, of=Search, samples=[1, 3, 130, 1000], units=[30, 200], features=[3, 70], k=[1, 2, 5], seed=SEED)
def test_same_bits_for_any_number_of_threads(threads, dtype, metric, case):
    input, codebook = case.tensors(dtype)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(searched(input, codebook, case.most, metric))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0]) and torch.equal(other[1], found[0][1])


@every_metric
def test_a_sample_finds_the_same_alone(device, metric):
    """How many samples come together decides how they are searched, and nothing else."""
    input, codebook = Search(100, 300, 6).tensors(torch.float32, device)
    whole = searched(input, codebook, 2, metric)
    for size in (1, 3, 7, 20, 60):
        parts = [searched(input[at : at + size], codebook, 2, metric) for at in range(0, 100, size)]
        assert torch.equal(torch.cat([p[0] for p in parts]), whole[0])
        assert torch.equal(torch.cat([p[1] for p in parts]), whole[1])


FORKED = """
import os, torch
from pykernels.functional import bmu
torch.set_num_threads(2)
x, w = torch.randn(3000, 20), torch.randn(300, 20)
index = torch.randint(0, 300, (3000,))
find = lambda: (*bmu(x, w, 2), *torch.ops.pykernels.unit_sums(x, index, 300))
expected = find()                                   # the threads exist before the fork
child = os.fork()
if child == 0:
    same = all(torch.equal(a, b) for a, b in zip(find(), expected))
    os._exit(0 if same else 3)
assert os.waitpid(child, 0)[1] == 0
print("fine")
"""


def test_a_forked_worker(cpu_only):
    assert python(FORKED, timeout=60).stdout.strip() == "fine"
