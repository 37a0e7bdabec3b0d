"""The registered operators and the raw kernels: the contract of shapes and of what is saved, and opcheck."""

from __future__ import annotations

import pytest
import torch

from pykernels import functional, reference
from tests.helpers import FLAGS, LOW, SEED, Case, assert_same_bits, call, call_cell, distance, drawn, every_kind

from .operators import backward_arguments, forward_arguments, operator, raw

DTYPES = [torch.float64, torch.float32, *LOW]


# -- the contract -----------------------------------------------------------------------------------------------------
def check_lstm(case: Case, arguments, results, eps: float) -> None:
    """gates are the activated i, f, g, o and cells the c_t of every row."""
    i, f, g, o = results["gates"].double().chunk(4, -1)
    assert min(i.min(), f.min(), o.min()) >= 0 and max(i.max(), f.max(), o.max()) <= 1 and g.abs().max() <= 1
    if not case.projection:
        hidden = (o * results["cells"].double().tanh()).unbind(0)
        assert distance(torch.cat(hidden, -1).view_as(results["output"]), results["output"]) <= 8 * eps


def check_gru(case: Case, arguments, results, eps: float) -> None:
    """gates are the activated r, z, n, and m: W_hn h' + b_hn with the reset after the product, r * h' before it."""
    r, z, n, m = results["gates"].double().chunk(4, -1)
    assert min(r.min(), z.min()) >= 0 and max(r.max(), z.max()) <= 1 and n.abs().max() <= 1
    if case.packed:
        return
    each = 4 if case.bias else 2
    for d, state in enumerate(results["output"].double().chunk(case.directions, -1)):
        begin = arguments["h0"][d].double() if case.states else torch.zeros_like(state[0])
        before = torch.cat([begin[None], state[:-1]] if d == 0 else [state[1:], begin[None]]).flatten(0, 1)
        expected = n[d] + z[d] * (before - n[d])
        assert distance(expected.view_as(state), state, 1.0) <= 8 * eps
        weight, *biases = (w.double() for w in arguments["weights"][each * d + 1 : each * (d + 1)])
        after = before @ weight[2 * case.hidden :].T + (biases[1][2 * case.hidden :] if case.bias else 0)
        assert distance(m[d], after if case.reset_after else r[d] * before, 1.0) <= 32 * eps


def check_rnn(case: Case, arguments, results, eps: float) -> None:
    """hidden is f(...) of every row where there is a projection; without one the output is it."""
    if not case.projection:
        return
    hidden, outputs = results["hidden"].double(), results["output"].double().chunk(case.directions, -1)
    each = 6 if case.bias else 3
    for d, output in enumerate(outputs):
        weight, *bias = (w.double() for w in arguments["weights"][each * d + (4 if case.bias else 2) : each * (d + 1)])
        expected = hidden[d] @ weight.T + (bias[0] if case.bias else 0)
        assert distance(expected.view_as(output), output, 1.0) <= 32 * eps
    assert hidden.min() >= 0 if case.relu else hidden.abs().max() <= 1


SAVED = {"lstm": check_lstm, "gru": check_gru, "rnn": check_rnn}


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(20, steps=(1, 6), batch=(1, 6), inputs=(1, 20), hidden=(1, 20), seed=SEED, **FLAGS)
def test_shapes_and_what_is_saved(device, dtype, kind, case):
    """What is saved is what the contract says; without `save` it is empty, and the results are the same bits."""
    arguments = forward_arguments(case, dtype, device)
    about, directions, rows = case.about, case.directions, case.rows
    names = (*about.results, *about.saved)
    results = dict(zip(names, operator(case, "forward")(*arguments.values()), strict=True))
    lead = (rows,) if case.packed else (case.steps, case.batch)
    shapes = {"output": (*lead, directions * case.out)}
    shapes |= {name.replace("0", "_n"): shape for name, shape in case.state_shapes().items()}
    shapes |= {"gates": (directions, rows, 4 * case.hidden), "cells": (directions, rows, case.hidden)}
    shapes["hidden"] = (directions, rows, case.hidden) if case.projection else (0,)
    for name, value in results.items():
        assert value.shape == shapes[name], name
        assert value.dtype == dtype and value.device.type == device.type
    assert results["output"].is_contiguous()
    SAVED[kind](case, arguments, results, torch.finfo(dtype).eps)

    again = dict(zip(names, operator(case, "forward")(*{**arguments, "save": False}.values()), strict=True))
    assert all(again.pop(name).shape == (0,) for name in about.saved)
    assert_same_bits(again, {name: results[name] for name in again})


@every_kind
@drawn(20, steps=(1, 5), batch=(1, 5), inputs=(1, 9), hidden=(1, 9), seed=SEED, **FLAGS)
def test_raw_kernels_and_operators_are_one(device, kind, case):
    """pybind11 by position gives the bits of torch.ops, forward and backward."""
    arguments = forward_arguments(case, torch.float32, device).values()
    for mine, its in zip(raw(case, "forward", device)(*arguments), operator(case, "forward")(*arguments), strict=True):
        assert torch.equal(mine, its)
    arguments = backward_arguments(case, torch.float32, device).values()
    *mine, mine_weights = raw(case, "backward", device)(*arguments)
    *its, its_weights = operator(case, "backward")(*arguments)
    for one, other in zip([*mine, *mine_weights], [*its, *its_weights], strict=True):
        assert torch.equal(one, other)


@every_kind
@drawn(40, steps=(1, 5), batch=(1, 5), inputs=(1, 9), hidden=(1, 9), seed=SEED, **FLAGS)
def test_backward_computes_what_is_needed(device, kind, case):
    """Whichever gradients come in and are wanted: those asked for are right, the others are empty."""
    count = len(case.about.results)
    need = [bool(case.seed >> k & 1) for k in range(3)]
    given = [bool(case.seed >> (3 + k) & 1) for k in range(count)]
    arguments = backward_arguments(case, torch.float64, device, need)
    gradients = [arguments[name] if keep else None for name, keep in zip(list(arguments)[:count], given, strict=True)]
    *found, to_weights = operator(case, "backward")(*gradients, *list(arguments.values())[count:])
    assert len(to_weights) == len(arguments["weights"])

    leaves = case.tensors(torch.float64, device)
    for name, shape in case.state_shapes().items():
        leaves.setdefault(name, torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True))
    results = call(reference, case, leaves)
    expected = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    if any(given):
        pairs = [(r, g) for r, g in zip(results.values(), gradients, strict=True) if g is not None]
        wanted = [r for r, _ in pairs], list(leaves.values()), [g for _, g in pairs]
        for name, gradient in zip(leaves, torch.autograd.grad(*wanted, allow_unused=True), strict=True):
            expected[name] = expected[name] if gradient is None else gradient
    names = ["input", *case.about.states, *case.weight_shapes()]
    needed = [need[0], *[need[1]] * len(case.about.states), *[need[2]] * len(to_weights)]
    for name, mine, want in zip(names, [*found, *to_weights], needed, strict=True):
        its = expected[name]
        assert mine.shape == (its.shape if want else (0,)), name
        if want:
            assert distance(mine, its) <= 1e-12 if its.abs().max() > 0 else not mine.any(), name


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(10, batch=(1, 9), inputs=(1, 9), hidden=(1, 20), seed=SEED, steps=[1],
       **{**FLAGS, "bidirectional": [False], "projection": [False], "packed": [False]})  # fmt: skip
def test_raw_cells(cpu_only, dtype, kind, case):
    """The cells' raw kernels give the bits of the function, and their gradients those of a sequence of one step."""
    layer = forward_arguments(case, dtype)
    states = {name: None if layer[name] is None else layer[name][0] for name in case.about.states}
    flags = [layer[name] for name in case.about.flags if name not in ("projection", "bidirectional")]
    step = [layer["input"][0], *states.values(), layer["weights"], *flags]
    results = raw(case, "cell_forward")(*step, *[True] * (kind != "rnn"))
    if kind == "rnn":
        assert isinstance(results, torch.Tensor)
        results = (results,)
    with torch.no_grad():
        expected = call_cell(functional, case, case.tensors(dtype))
    assert_same_bits(dict(zip(expected, results[: len(expected)], strict=True)), expected)

    names = ("h", "c")[: len(expected)]
    gradients = [torch.linspace(-1, 1, expected[n].numel()).to(dtype).view_as(expected[n]) for n in names]
    saved = [results[0]] if kind == "rnn" else list(results[len(names) :])
    *found, to_weights = raw(case, "cell_backward")(
        *gradients, *step[: 2 + len(states)], *saved, *flags, True, True, True
    )
    whole = backward_arguments(case, dtype)
    whole["grad_output"] = None
    whole |= {f"grad_{n}_n": g[None] for n, g in zip(names, gradients, strict=True)}
    *expected_found, expected_weights = raw(case, "backward")(*whole.values())
    for mine, its in zip(found, expected_found, strict=True):
        assert torch.equal(mine, its[0])
    assert all(torch.equal(a, b) for a, b in zip(to_weights, expected_weights, strict=True))


# -- opcheck ----------------------------------------------------------------------------------------------------------
CASES = [
    Case(3, 2, 3, 4),
    Case(3, 2, 3, 4, bidirectional=True, projection=True, peephole=True),
    Case(3, 3, 2, 4, packed=True, peephole=True),
    Case(3, 2, 3, 4, bias=False, states=False),
    Case(4, 3, 2, 5, packed=True, bidirectional=True, projection=True),
    Case(3, 2, 3, 4, kind="gru"),
    Case(2, 2, 2, 3, kind="gru", reset_after=False, packed=True, bidirectional=True, seed=1),
    Case(2, 2, 2, 3, kind="gru", bias=False, states=False),
    Case(3, 2, 3, 4, kind="rnn"),
    Case(2, 2, 2, 3, kind="rnn", relu=True, packed=True, bidirectional=True, seed=1),
    Case(3, 2, 2, 3, kind="rnn", projection=True, bias=False, states=False),
    Case(2, 2, 2, 3, kind="rnn", projection=True, packed=True, seed=1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_forward(device, case, dtype):
    for save in (True, False):
        torch.library.opcheck(
            operator(case, "forward").default,
            tuple(forward_arguments(case, dtype, device, save, requires_grad=save).values()),
            rtol=0.02 if dtype == torch.bfloat16 else None,
            atol=0.02 if dtype == torch.bfloat16 else None,
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_backward(device, case):
    checked = operator(case, "backward").default
    shapes = ("test_schema", "test_faketensor")  # all there is to see of what is given and wanted
    for need in ((True, True, True), (True, False, False), (False, False, True)):
        arguments = backward_arguments(case, torch.float64, device, need)
        torch.library.opcheck(checked, tuple(arguments.values()), test_utils=shapes)
    arguments = backward_arguments(case, torch.float64, device)
    gradient = arguments["grad_output"]
    expanded = gradient[:1].expand_as(gradient)  # as .sum() makes
    arguments_of_sum = {**arguments, "grad_output": expanded, "grad_h_n": None}
    torch.library.opcheck(checked, tuple(arguments_of_sum.values()), test_utils=shapes)
    arguments["input"] = arguments["input"].clone().requires_grad_()
    arguments["weights"] = [w.clone().requires_grad_() for w in arguments["weights"]]
    torch.library.opcheck(checked, tuple(arguments.values()))
