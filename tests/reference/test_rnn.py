"""The simple recurrent twins, Elman's and Jordan's, against steps computed by hand with Python's math."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import reference
from tests.helpers import SEED, assert_equal, call, drawn

# One input, one unit, one output: every weight is a number.
W_IH, W_HH, B_IH, B_HH, W_HO, B_HO = 0.8, -0.6, -0.1, 0.3, -1.3, 0.25
X, H0 = (1.5, -0.75, 0.3, -2.0), 0.2
FUNCTIONS = {"tanh": math.tanh, "relu": lambda x: max(x, 0.0)}


def by_hand(nonlinearity: str, projection: bool, backwards: bool = False) -> tuple[list[float], float]:
    """What is put out at every step, and the last of it, from the equations."""
    state, outputs = H0, []
    for x in reversed(X) if backwards else X:
        state = FUNCTIONS[nonlinearity](W_IH * x + B_IH + W_HH * state + B_HH)
        if projection:
            state = W_HO * state + B_HO
        outputs.append(state)
    return outputs[::-1] if backwards else outputs, state


def number(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.float64)


WEIGHTS = [number(W_IH, 1, 1), number(W_HH, 1, 1), number(B_IH, 1), number(B_HH, 1)]
OUT = [number(W_HO, 1, 1), number(B_HO, 1)]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
@pytest.mark.parametrize("projection", [False, True], ids=["elman", "jordan"])
@pytest.mark.parametrize("nonlinearity", FUNCTIONS)
def test_equals_the_equations_by_hand(nonlinearity, projection, bidirectional, packed):
    directions = 2 if bidirectional else 1
    x = torch.tensor(X, dtype=torch.float64)
    output, h_n = reference.rnn(
        x.reshape(-1, 1) if packed else x.reshape(-1, 1, 1),
        number(H0, directions, 1, 1),
        (WEIGHTS + OUT * projection) * directions,
        batch_sizes=torch.ones(len(X), dtype=torch.int64) if packed else None,
        nonlinearity=nonlinearity,
        projection=projection,
        bidirectional=bidirectional,
    )
    for direction in range(directions):
        outputs, last = by_hand(nonlinearity, projection, backwards=direction == 1)
        assert output[..., direction].flatten().tolist() == pytest.approx(outputs, rel=1e-14, abs=1e-16)
        assert h_n[direction].item() == pytest.approx(last, rel=1e-14, abs=1e-16)


def test_one_step_as_plain_numbers():
    """From constants computed once with 40 decimal digits: tanh(1.28), and Jordan's output of it."""
    x, h = number(1.5, 1, 1), number(H0, 1, 1)
    hidden = reference.rnn_cell(x, h, *WEIGHTS)
    assert hidden.item() == pytest.approx(0.85648491547249732563, rel=1e-14)
    assert reference.rnn_cell(x, h, *WEIGHTS, nonlinearity="relu").item() == pytest.approx(1.28, rel=1e-14)
    _, o_n = reference.rnn(x[None], h[None], WEIGHTS + OUT, projection=True)
    assert o_n.item() == pytest.approx(-0.86343039011424652332, rel=1e-14)


@drawn(20, steps=(1, 6), batch=(1, 5), inputs=(1, 6), hidden=(2, 8), seed=SEED, relu=[False, True], projection=[True])
def test_jordans_network_as_a_loop_over_matrices(case):
    """o_t = V f(U x_t + W o_{t-1} + b) + c, with other widths than one."""
    case = case.of("rnn")
    tensors = case.tensors(requires_grad=False)
    u, w, b_ih, b_hh, v, c = (tensors[name] for name in case.weight_shapes())
    o, outputs = tensors["h0"][0], []
    for x in tensors["input"]:
        a = x @ u.T + o @ w.T + b_ih + b_hh
        o = (a.clamp_min(0) if case.relu else a.tanh()) @ v.T + c
        outputs.append(o)
    assert case.proj != case.hidden and o.shape == (case.batch, case.proj)
    assert_equal(call(reference, case, tensors), {"output": torch.stack(outputs), "h_n": o[None]})


def test_an_unknown_function_is_an_error():
    for function in (reference.rnn, reference.rnn_cell):
        lead = (1, 1, 1) if function is reference.rnn else (1, 1)
        weights = [WEIGHTS] if function is reference.rnn else WEIGHTS
        with pytest.raises((ValueError, RuntimeError), match="sin"):
            function(number(1.0, *lead), None, *weights, nonlinearity="sin")


def test_more_outputs_than_units():
    weights = [number(0.8, 1, 1), number(0.1, 1, 4), *WEIGHTS[2:], number(0.3, 4, 1), number(0.0, 4)]
    output, o_n = reference.rnn(number(0.5, 3, 2, 1), None, weights, projection=True)
    assert output.shape == (3, 2, 4) and o_n.shape == (1, 2, 4)
    assert torch.equal(output[-1], o_n[0])
