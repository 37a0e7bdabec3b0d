"""Differentiation of functional.lstm, gru and rnn: first and second derivatives by number, and autograd's manners."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import pykernels
from pykernels import functional, reference
from tests.helpers import (
    FLAGS,
    KINDS,
    SEED,
    Case,
    assert_equal,
    assert_same_bits,
    call,
    call_cell,
    drawn,
    every_kind,
    with_gradients,
)

SMALL = {"steps": (1, 4), "batch": (1, 3), "inputs": (1, 3), "hidden": (2, 4), "seed": SEED}


def as_function(case: Case, names, function=call):
    """The results as a function of the tensors by position, as gradcheck wants it."""
    return lambda *values: tuple(function(functional, case, dict(zip(names, values, strict=True))).values())


# -- numerically ------------------------------------------------------------------------------------------------------
@every_kind
@drawn(12, **SMALL, **FLAGS)
def test_gradcheck(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    assert gradcheck(as_function(case, tensors), tuple(tensors.values()), check_batched_grad=False)


@every_kind
@drawn(25, **SMALL, **FLAGS, layers=(1, 2))
def test_gradcheck_fast(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    assert gradcheck(as_function(case, tensors), tuple(tensors.values()), fast_mode=True)


@every_kind
@drawn(4, steps=(1, 3), batch=(1, 2), inputs=(1, 2), hidden=(2, 3), seed=SEED, **{**FLAGS, "bias": [False]})
def test_gradgradcheck(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    assert gradgradcheck(as_function(case, tensors), tuple(tensors.values()))


@every_kind
@drawn(15, **SMALL, **FLAGS, layers=(1, 2))
def test_gradgradcheck_fast(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    assert gradgradcheck(as_function(case, tensors), tuple(tensors.values()), fast_mode=True)


@every_kind
@drawn(6, **SMALL, **{**FLAGS, "bias": [True], "states": [True]})
def test_gradcheck_of_forward_mode_and_batched(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    function = as_function(case, tensors)
    assert gradcheck(function, tuple(tensors.values()), fast_mode=True, check_forward_ad=True, check_batched_grad=True)


@every_kind
@drawn(8, batch=(1, 3), inputs=(1, 3), hidden=(1, 4), seed=SEED, steps=[1],
       **{**FLAGS, "bidirectional": [False], "projection": [False], "packed": [False]})  # fmt: skip
def test_gradcheck_of_the_cell(device, kind, case):
    tensors = case.tensors(torch.float64, device)
    step, operands = as_function(case, tensors, call_cell), tuple(tensors.values())
    assert gradcheck(step, operands)
    assert gradgradcheck(step, operands, fast_mode=True)
    assert gradcheck(step, operands, fast_mode=True, check_forward_ad=True)


# -- what is asked for ------------------------------------------------------------------------------------------------
FULL = Case(4, 3, 5, 7, bidirectional=True, projection=True, peephole=True, reset_after=False)
CASES = {kind: FULL.of(kind) for kind in KINDS}
GROUPS = {
    "input": ["input"],
    "h0": ["h0"],
    "c0": ["c0"],
    "states": ["h0", "c0"],
    "weights": sorted({name for case in CASES.values() for name in case.weight_shapes()}),
    "weight_ih": ["weight_ih_l0"],
    "biases": ["bias_ih_l0", "bias_hh_l0_reverse"],
    "projections": ["weight_hr_l0", "weight_ho_l0", "bias_ho_l0_reverse"],
    "peephole": ["weight_peephole_l0_reverse"],
    "input_and_c0": ["input", "c0"],
    "hidden_weights": ["weight_hh_l0", "weight_hh_l0_reverse"],
}
OF_ITS_GROUPS = [(kind, group) for kind in KINDS for group in GROUPS if set(GROUPS[group]) & set(CASES[kind].tensors())]
USED = [["output"], ["h_n"], ["c_n"], ["output", "c_n"], ["h_n", "c_n"], ["output", "h_n"]]
OF_ITS_RESULTS = [(kind, used) for kind in KINDS for used in USED if set(used) <= set(KINDS[kind].results)]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind, group", OF_ITS_GROUPS)
def test_only_some_operands_require_a_gradient(device, kind, group, layers, packed):
    case = dataclasses.replace(CASES[kind], layers=layers, packed=packed)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device, requires_grad=False)
        leaves = {name: tensors[name].requires_grad_() for name in GROUPS[group] if name in tensors}
        found.append(with_gradients(call(where, case, tensors), leaves))
        others = [t for name, t in tensors.items() if name not in leaves]
        assert all(not t.requires_grad and t.grad is None for t in others)
    assert_equal(*found)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind, used", OF_ITS_RESULTS, ids=lambda v: v if isinstance(v, str) else "+".join(v))
def test_only_some_results_are_used(device, kind, used, packed):
    """The gradients of the unused results are undefined, not zeros to be added."""
    case = dataclasses.replace(CASES[kind], packed=packed, layers=2)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        results = call(where, case, tensors)
        found.append(with_gradients({name: results[name] for name in used}, tensors))
    assert_equal(*found)


@every_kind
def test_one_element_of_a_result(device, kind):
    """A loss of the last step's one unit: most of the incoming gradient is zero."""
    found = []
    for where in (functional, reference):
        tensors = CASES[kind].tensors(torch.float64, device)
        output = call(where, CASES[kind], tensors)["output"]
        found.append(with_gradients({"one": output[-1, 1, 2]}, tensors))
    assert_equal(*found)


@every_kind
def test_no_graph_where_none_is_wanted(device, kind):
    case = CASES[kind]
    tensors = case.tensors(torch.float32, device)
    with torch.no_grad():
        assert all(not result.requires_grad for result in call(functional, case, tensors).values())
    frozen = {name: t.detach() for name, t in tensors.items()}
    assert all(result.grad_fn is None for result in call(functional, case, frozen).values())
    with torch.inference_mode():
        assert all(result.is_inference() for result in call(functional, case, tensors).values())


# -- autograd's manners -----------------------------------------------------------------------------------------------
@every_kind
def test_backward_twice_needs_retain_graph(device, kind):
    tensors = CASES[kind].tensors(torch.float32, device)
    loss = sum(result.sum() for result in call(functional, CASES[kind], tensors).values())
    first = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(tensors.values()))
    assert_same_bits(dict(zip(tensors, second, strict=True)), dict(zip(tensors, first, strict=True)))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, list(tensors.values()))


MODULES = ("LSTM", "GRU", "RNN")


@pytest.mark.parametrize("name", MODULES)
def test_backward_accumulates(device, name):
    module = getattr(pykernels, name)(5, 7).to(device)
    x = torch.randn(4, 3, 5).to(device)
    module(x)[0].sum().backward()
    once = {name: p.grad.clone() for name, p in module.named_parameters()}
    module(x)[0].sum().backward()
    assert_same_bits({name: p.grad for name, p in module.named_parameters()}, {n: 2 * g for n, g in once.items()})


@every_kind
def test_create_graph(device, kind):
    """Gradient penalty: the norm of a gradient, differentiated with respect to everything."""
    case = dataclasses.replace(CASES[kind], layers=2)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        output, *states = call(where, case, tensors).values()
        loss = (output**2).sum() + states[-1].sum()
        (to_input,) = torch.autograd.grad(loss, tensors["input"], create_graph=True)
        assert to_input.requires_grad
        found.append(with_gradients({"penalty": to_input.square().sum()}, tensors))
    assert_equal(*found, tolerance=1e-11)


@every_kind
def test_regulariser_of_vanishing_gradients(device, kind):
    """Of a loop over cells: how the norm of dL/dh changes from step to step, differentiated (Pascanu et al. 2013)."""
    case = Case(1, 3, 5, 7, kind=kind)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        states, hidden = {name: tensors[name] for name in case.about.states}, []
        for _ in range(5):
            step = call_cell(where, case, {**tensors, **states})
            states = {f"{name}0": value[None] for name, value in step.items()}
            hidden.append(states["h0"])
        to_hidden = torch.autograd.grad(hidden[-1].square().sum(), hidden[:-1], create_graph=True)
        norms = torch.stack([g.norm() for g in to_hidden])
        found.append(with_gradients({"penalty": (norms[:-1] / norms[1:] - 1).square().sum()}, tensors))
    assert_equal(*found, tolerance=1e-10)


@every_kind
def test_third_derivative(device, kind):
    case = Case(steps=3, batch=2, inputs=2, hidden=3, kind=kind)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        value = call(where, case, tensors)["output"].sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, tensors["input"], create_graph=True)
            value = gradient.square().sum()
        found.append({"third": gradient.detach()})
    assert_equal(*found, tolerance=1e-10)


SAVED_OPERANDS = ["input", "h0", "c0", "weight_hh_l0", "weight_ih_l0", "weight_peephole_l0", "weight_ho_l0"]


@pytest.mark.parametrize(
    "kind, name", [(k, name) for k in KINDS for name in SAVED_OPERANDS if name in CASES[k].tensors()]
)
def test_a_saved_operand_changed_in_place_is_found(device, kind, name):
    tensors = CASES[kind].tensors(torch.float32, device, requires_grad=False)
    leaves = {key: t.clone().requires_grad_() for key, t in tensors.items()}
    operands = {key: t * 1 for key, t in leaves.items()}
    loss = call(functional, CASES[kind], operands)["output"].sum()
    with torch.no_grad():
        operands[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_kind
@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projection"])
def test_changed_results_are_found_or_harmless(device, projection, kind):
    """A result changed in place before backward: an error, or the right gradients of the change; never wrong ones."""
    case = dataclasses.replace(FULL, projection=projection).of(kind)
    for name in case.about.results:
        found = []
        for where in (functional, reference):
            tensors = case.tensors(torch.float64, device)
            results = call(where, case, tensors)
            results[name].mul_(2)
            try:
                found.append(with_gradients(results, tensors))
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
        if len(found) == 2:
            assert_equal(*found)


@every_kind
def test_a_cells_state_changed_in_place(device, kind):
    """A state that is reset between two steps: an error, or the right gradients; never wrong ones."""
    case = Case(1, 3, 5, 7, kind=kind)
    found = []
    for where in (functional, reference):
        tensors = case.tensors(torch.float64, device)
        results = call_cell(where, case, tensors)
        for value in results.values():
            value.mul_(0.5)
        try:
            found.append(with_gradients(results, tensors))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
    if len(found) == 2:
        assert_equal(*found)


@every_kind
def test_checkpointing_and_saved_tensor_hooks(device, kind):
    from torch.utils.checkpoint import checkpoint

    case = CASES[kind]
    found = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        tensors = case.tensors(torch.float64, device)
        results = dict(zip(case.about.results, wrap(as_function(case, tensors), *tensors.values()), strict=True))
        found.append(with_gradients(results, tensors))
    assert_same_bits(*found)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        tensors = case.tensors(torch.float64, device)
        found.append(with_gradients(call(functional, case, tensors), tensors))
    assert packed
    assert_same_bits(found[-1], found[0])


def held(module, x) -> int:
    """Bytes kept for backward, counted where autograd saves them, operands themselves left out."""
    kept = {}

    def count(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        results = module(x)
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), x]}
    del results
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_memory_held_for_backward_is_no_more_than_torchs(device, name, options):
    x = torch.randn(50, 16, 32).to(device, options.get("dtype", torch.float32)).requires_grad_()
    ours, theirs = (getattr(where, name)(32, 64, **options).to(device) for where in (pykernels, torch.nn))
    assert held(ours, x) <= held(theirs, x) * 1.01
