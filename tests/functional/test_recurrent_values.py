"""Unusual operands of functional.lstm, gru and rnn: strides, aliases, empty batches, NaN, infinities, subnormals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pykernels import _native, functional, reference
from tests.helpers import (
    FLAGS,
    LOW,
    SEED,
    Case,
    assert_equal,
    assert_same_bits,
    call,
    distance,
    drawn,
    every_kind,
    python,
    with_gradients,
)

DTYPES = [torch.float64, torch.float32, *LOW]
FULL = {"bidirectional": True, "projection": True, "peephole": True, "reset_after": False}
FORMS = {
    "lstm": Case(),
    "peephole": Case(peephole=True),
    "gru": Case(kind="gru"),
    "gru_original": Case(kind="gru", reset_after=False),
    "rnn": Case(kind="rnn"),
    "rnn_relu": Case(kind="rnn", relu=True),
    "jordan": Case(kind="rnn", projection=True),
}
every_form = pytest.mark.parametrize("form", FORMS)


def problem(form: str, **sizes) -> Case:
    return dataclasses.replace(FORMS[form], **sizes)


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


@every_kind
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(8, steps=(1, 5), batch=(1, 5), inputs=(1, 20), hidden=(2, 20), seed=SEED, **FLAGS)
def test_any_layout_of_every_operand(device, dtype, layout, kind, case):
    """Inputs, states, weights and incoming gradients may be views of any strides; the values decide."""
    tensors = case.tensors(dtype, device, requires_grad=False)
    found = []
    for lay in (LAYOUTS[layout], torch.Tensor.contiguous):
        leaves = {name: lay(t).requires_grad_() for name, t in tensors.items()}
        results = call(functional, case, leaves)
        weighting = [lay(torch.linspace(-1, 1, r.numel()).to(r).view(r.shape)) for r in results.values()]
        gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), weighting)
        found.append({n: r.detach() for n, r in results.items()} | dict(zip(leaves, gradients, strict=True)))
    assert_equal(*found, tolerance=16 * torch.finfo(dtype).eps)


@every_kind
def test_expanded_operands(device, kind):
    """Strides of zero: one sample for the whole batch, one state for all, an expanded gradient (from .sum())."""
    case = Case(batch=4, **FULL).of(kind)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    tensors["input"] = tensors["input"][:, :1].expand(-1, 4, -1)
    tensors["h0"] = tensors["h0"][:, :1].expand(-1, 4, -1)
    if kind == "lstm":
        tensors["c0"] = tensors["c0"][:1, :1, :1].expand(2, 4, case.hidden)
    tensors["bias_ih_l0"] = tensors["bias_ih_l0"][:1].expand_as(tensors["bias_ih_l0"])
    found = []
    for where in (functional, reference):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        results = call(where, case, leaves)
        loss = sum(result.sum() for result in results.values())
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        found.append({n: r.detach() for n, r in results.items()} | dict(zip(leaves, gradients, strict=True)))
    assert_equal(*found)


@every_kind
def test_operands_are_left_as_they_were(device, kind):
    case = Case(**FULL, packed=True).of(kind)
    tensors = case.tensors(torch.float32, device)
    before = {name: t.detach().clone() for name, t in tensors.items()}
    with_gradients(call(functional, case, tensors), tensors)
    assert_same_bits({name: t.detach() for name, t in tensors.items()}, before)


@every_form
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_results_share_no_memory(device, grad, form):
    """Results may be changed in place without changing another: h_n is no view of output, nor c_n of c0."""
    case = problem(form, steps=1, batch=2)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    with torch.set_grad_enabled(grad):
        found = call(functional, case, tensors)
        kept = {name: t.clone() for name, t in found.items()}
        for name in found:
            found[name].mul_(-3)
            assert_same_bits({n: t for n, t in found.items() if n != name}, {n: kept[n] for n in found if n != name})
            found[name].copy_(kept[name])
    assert len({t.untyped_storage().data_ptr() for t in [*found.values(), *tensors.values()]}) == len(found) + len(
        tensors
    )


@every_kind
def test_one_tensor_in_several_places(device, kind):
    """The same tensor as h0 and c0, for both directions' weights, and for both biases: gradients add up."""
    case = Case(bidirectional=True, kind=kind)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        if kind == "lstm":
            tensors["c0"] = tensors["h0"]
        for name in case.weight_shapes():
            tensors[name] = tensors[name.removesuffix("_reverse").replace("bias_hh", "bias_ih")]
        leaves = {name: tensors[name] for name in ("input", "h0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0")}
        found.append(with_gradients(call(where, case, tensors), leaves))
    assert_equal(*found)


# -- nothing to do ----------------------------------------------------------------------------------------------------
@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(8, steps=(1, 3), seed=SEED, **{**FLAGS, "packed": [False]})
def test_no_batch(device, dtype, kind, case):
    case = dataclasses.replace(case, batch=0)
    tensors = case.tensors(dtype, device)
    results = call(functional, case, tensors)
    assert results["output"].shape == (case.steps, 0, case.directions * case.out)
    for state, shape in zip(case.about.results[1:], case.state_shapes().values(), strict=True):
        assert results[state].shape == shape == (case.directions, 0, shape[2])
    gradients = torch.autograd.grad(sum(r.sum() for r in results.values()), list(tensors.values()))
    for name, gradient in zip(tensors, gradients, strict=True):
        assert gradient.shape == tensors[name].shape and gradient.dtype == dtype
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


@every_kind
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_no_steps_is_torchs_error(device, grad, kind):
    case = Case(steps=0, kind=kind)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as error:
        call(functional, case, case.tensors(torch.float32, device))
    assert str(error.value) == "Expected sequence length to be larger than 0 in RNN"


def assert_alike(found, expected, tolerance: float, what: str = "") -> None:
    """Close, with NaN and infinities in the same places."""
    for name, value in found.items():
        torch.testing.assert_close(
            value.double(),
            expected[name].double(),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{what} {name}: {text}",
        )


# -- not finite -------------------------------------------------------------------------------------------------------
@every_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(8, steps=(2, 7), batch=(2, 9), inputs=(1, 20), hidden=(1, 20), seed=SEED,
       **{**FLAGS, "bidirectional": [False], "packed": [False]})  # fmt: skip
def test_one_bad_step_of_one_sample_stays_there(device, dtype, bad, kind, case):
    """A NaN in sample b at step t poisons sample b from t on, and nothing else, to the bit."""
    tensors = case.tensors(dtype, device, requires_grad=False)
    clean = call(functional, case, tensors)
    step, sample = case.seed % case.steps, case.seed % case.batch
    tensors["input"] = tensors["input"].clone()
    tensors["input"][step, sample, case.seed % case.inputs] = bad
    found = call(functional, case, tensors)
    others = torch.arange(case.batch, device=found["output"].device) != sample
    assert torch.equal(found["output"][:, others], clean["output"][:, others])
    assert torch.equal(found["output"][:step], clean["output"][:step])
    states = case.about.results[1:]
    for state in states:
        assert torch.equal(found[state][:, others], clean[state][:, others])
    if math.isnan(bad):
        assert found["output"][step:, sample].isnan().all()
        assert all(found[state][:, sample].isnan().all() for state in states)
    else:
        # an infinite pre-activation closes or opens its gates: as the twin says
        expected = call(reference, case, {n: t.double() for n, t in tensors.items()})
        tolerance = 30 * torch.finfo(dtype).eps
        assert_alike(*({"": f["output"][:, sample]} for f in (found, expected)), tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [1, 3, 8, 17])
@every_form
def test_infinite_input_where_the_last_vector_is_not_full(device, dtype, hidden, form):
    """The lanes beyond the last unit compute 0 * inf; nothing of that may come back in a later step."""
    case = problem(form, steps=4, batch=3, inputs=3, hidden=hidden, bidirectional=True)
    if form == "lstm":
        case = dataclasses.replace(case, projection=hidden > 1)
    tensors = case.tensors(dtype, device, requires_grad=False)
    tensors["input"][1, 1, 2] = math.inf
    found = call(functional, case, tensors)
    expected = call(reference, case, {name: t.double() for name, t in tensors.items()})
    assert form == "rnn_relu" or all(value.isfinite().all() for value in found.values())
    assert_alike(found, expected, 30 * torch.finfo(dtype).eps)


@every_form
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_numbers_anywhere_are_as_the_twins(device, bad, form):
    """The third number of every operand in turn."""
    case = problem(form, hidden=9)
    for place in case.tensors():
        tensors = case.tensors(torch.float64, device, requires_grad=False)
        tensors[place].view(-1)[2] = bad
        assert_alike(call(functional, case, tensors), call(reference, case, tensors), 1e-12, place)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_form
def test_a_bad_gradient_stays_in_its_sample(device, dtype, form):
    """NaN in the gradient of one sample's one step reaches that sample's earlier steps only."""
    case = problem(form, steps=5, batch=6, hidden=11)
    tensors = case.tensors(dtype, device)
    results = call(functional, case, tensors)
    weighting = torch.ones_like(results["output"])
    weighting[2, 4] = math.nan
    gradient, to_h0 = torch.autograd.grad(results["output"], [tensors["input"], tensors["h0"]], weighting)
    if form == "rnn_relu":  # units that are off pass nothing on
        assert gradient[2, 4].isnan().any()
    else:
        assert gradient[:3, 4].isnan().all() and to_h0[:, 4].isnan().all()
    gradient, to_h0 = gradient.clone(), to_h0.clone()
    gradient[:3, 4], to_h0[:, 4] = 0, 0
    assert gradient.isfinite().all() and to_h0.isfinite().all()


@pytest.mark.parametrize("size", [1e3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "rnn_relu"])
def test_saturated_gates(device, dtype, size, form):
    """Large pre-activations: gates of exactly 0 or 1, gradients of 0 and no NaN."""
    case = problem(form, steps=3, batch=5, hidden=19)
    tensors = case.tensors(dtype, device, requires_grad=False)
    tensors["input"] *= size
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    found = with_gradients(call(functional, case, leaves), leaves)
    expected = with_gradients(call(reference, case, leaves), leaves)
    for name, value in found.items():
        assert value.isfinite().all(), name
        assert distance(value, expected[name]) < 1e-5, name


# What comes in, and what of it the state is: with zero weights the gates are 1/2, and one path has weight 1.
SHARES = {
    "lstm": {"input": 1 / 4, "h0": 1 / 4, "c0": 1 / 4},
    "gru": {"input": 1 / 2, "h0": 1 / 2},
    "rnn": {"input": 1, "h0": 1},
    "rnn_relu": {"input": 1, "h0": 1},
    "jordan": {"input": 1, "h0": 1},
}
PATHS = {"lstm": slice(14, 21), "gru": slice(14, 21)}  # the rows of the candidate


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form, place", [(form, place) for form, places in SHARES.items() for place in places])
def test_subnormal_numbers_count(device, dtype, form, place):
    """Subnormal inputs and states are not flushed to zero, and halves of them are exact."""
    if dtype == torch.bfloat16 and place != "c0" and device.type == "cpu" and _native.isa == "avx512_bf16":
        pytest.skip("the processor's bf16 dot product itself takes subnormals for zero")
    case = problem(form, steps=1, batch=3, inputs=7, hidden=7, bias=False, projection=False)
    if form == "jordan":
        case = dataclasses.replace(case, projection=True, hidden=10)  # six of ten units are put out
    tensors = {name: torch.zeros_like(t) for name, t in case.tensors(dtype, device, requires_grad=False).items()}
    small = torch.finfo(dtype).tiny / 16
    assert small > 0
    tensors[place] += small
    weight = {"input": "weight_ih_l0", "h0": "weight_hh_l0"}.get(place)
    if weight and (form, place) != ("gru", "h0"):
        rows = PATHS.get(form, slice(None))
        tensors[weight][rows] = torch.eye(*tensors[weight][rows].shape).to(tensors[weight])
    if form == "jordan":
        tensors["weight_ho_l0"][:] = torch.eye(*tensors["weight_ho_l0"].shape).to(tensors["weight_ho_l0"])
    found = call(functional, case, tensors)
    if form == "lstm":
        assert torch.equal(found["c_n"], torch.full_like(found["c_n"], small / 2))
    for name in ("h_n", "output"):
        assert torch.equal(found[name], torch.full_like(found[name], SHARES[form][place] * small))


def test_the_import_flushes_nothing(cpu_only):
    """After the import and a call, in every thread, subnormal arithmetic of the process is as IEEE 754 wants it."""
    python(
        """
import torch
small = torch.full((1 << 16,), 1e-40)
assert (small * 0.5 > 0).all()
import pykernels
for kind in (pykernels.LSTM, pykernels.GRU, pykernels.RNN):
    kind(16, 64)(torch.randn(20, 8, 16))[0].sum().backward()
assert (small * 0.5 > 0).all() and (torch.full((1,), 5e-324, dtype=torch.float64) * 1.0 > 0).all()
assert float("5e-324") > 0 and 2.3e-308 / 16 > 0
"""
    )
