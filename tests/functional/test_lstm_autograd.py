"""Differentiation of functional.lstm: numerically checked first and second derivatives, and autograd's manners."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import pykernels
from pykernels import functional, reference
from tests.helpers import FLAG, SEED, Case, assert_equal, assert_same_bits, call, drawn, with_gradients

SMALL = {"steps": (1, 4), "batch": (1, 3), "inputs": (1, 3), "hidden": (2, 4), "seed": SEED}
KINDS = {"bias": FLAG, "bidirectional": FLAG, "projection": FLAG, "peephole": FLAG, "packed": FLAG, "states": FLAG}


def as_function(case: Case, names, function=functional.lstm, keep=("output", "h_n", "c_n")):
    """The results as a function of the tensors by position, as gradcheck wants it."""

    def outputs(*values):
        results = call(function, case, dict(zip(names, values, strict=True)))
        return tuple(results[name] for name in keep)

    return outputs


# -- numerically ------------------------------------------------------------------------------------------------------
@drawn(12, **SMALL, **KINDS)
def test_gradcheck(device, case):
    tensors = case.tensors(torch.float64, device)
    assert gradcheck(as_function(case, tensors), tuple(tensors.values()), check_batched_grad=False)


@drawn(25, **SMALL, **KINDS, layers=(1, 2))
def test_gradcheck_fast(device, case):
    tensors = case.tensors(torch.float64, device)
    assert gradcheck(as_function(case, tensors), tuple(tensors.values()), fast_mode=True)


@drawn(4, steps=(1, 3), batch=(1, 2), inputs=(1, 2), hidden=(2, 3), seed=SEED, **{**KINDS, "bias": [False]})
def test_gradgradcheck(device, case):
    tensors = case.tensors(torch.float64, device)
    assert gradgradcheck(as_function(case, tensors), tuple(tensors.values()))


@drawn(15, **SMALL, **KINDS, layers=(1, 2))
def test_gradgradcheck_fast(device, case):
    tensors = case.tensors(torch.float64, device)
    assert gradgradcheck(as_function(case, tensors), tuple(tensors.values()), fast_mode=True)


@drawn(6, **SMALL, peephole=FLAG, packed=FLAG, bidirectional=FLAG)
def test_gradcheck_of_forward_mode_and_batched(device, case):
    tensors = case.tensors(torch.float64, device)
    function = as_function(case, tensors)
    assert gradcheck(function, tuple(tensors.values()), fast_mode=True, check_forward_ad=True, check_batched_grad=True)


@drawn(8, batch=(1, 3), inputs=(1, 3), hidden=(1, 4), seed=SEED, bias=FLAG, peephole=FLAG, states=FLAG)
def test_gradcheck_of_the_cell(device, case):
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    x = tensors["input"][0]
    states = [tensors["h0"][0], tensors["c0"][0]] if case.states else []
    names = [name.removesuffix("_l0") for name in case.weight_shapes()]
    operands = [t.detach().clone().requires_grad_() for t in [x, *states, *list(tensors.values())[-len(names) :]]]

    def step(x, *rest):
        hx = tuple(rest[:2]) if case.states else None
        return functional.lstm_cell(x, hx, **dict(zip(names, rest[2 * case.states :], strict=True)))

    assert gradcheck(step, operands)
    assert gradgradcheck(step, operands, fast_mode=True)
    assert gradcheck(step, operands, fast_mode=True, check_forward_ad=True)


# -- what is asked for ------------------------------------------------------------------------------------------------
CASE = Case(steps=4, batch=3, inputs=5, hidden=7, bidirectional=True, projection=True, peephole=True)
GROUPS = {
    "input": ["input"],
    "h0": ["h0"],
    "c0": ["c0"],
    "states": ["h0", "c0"],
    "weights": list(CASE.weight_shapes()),
    "weight_ih": ["weight_ih_l0"],
    "biases": ["bias_ih_l0", "bias_hh_l0_reverse"],
    "weight_hr": ["weight_hr_l0"],
    "peephole": ["weight_peephole_l0_reverse"],
    "input_and_c0": ["input", "c0"],
    "hidden_weights": ["weight_hh_l0", "weight_hh_l0_reverse"],
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("group", GROUPS)
def test_only_some_operands_require_a_gradient(device, group, layers, packed):
    case = dataclasses.replace(CASE, layers=layers, packed=packed)
    found = []
    for function in (functional.lstm, reference.lstm):
        tensors = case.tensors(torch.float64, device, requires_grad=False)
        leaves = {name: tensors[name].requires_grad_() for name in GROUPS[group]}
        found.append(with_gradients(call(function, case, tensors), leaves))
        others = [t for name, t in tensors.items() if name not in leaves]
        assert all(not t.requires_grad and t.grad is None for t in others)
    assert_equal(*found)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "used", [["output"], ["h_n"], ["c_n"], ["output", "c_n"], ["h_n", "c_n"], ["output", "h_n"]], ids="+".join
)
def test_only_some_results_are_used(device, used, packed):
    """The gradients of the unused results are undefined, not zeros to be added."""
    case = dataclasses.replace(CASE, packed=packed, layers=2)
    found = []
    for function in (functional.lstm, reference.lstm):
        tensors = case.tensors(torch.float64, device)
        results = call(function, case, tensors)
        found.append(with_gradients({name: results[name] for name in used}, tensors))
    assert_equal(*found)


def test_one_element_of_a_result(device):
    """A loss of the last step's one unit: most of the incoming gradient is zero."""
    found = []
    for function in (functional.lstm, reference.lstm):
        tensors = CASE.tensors(torch.float64, device)
        output = call(function, CASE, tensors)["output"]
        found.append(with_gradients({"one": output[-1, 1, 2]}, tensors))
    assert_equal(*found)


def test_no_graph_where_none_is_wanted(device):
    tensors = CASE.tensors(torch.float32, device)
    with torch.no_grad():
        assert all(not result.requires_grad for result in call(functional.lstm, CASE, tensors).values())
    frozen = {name: t.detach() for name, t in tensors.items()}
    assert all(result.grad_fn is None for result in call(functional.lstm, CASE, frozen).values())
    with torch.inference_mode():
        assert all(result.is_inference() for result in call(functional.lstm, CASE, tensors).values())


# -- autograd's manners -----------------------------------------------------------------------------------------------
def test_backward_twice_needs_retain_graph(device):
    tensors = CASE.tensors(torch.float32, device)
    loss = sum(result.sum() for result in call(functional.lstm, CASE, tensors).values())
    first = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(tensors.values()))
    assert_same_bits(dict(zip(tensors, second, strict=True)), dict(zip(tensors, first, strict=True)))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, list(tensors.values()))


def test_backward_accumulates(device):
    module = pykernels.LSTM(5, 7).to(device)
    x = torch.randn(4, 3, 5).to(device)
    module(x)[0].sum().backward()
    once = {name: p.grad.clone() for name, p in module.named_parameters()}
    module(x)[0].sum().backward()
    assert_same_bits({name: p.grad for name, p in module.named_parameters()}, {n: 2 * g for n, g in once.items()})


def test_create_graph(device):
    """Gradient penalty: the norm of a gradient, differentiated with respect to everything."""
    found = []
    for function in (functional.lstm, reference.lstm):
        tensors = dataclasses.replace(CASE, layers=2).tensors(torch.float64, device)
        results = call(function, dataclasses.replace(CASE, layers=2), tensors)
        loss = (results["output"] ** 2).sum() + results["c_n"].sum()
        (to_input,) = torch.autograd.grad(loss, tensors["input"], create_graph=True)
        assert to_input.requires_grad
        found.append(with_gradients({"penalty": to_input.square().sum()}, tensors))
    assert_equal(*found, tolerance=1e-11)


def test_third_derivative(device):
    case = Case(steps=3, batch=2, inputs=2, hidden=3)
    found = []
    for function in (functional.lstm, reference.lstm):
        tensors = case.tensors(torch.float64, device)
        value = call(function, case, tensors)["output"].sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, tensors["input"], create_graph=True)
            value = gradient.square().sum()
        found.append({"third": gradient.detach()})
    assert_equal(*found, tolerance=1e-10)


@pytest.mark.parametrize("name", ["input", "h0", "c0", "weight_hh_l0", "weight_ih_l0", "weight_peephole_l0"])
def test_a_saved_operand_changed_in_place_is_found(device, name):
    tensors = CASE.tensors(torch.float32, device, requires_grad=False)
    leaves = {key: t.clone().requires_grad_() for key, t in tensors.items()}
    operands = {key: t * 1 for key, t in leaves.items()}
    loss = call(functional.lstm, CASE, operands)["output"].sum()
    with torch.no_grad():
        operands[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_changed_results_are_found_or_harmless(device):
    """A result changed in place before backward: an error, or the right gradients of the change; never wrong ones."""
    for name in ("output", "h_n", "c_n"):
        found = []
        for function in (functional.lstm, reference.lstm):
            tensors = CASE.tensors(torch.float64, device)
            results = call(function, CASE, tensors)
            results[name].mul_(2)
            try:
                found.append(with_gradients(results, tensors))
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
        if len(found) == 2:
            assert_equal(*found)


def test_checkpointing_and_saved_tensor_hooks(device):
    from torch.utils.checkpoint import checkpoint

    found = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        tensors = CASE.tensors(torch.float64, device)
        function = as_function(CASE, tensors)
        results = dict(zip(("output", "h_n", "c_n"), wrap(function, *tensors.values()), strict=True))
        found.append(with_gradients(results, tensors))
    assert_same_bits(*found)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        tensors = CASE.tensors(torch.float64, device)
        found.append(with_gradients(call(functional.lstm, CASE, tensors), tensors))
    assert packed
    assert_same_bits(found[-1], found[0])


def test_memory_held_for_backward_is_no_more_than_torchs(device):
    """Bytes kept for backward, counted where autograd saves them, operands themselves left out."""

    def held(module, x):
        kept = {}

        def count(t):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            results = module(x)
        own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), x]}
        del results
        return sum(size for place, size in kept.items() if place not in own)

    x = torch.randn(50, 16, 32).to(device).requires_grad_()
    for options in ({}, {"bidirectional": True}, {"num_layers": 2}, {"dtype": torch.float64}):
        ours, theirs = (kind(32, 64, **options).to(device) for kind in (pykernels.LSTM, torch.nn.LSTM))
        y = x.detach().to(options.get("dtype", torch.float32)).requires_grad_()
        assert held(ours, y) <= held(theirs, y) * 1.01, options
