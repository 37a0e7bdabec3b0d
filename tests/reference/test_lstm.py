"""The reference twin itself: against torch.nn.LSTM, and against steps computed by hand with Python's math."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import reference
from tests.helpers import FLAG, SEED, Case, assert_equal, call, drawn, run, with_gradients


def torch_lstm(case: Case, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torch.nn.LSTM's operator on the operands of a functional LSTM."""
    weights = [tensors[name] for name in case.weight_shapes()]
    if case.states:
        hx = (tensors["h0"], tensors["c0"])
    else:
        rows = case.layers * case.directions
        hx = tuple(tensors["input"].new_zeros(rows, case.batch, width) for width in (case.out, case.hidden))
    how = (weights, case.bias, case.layers, 0.0, False, case.bidirectional)
    if case.packed:
        results = torch._VF.lstm(tensors["input"], case.batch_sizes(), hx, *how)
    else:
        results = torch._VF.lstm(tensors["input"], hx, *how, False)
    return dict(zip(("output", "h_n", "c_n"), results, strict=True))


@drawn(
    40,
    steps=(1, 5),
    batch=(1, 4),
    inputs=(1, 6),
    hidden=(2, 7),
    layers=(1, 3),
    bias=FLAG,
    bidirectional=FLAG,
    projection=FLAG,
    packed=FLAG,
    states=FLAG,
    seed=SEED,
)
def test_equals_torch(case):
    tensors = case.tensors()
    expected = with_gradients(torch_lstm(case, tensors), tensors)
    assert_equal(run(reference.lstm, case, torch.float64), expected)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# One input, one unit: every weight is a number. Rows of gate weights: i, f, g, o.
W_IH, W_HH, B_IH, B_HH = (0.5, -0.3, 0.8, 0.2), (0.1, 0.4, -0.6, 0.7), (0.05, 0.9, -0.1, 0.0), (0.02, 0.1, 0.3, -0.4)
PEEP = (0.25, -0.35, 0.45)
X, H0, C0 = (1.5, -0.75, 0.3), 0.2, -0.6


def by_hand(peephole: bool, projection: float | None, backwards: bool = False) -> tuple[list[float], float, float]:
    """Hidden states of all steps, and the last states, from the equations."""
    p_i, p_f, p_o = PEEP if peephole else (0.0, 0.0, 0.0)
    h, c, outputs = H0, C0, []
    for x in reversed(X) if backwards else X:
        z_i, z_f, z_g, z_o = (W_IH[k] * x + B_IH[k] + W_HH[k] * h + B_HH[k] for k in range(4))
        i, f, g = logistic(z_i + p_i * c), logistic(z_f + p_f * c), math.tanh(z_g)
        c = f * c + i * g
        h = logistic(z_o + p_o * c) * math.tanh(c)
        if projection is not None:
            h *= projection
        outputs.append(h)
    return outputs[::-1] if backwards else outputs, h, c


def column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
@pytest.mark.parametrize("projection", [None, -1.3], ids=["plain", "projection"])
@pytest.mark.parametrize("peephole", [False, True], ids=["no_peephole", "peephole"])
def test_equals_the_equations_by_hand(peephole, projection, bidirectional, packed):
    weights = [column(W_IH), column(W_HH), column(B_IH).flatten(), column(B_HH).flatten()]
    weights += [column((projection,))] if projection is not None else []
    weights += [column(PEEP)] if peephole else []
    directions = 2 if bidirectional else 1
    output, h_n, c_n = reference.lstm(
        column(X) if packed else column(X).reshape(3, 1, 1),
        tuple(torch.full((directions, 1, 1), start, dtype=torch.float64) for start in (H0, C0)),
        weights * directions,
        batch_sizes=torch.ones(3, dtype=torch.int64) if packed else None,
        projection=projection is not None,
        peephole=peephole,
        bidirectional=bidirectional,
    )
    for direction in range(directions):
        outputs, h, c = by_hand(peephole, projection, backwards=direction == 1)
        assert output[..., direction].flatten().tolist() == pytest.approx(outputs, rel=1e-14)
        assert h_n[direction].item() == pytest.approx(h, rel=1e-14)
        assert c_n[direction].item() == pytest.approx(c, rel=1e-14)


def test_one_step_as_plain_numbers():
    """The first step of the example above, from constants computed once with 40 decimal digits."""
    weights = [column(W_IH), column(W_HH), column(B_IH).flatten(), column(B_HH).flatten(), column(PEEP)]
    states = tuple(torch.full((1, 1, 1), start, dtype=torch.float64) for start in (H0, C0))
    _, h_n, c_n = reference.lstm(torch.tensor([[[1.5]]], dtype=torch.float64), states, weights, peephole=True)
    # z = (0.84, 0.63, 1.28, 0.04): i = σ(0.84 - 0.15) = 0.6660, f = σ(0.63 + 0.21) = 0.6985, g = tanh(1.28) = 0.8565,
    # o = σ(0.04 + 0.45 c) = 0.5270
    assert c_n.item() == pytest.approx(0.15131149736488832489, rel=1e-14)
    assert h_n.item() == pytest.approx(0.07913755778009435650, rel=1e-14)


@drawn(15, steps=(1, 5), batch=(2, 5), bidirectional=FLAG, projection=FLAG, peephole=FLAG, states=FLAG, seed=SEED)
def test_packed_is_each_sequence_alone(case):
    """A packed batch gives what each sequence gives alone, at its own length."""
    packed = Case(**{**vars(case), "packed": True})
    tensors = packed.tensors(requires_grad=False)
    together = call(reference.lstm, packed, tensors)
    sizes = packed.batch_sizes()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[:-1]])
    for sample, length in enumerate(packed.lengths()):
        rows = starts[:length] + sample
        own = dict(tensors, input=tensors["input"][rows].unsqueeze(1))
        for state in ("h0", "c0") if case.states else ():
            own[state] = tensors[state][:, sample : sample + 1]
        alone = call(reference.lstm, Case(**{**vars(case), "batch": 1, "steps": length}), own)
        torch.testing.assert_close(together["output"][rows], alone["output"].squeeze(1))
        torch.testing.assert_close(together["h_n"][:, sample], alone["h_n"].squeeze(1))
        torch.testing.assert_close(together["c_n"][:, sample], alone["c_n"].squeeze(1))


def test_no_steps_is_an_error():
    case = Case(steps=0, batch=2)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        call(reference.lstm, case, case.tensors())


@drawn(6, steps=(1, 3), batch=(1, 2), inputs=(1, 2), hidden=(2, 3), peephole=FLAG, projection=FLAG, packed=FLAG)
def test_is_differentiable_twice(case):
    tensors = case.tensors()

    def outputs(*values):
        return tuple(call(reference.lstm, case, dict(zip(tensors, values, strict=True))).values())

    assert torch.autograd.gradcheck(outputs, tuple(tensors.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, tuple(tensors.values()), fast_mode=True)
