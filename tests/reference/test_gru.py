"""The GRU's reference twin, in both forms, against steps computed by hand with Python's math."""

from __future__ import annotations

import math

import pytest
import torch

from pykernels import reference

# One input, one unit: every weight is a number. Rows of gate weights: r, z, n.
W_IH, W_HH, B_IH, B_HH = (0.5, -0.3, 0.8), (0.1, 0.4, -0.6), (0.05, 0.9, -0.1), (0.02, 0.1, 0.3)
X, H0 = (1.5, -0.75, 0.3), 0.2


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(reset_after: bool, backwards: bool = False) -> tuple[list[float], float]:
    """States of all steps, and the last one, from the equations."""
    h, outputs = H0, []
    for x in reversed(X) if backwards else X:
        r, z = (logistic(W_IH[k] * x + B_IH[k] + W_HH[k] * h + B_HH[k]) for k in range(2))
        if reset_after:
            n = math.tanh(W_IH[2] * x + B_IH[2] + r * (W_HH[2] * h + B_HH[2]))
        else:
            n = math.tanh(W_IH[2] * x + B_IH[2] + W_HH[2] * (r * h) + B_HH[2])
        h = (1 - z) * n + z * h
        outputs.append(h)
    return outputs[::-1] if backwards else outputs, h


def column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


WEIGHTS = [column(W_IH), column(W_HH), column(B_IH).flatten(), column(B_HH).flatten()]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_ways"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["reset_after", "reset_before"])
def test_equals_the_equations_by_hand(reset_after, bidirectional, packed):
    directions = 2 if bidirectional else 1
    output, h_n = reference.gru(
        column(X) if packed else column(X).reshape(3, 1, 1),
        torch.full((directions, 1, 1), H0, dtype=torch.float64),
        WEIGHTS * directions,
        batch_sizes=torch.ones(3, dtype=torch.int64) if packed else None,
        reset_after=reset_after,
        bidirectional=bidirectional,
    )
    for direction in range(directions):
        outputs, h = by_hand(reset_after, backwards=direction == 1)
        assert output[..., direction].flatten().tolist() == pytest.approx(outputs, rel=1e-14)
        assert h_n[direction].item() == pytest.approx(h, rel=1e-14)


@pytest.mark.parametrize("reset_after", [True, False], ids=["reset_after", "reset_before"])
def test_one_step_as_plain_numbers(reset_after):
    """The first step of the example above, from constants computed once with 40 decimal digits."""
    expected = 0.42287048842501906757 if reset_after else 0.43138358199400134454
    h = reference.gru_cell(column((1.5,)), column((H0,)), *WEIGHTS, reset_after=reset_after)
    # r = σ(0.84), z = σ(0.63), n = tanh(1.1 + 0.18 r) or tanh(1.1 - 0.12 r + 0.3)
    assert h.item() == pytest.approx(expected, rel=1e-14)


def test_the_two_forms_differ_in_the_recurrent_part_only():
    """Without a state before the step, only the bias of n tells them apart; without that bias they are one."""
    x, none = column((0.7,)), column((0.0,))
    plain = [*WEIGHTS[:3], torch.zeros(3, dtype=torch.float64)]
    after, before = (reference.gru_cell(x, none, *plain, reset_after=form) for form in (True, False))
    assert torch.equal(after, before)
    after, before = (reference.gru_cell(x, none, *WEIGHTS, reset_after=form) for form in (True, False))
    assert (after - before).abs() > 0.01
