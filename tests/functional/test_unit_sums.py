"""`torch.ops.pykernels.unit_sums` against sums in order of the rows."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from pykernels import _native, reference
from tests.helpers import SEED, drawn

from .bmu_cases import every_dtype, laid_out
from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
op = torch.ops.pykernels.unit_sums.default


@dataclasses.dataclass(frozen=True)
class Sums:
    """One problem. popular: how many of the units have samples."""

    samples: int = 20
    features: int = 5
    units: int = 9
    popular: int = 9
    layout: str = "rows"
    seed: int = 0

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu"):
        draw = torch.Generator().manual_seed(self.seed)
        input = torch.randn(self.samples, self.features, generator=draw, dtype=torch.float64)
        chosen = torch.randperm(self.units, generator=draw)[: self.popular]
        index = chosen[torch.randint(0, len(chosen), (self.samples,), generator=draw)]
        return laid_out(input.to(device, dtype), self.layout), index.to(device)


SPACE: dict[str, Any] = {
    "samples": [0, 1, 2, 5, 17, 100, 1000], "features": [0, 1, 2, 3, 7, 8, 9, 17, 33, 130], "units": [1, 2, 9, 100],
    "popular": [1, 2, 100], "layout": ["rows", "columns", "apart", "wide", "odd"], "seed": SEED,
}  # fmt: skip


def in_order(input, index, units: int):
    """Row after row: the one order that the operator may take, to the last bit."""
    sums, counts = torch.zeros(units, input.shape[1], dtype=torch.float64), torch.zeros(units, dtype=torch.int64)
    for row, unit in zip(input.cpu().double(), index.tolist(), strict=True):
        sums[unit] += row
        counts[unit] += 1
    return sums.to(input.device), counts.to(input.device)


@pytest.mark.isa
@every_dtype
@drawn(40, of=Sums, **SPACE)
def test_sums_in_order_of_the_rows(device, dtype, case):
    input, index = case.tensors(dtype, device)
    sums, counts = op(input, index, case.units)
    expected = in_order(input, index, case.units)
    assert sums.dtype == torch.float64 and counts.dtype == torch.int64
    assert torch.equal(counts, expected[1])
    assert torch.equal(sums, expected[0]) if device.type == "cpu" else torch.allclose(sums, expected[0])
    raw = (_native.kernels if device.type == "cpu" else _native.cuda_kernels).unit_sums(input, index, case.units)
    assert torch.equal(raw[0], sums) and torch.equal(raw[1], counts)


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("popular", [1, 3, 400])
def test_same_bits_for_any_number_of_threads(threads, dtype, popular):
    """Also where one unit has all samples."""
    input, index = Sums(9000, 40, 400, popular).tensors(dtype)
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        found.append(op(input, index, 400))
    assert torch.equal(found[0][0], in_order(input, index, 400)[0])
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0]) and torch.equal(other[1], found[0][1])


def test_more_units_than_samples(device):
    input, index = Sums(30, 3, 20000, 20000).tensors(device=device)
    sums, counts = op(input, index, 20000)
    assert counts.sum() == 30 and torch.equal(sums.sum(1) != 0, counts > 0)
    torch.testing.assert_close(sums[index], reference.unit_sums(input, index, 20000)[0][index])


def test_small_next_to_large(device):
    """Float32 would lose all of the small ones."""
    input = torch.ones(1001, 2, device=device)
    input[0] = 2.0**25
    sums, _ = op(input, torch.zeros(1001, dtype=torch.int64, device=device), 1)
    assert sums.tolist() == [[2.0**25 + 1000] * 2]


@every_dtype
def test_what_is_not_finite_stays_in_its_unit(device, dtype):
    input, index = Sums(60, 4, 6).tensors(dtype, device)
    input[3, 1], input[7, 2] = math.nan, math.inf
    index[3], index[7] = 2, 4
    sums, _ = op(input, index, 6)
    assert sums.isnan().nonzero().tolist() == [[2, 1]] and sums.isinf().nonzero().tolist() == [[4, 2]]


def test_an_index_with_strides(device):
    input, index = Sums(50).tensors(device=device)
    strided = torch.stack([index, index + 100], 1)[:, 0]
    assert not strided.is_contiguous()
    for found, expected in zip(op(input, strided, 9), op(input, index, 9), strict=True):
        assert torch.equal(found, expected)
    one = index[:1].expand(50)
    assert op(input, one, 9)[1][index[0]] == 50


# -- derivatives and tracing ------------------------------------------------------------------------------------------
@every_dtype
def test_gradients(device, dtype):
    input, index = Sums(30).tensors(dtype, device)
    input.requires_grad_()
    sums, counts = op(input, index, 9)
    assert not counts.requires_grad
    weighting = torch.randn_like(sums)
    found = torch.autograd.grad(sums, input, weighting)[0]
    assert found.dtype == dtype and torch.equal(found, weighting[index].to(dtype))


def test_derivatives_of_any_kind(device):
    input, index = Sums(7, 3, 4, 4).tensors(device=device)
    function = lambda x: op(x, index, 4)[0]  # noqa: E731
    leaf = input.clone().requires_grad_()
    assert gradcheck(function, leaf, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(lambda x: function(x).sin(), leaf, check_fwd_over_rev=True)
    tangent = jvp(function, (input,), (2 * input,))[1]
    torch.testing.assert_close(tangent, 2 * function(input))
    gradient = vmap(grad(lambda x: function(x).sin().sum()))(torch.stack([input, -input]))
    torch.testing.assert_close(gradient[0], function(input).cos()[index])


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (2, 1)], ids=str)
def test_vmap(device, dims):
    input, index = torch.randn(3, 8, 4, device=device), torch.randint(0, 5, (3, 8), device=device)
    given = [t if d is not None else t[0] for t, d in zip((input, index), dims, strict=True)]
    turned = [t if d is None else t.movedim(0, d) for t, d in zip(given, dims, strict=True)]
    found = vmap(lambda x, i: op(x, i, 5), dims)(*turned)
    for n in range(3):
        expected = op(*(t if d is None else t[n] for t, d in zip(given, dims, strict=True)), 5)
        assert torch.equal(found[0][n], expected[0]) and torch.equal(found[1][n], expected[1])


def test_opcheck(device):
    input, index = Sums(12, layout="columns").tensors(device=device)
    torch.library.opcheck(op, (input.requires_grad_(), index, 9))
    torch.library.opcheck(op, (input.detach()[:0], index[:0], 2))


def test_compile_with_shapes_that_change(device):
    fast, counter = compiled(lambda x, i, w: op(x, i, w.shape[0]), dynamic=True)
    for samples, features, units in ((6, 5, 4), (9, 8, 7), (12, 10, 11)):
        input, index = Sums(samples, features, units, units).tensors(device=device)
        found = fast(input, index, input.new_empty(units))
        for f, expected in zip(found, op(input, index, units), strict=True):
            assert torch.equal(f, expected)
    assert counter.frame_count == 1


# -- errors -----------------------------------------------------------------------------------------------------------
X, I = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])  # noqa: E741
RANGE = "[unit_sums] expected an index of units 0 to "
WRONG = [
    ((X[0], I, 3), RuntimeError, "[unit_sums] expected input of shape [samples, features], got [4]"),
    ((X.int(), I, 3), RuntimeError, "[unit_sums] expected input of dtype float32, float64"),
    ((X, I.int(), 3), RuntimeError, "[unit_sums] expected index of dtype Long on cpu, got Int on cpu"),
    ((X, I[:5], 3), RuntimeError, "[unit_sums] expected index of shape [6], got [5]"),
    ((X, I[:, None], 3), RuntimeError, "[unit_sums] expected index of shape [6], got [6, 1]"),
    ((X, I, -1), ValueError, "[unit_sums] expected a number of units, got -1"),
    ((X, I, 2), IndexError, RANGE + "1, got one out of range"),
    ((X, -I, 3), IndexError, RANGE + "2, got one out of range"),
    ((X, I, 0), IndexError, RANGE + "-1, got one out of range"),
    ((X, I + 2**40, 3), IndexError, RANGE + "2, got one out of range"),
]  # fmt: skip


@pytest.mark.parametrize("given, kind, text", WRONG, ids=lambda v: v[12:60] if isinstance(v, str) else "")
def test_errors(cpu_only, given, kind, text):
    with pytest.raises(kind, match="^" + re.escape(text)):
        op(*given)


@pytest.mark.parametrize("at", [0, 4999, 5000, 9999])
def test_a_wrong_index_anywhere_is_found(threads, at):
    """By whichever thread has it."""
    input, index = Sums(10000, 30, 10, 10).tensors()
    index[at] = 10
    for count in (1, 2, 3):
        threads(count)
        with pytest.raises(IndexError, match="out of range"):
            op(input, index, 10)


def test_no_units_for_no_samples(device):
    sums, counts = op(torch.randn(0, 3, device=device), torch.zeros(0, dtype=torch.int64, device=device), 0)
    assert sums.shape == (0, 3) and counts.shape == (0,)
