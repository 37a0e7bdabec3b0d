"""The LSTM's reference twin against steps computed by hand with Python's math."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import reference


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
