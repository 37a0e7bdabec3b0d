"""The reference twins themselves: against torch.nn's operators, and each sequence of a packed batch against itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pykernels import reference
from tests.helpers import FLAG, FLAGS, SEED, Case, assert_equal, call, call_cell, drawn, every_kind, run, with_gradients


def of_torch(case: Case, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The operator of torch.nn on the operands of a functional."""
    weights = [tensors[name] for name in case.weight_shapes()]
    shapes = case.state_shapes()
    states = tuple(tensors[n] if case.states else tensors["input"].new_zeros(shapes[n]) for n in shapes)
    hx = states if case.kind == "lstm" else states[0]
    name = case.kind if case.kind != "rnn" else "rnn_relu" if case.relu else "rnn_tanh"
    how = (weights, case.bias, case.layers, 0.0, False, case.bidirectional)
    if case.packed:
        results = getattr(torch._VF, name)(tensors["input"], case.batch_sizes(), hx, *how)
    else:
        results = getattr(torch._VF, name)(tensors["input"], hx, *how, False)
    return dict(zip(case.about.results, results, strict=True))


SHAPES = {"steps": (1, 5), "batch": (1, 4), "inputs": (1, 6), "hidden": (2, 7), "seed": SEED}


@every_kind
@drawn(40, **SHAPES, layers=(1, 3), **{**FLAGS, "peephole": [False], "reset_after": [True]})
def test_equals_torch(kind, case):
    if kind == "rnn":
        case = dataclasses.replace(case, projection=False)  # with one it is Jordan's network, which torch lacks
    tensors = case.tensors()
    expected = with_gradients(of_torch(case, tensors), tensors)
    assert_equal(run(reference, case, torch.float64), expected)


@pytest.mark.parametrize("kind", ["gru", "rnn"])
@drawn(20, batch=(1, 4), inputs=(1, 6), hidden=(2, 7), seed=SEED, bias=FLAG, relu=FLAG)
def test_cells_equal_torch(kind, case):
    tensors = case.tensors()
    weights = [tensors[name] for name in case.weight_shapes()] + [None, None] * (not case.bias)
    name = "gru_cell" if kind == "gru" else "rnn_relu_cell" if case.relu else "rnn_tanh_cell"
    expected = getattr(torch._VF, name)(tensors["input"][0], tensors["h0"][0], *weights)
    found = call_cell(reference, case, tensors)
    assert_equal(with_gradients(found, tensors), with_gradients({"h": expected}, tensors))


@every_kind
@drawn(15, steps=(1, 5), batch=(2, 5), seed=SEED, **{**FLAGS, "bias": [True], "packed": [True]})
def test_packed_is_each_sequence_alone(kind, case):
    """A packed batch gives what each sequence gives alone, at its own length."""
    tensors = case.tensors(requires_grad=False)
    together = call(reference, case, tensors)
    sizes = case.batch_sizes()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[:-1]])
    for sample, length in enumerate(case.lengths()):
        rows = starts[:length] + sample
        own = dict(tensors, input=tensors["input"][rows].unsqueeze(1))
        for state in case.about.states if case.states else ():
            own[state] = tensors[state][:, sample : sample + 1]
        alone = call(reference, dataclasses.replace(case, batch=1, steps=length, packed=False), own)
        torch.testing.assert_close(together["output"][rows], alone["output"].squeeze(1))
        for state in case.about.results[1:]:
            torch.testing.assert_close(together[state][:, sample], alone[state].squeeze(1))


@every_kind
def test_no_steps_is_an_error(kind):
    case = Case(steps=0, batch=2, kind=kind)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        call(reference, case, case.tensors())


@every_kind
@drawn(6, steps=(1, 3), batch=(1, 2), inputs=(1, 2), hidden=(2, 3), **FLAGS)
def test_is_differentiable_twice(kind, case):
    tensors = case.tensors()

    def outputs(*values):
        return tuple(call(reference, case, dict(zip(tensors, values, strict=True))).values())

    assert torch.autograd.gradcheck(outputs, tuple(tensors.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, tuple(tensors.values()), fast_mode=True)
