"""Unusual operands of functional.lstm: strides, aliases, empty batches, NaN, infinities, subnormals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pykernels import _native, functional, reference
from tests.helpers import (
    FLAG,
    LOW,
    SEED,
    Case,
    assert_equal,
    assert_same_bits,
    call,
    distance,
    drawn,
    python,
    with_gradients,
)

DTYPES = [torch.float64, torch.float32, *LOW]
KINDS = {"bidirectional": FLAG, "projection": FLAG, "peephole": FLAG, "states": FLAG, "seed": SEED}


# -- layouts ----------------------------------------------------------------------------------------------------------
def transposed(t: torch.Tensor) -> torch.Tensor:
    """The same values with the strides in reverse order."""
    order = list(range(t.dim()))[::-1]
    return t.permute(order).contiguous().permute(order)


def sliced(t: torch.Tensor) -> torch.Tensor:
    """The same values inside a larger tensor: an offset, a gap after every row, every second element."""
    larger = t.new_full([2 * n + 3 for n in t.shape], math.nan)
    view = larger[tuple(slice(1, 2 * n + 1, 2) for n in t.shape)]
    view.copy_(t)
    return view


def offset(t: torch.Tensor) -> torch.Tensor:
    """The same values one element off the alignment of a vector."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


LAYOUTS = {"transposed": transposed, "sliced": sliced, "offset": offset}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(8, steps=(1, 5), batch=(1, 5), inputs=(1, 20), hidden=(1, 20), packed=FLAG, **KINDS)
def test_any_layout_of_every_operand(device, dtype, layout, case):
    """Inputs, states, weights and incoming gradients may be views of any strides; the values decide."""
    tensors = case.tensors(dtype, device, requires_grad=False)
    found = []
    for lay in (LAYOUTS[layout], torch.Tensor.contiguous):
        leaves = {name: lay(t).requires_grad_() for name, t in tensors.items()}
        results = call(functional.lstm, case, leaves)
        weighting = [lay(torch.linspace(-1, 1, r.numel()).to(r).view(r.shape)) for r in results.values()]
        gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), weighting)
        found.append({n: r.detach() for n, r in results.items()} | dict(zip(leaves, gradients, strict=True)))
    assert_equal(*found, tolerance=16 * torch.finfo(dtype).eps)


def test_expanded_operands(device):
    """Strides of zero: one sample for the whole batch, one state for all, an expanded gradient (from .sum())."""
    case = Case(batch=4, bidirectional=True, peephole=True)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    tensors["input"] = tensors["input"][:, :1].expand(-1, 4, -1)
    tensors["h0"] = tensors["h0"][:, :1].expand(-1, 4, -1)
    tensors["c0"] = tensors["c0"][:1, :1, :1].expand(2, 4, case.hidden)
    tensors["bias_ih_l0"] = tensors["bias_ih_l0"][:1].expand(4 * case.hidden)
    found = []
    for function in (functional.lstm, reference.lstm):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        results = call(function, case, leaves)
        loss = sum(result.sum() for result in results.values())
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        found.append({n: r.detach() for n, r in results.items()} | dict(zip(leaves, gradients, strict=True)))
    assert_equal(*found)


def test_operands_are_left_as_they_were(device):
    case = Case(bidirectional=True, projection=True, peephole=True, packed=True)
    tensors = case.tensors(torch.float32, device)
    before = {name: t.detach().clone() for name, t in tensors.items()}
    with_gradients(call(functional.lstm, case, tensors), tensors)
    assert_same_bits({name: t.detach() for name, t in tensors.items()}, before)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_results_share_no_memory(device, grad):
    """Results may be changed in place without changing another: h_n is no view of output, nor c_n of c0."""
    case = Case(steps=1, batch=2)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    with torch.set_grad_enabled(grad):
        found = call(functional.lstm, case, tensors)
        kept = {name: t.clone() for name, t in found.items()}
        for name in found:
            found[name].mul_(-3)
            assert_same_bits({n: t for n, t in found.items() if n != name}, {n: kept[n] for n in found if n != name})
            found[name].copy_(kept[name])
    assert len({t.untyped_storage().data_ptr() for t in [*found.values(), *tensors.values()]}) == 3 + len(tensors)


def test_one_tensor_in_several_places(device):
    """The same tensor as h0 and c0, and for both directions' weights: gradients add up."""
    case = Case(bidirectional=True)
    found = []
    for function in (functional.lstm, reference.lstm):
        tensors = case.tensors(torch.float64, device)
        names = list(tensors)
        tensors["c0"] = tensors["h0"]
        for name in case.weight_shapes():
            tensors[name] = tensors[name.removesuffix("_reverse")]
        leaves = {name: tensors[name] for name in names if not name.endswith("_reverse") and name != "c0"}
        found.append(with_gradients(call(function, case, tensors), leaves))
    assert_equal(*found)


# -- nothing to do ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(8, steps=(1, 3), **KINDS)
def test_no_batch(device, dtype, case):
    case = dataclasses.replace(case, batch=0)
    tensors = case.tensors(dtype, device)
    results = call(functional.lstm, case, tensors)
    assert results["output"].shape == (case.steps, 0, case.directions * case.out)
    assert results["h_n"].shape == (case.directions, 0, case.out)
    assert results["c_n"].shape == (case.directions, 0, case.hidden)
    gradients = torch.autograd.grad(sum(r.sum() for r in results.values()), list(tensors.values()))
    for name, gradient in zip(tensors, gradients, strict=True):
        assert gradient.shape == tensors[name].shape and gradient.dtype == dtype
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_no_steps_is_torchs_error(device, grad):
    case = Case(steps=0)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as error:
        call(functional.lstm, case, case.tensors(torch.float32, device))
    assert str(error.value) == "Expected sequence length to be larger than 0 in RNN"


# -- not finite -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(6, steps=(2, 7), batch=(2, 9), inputs=(1, 20), hidden=(1, 20), peephole=FLAG, projection=FLAG, seed=SEED)
def test_one_bad_step_of_one_sample_stays_there(device, dtype, bad, case):
    """A NaN in sample b at step t poisons sample b from t on, and nothing else, to the bit."""
    tensors = case.tensors(dtype, device, requires_grad=False)
    clean = call(functional.lstm, case, tensors)
    step, sample = case.seed % case.steps, case.seed % case.batch
    tensors["input"] = tensors["input"].clone()
    tensors["input"][step, sample, case.seed % case.inputs] = bad
    found = call(functional.lstm, case, tensors)
    others = torch.arange(case.batch, device=found["output"].device) != sample
    assert torch.equal(found["output"][:, others], clean["output"][:, others])
    assert torch.equal(found["output"][:step], clean["output"][:step])
    for state in ("h_n", "c_n"):
        assert torch.equal(found[state][:, others], clean[state][:, others])
    if math.isnan(bad):
        assert found["output"][step:, sample].isnan().all()
        assert found["c_n"][:, sample].isnan().all() and found["h_n"][:, sample].isnan().all()
    else:
        # an infinite pre-activation closes or opens its gates: as the twin says
        expected = call(reference.lstm, case, {n: t.double() for n, t in tensors.items()})["output"][:, sample]
        tolerance = 30 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            found["output"][:, sample].double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [1, 3, 8, 17])
def test_infinite_input_where_the_last_vector_is_not_full(device, dtype, hidden):
    """The lanes beyond the last unit compute 0 * inf; nothing of that may come back in a later step."""
    case = Case(steps=4, batch=3, inputs=3, hidden=hidden, projection=hidden > 1, bidirectional=True)
    tensors = case.tensors(dtype, device, requires_grad=False)
    tensors["input"][1, 1, 2] = math.inf
    found = call(functional.lstm, case, tensors)
    expected = call(reference.lstm, case, {name: t.double() for name, t in tensors.items()})
    for name, value in found.items():
        assert value.isfinite().all(), name
        assert distance(value, expected[name]) < 30 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("place", ["h0", "c0", "weight_hh_l0", "bias_ih_l0", "weight_peephole_l0", "weight_ih_l0"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_numbers_anywhere_are_as_the_twins(device, bad, place):
    case = Case(hidden=9, peephole=True)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    tensors[place].view(-1)[2] = bad
    found, expected = call(functional.lstm, case, tensors), call(reference.lstm, case, tensors)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_gradient_stays_in_its_sample(device, dtype):
    """NaN in the gradient of one sample's one step reaches that sample's earlier steps only."""
    case = Case(steps=5, batch=6, hidden=11)
    tensors = case.tensors(dtype, device)
    results = call(functional.lstm, case, tensors)
    weighting = torch.ones_like(results["output"])
    weighting[2, 4] = math.nan
    gradient, to_h0 = torch.autograd.grad(results["output"], [tensors["input"], tensors["h0"]], weighting)
    assert gradient[:3, 4].isnan().all() and to_h0[:, 4].isnan().all()
    gradient, to_h0 = gradient.clone(), to_h0.clone()
    gradient[:3, 4], to_h0[:, 4] = 0, 0
    assert gradient.isfinite().all() and to_h0.isfinite().all()


@pytest.mark.parametrize("size", [1e3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_saturated_gates(device, dtype, size):
    """Large pre-activations: gates of exactly 0 or 1, gradients of 0 and no NaN."""
    case = Case(steps=3, batch=5, hidden=19, peephole=True)
    tensors = case.tensors(dtype, device, requires_grad=False)
    tensors["input"] *= size
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    found = with_gradients(call(functional.lstm, case, leaves), leaves)
    expected = with_gradients(call(reference.lstm, case, leaves), leaves)
    for name, value in found.items():
        assert value.isfinite().all(), name
        assert distance(value, expected[name]) < 1e-5, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", ["input", "h0", "c0"])
def test_subnormal_numbers_count(device, dtype, place):
    """Subnormal inputs and states are not flushed to zero.

    Zero weights but for one path of weight 1 make it exact: with gates of 1/2 the cell is half of what came in.
    """
    if dtype == torch.bfloat16 and place != "c0" and device.type == "cpu" and _native.isa == "avx512_bf16":
        pytest.skip("the processor's bf16 dot product itself takes subnormals for zero")
    case = Case(steps=1, batch=3, inputs=7, hidden=7, bias=False)
    tensors = {name: torch.zeros_like(t) for name, t in case.tensors(dtype, device, requires_grad=False).items()}
    small = torch.finfo(dtype).tiny / 16
    assert small > 0
    tensors[place] += small
    weight = {"input": "weight_ih_l0", "h0": "weight_hh_l0"}.get(place)
    if weight:
        tensors[weight][14:21] = torch.eye(7).to(tensors[weight])  # the rows of g
    found = call(functional.lstm, case, tensors)
    assert torch.equal(found["c_n"], torch.full_like(found["c_n"], small / 2))
    for name in ("h_n", "output"):
        assert torch.equal(found[name], torch.full_like(found[name], small / 4))


def test_the_import_flushes_nothing(cpu_only):
    """After the import and a call, in every thread, subnormal arithmetic of the process is as IEEE 754 wants it."""
    python(
        """
import torch
small = torch.full((1 << 16,), 1e-40)
assert (small * 0.5 > 0).all()
import pykernels
pykernels.LSTM(16, 64)(torch.randn(20, 8, 16))[0].sum().backward()
assert (small * 0.5 > 0).all() and (torch.full((1,), 5e-324, dtype=torch.float64) * 1.0 > 0).all()
assert float("5e-324") > 0 and 2.3e-308 / 16 > 0
"""
    )
