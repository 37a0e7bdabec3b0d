"""σ and tanh inside the kernels: as exact as torch's own plus two units in the last place, from flat to saturated."""

from __future__ import annotations

import pytest
import torch

from pykernels import functional

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("cpu_only")]
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
LEAST = {torch.tanh: 1e-300, torch.sigmoid: 1e-37}


def arguments(dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.linspace(-20, 20, 1501), torch.logspace(-30, 2, 300), -torch.logspace(-30, 2, 300)]).to(
        dtype
    )


def check(found: torch.Tensor, z: torch.Tensor, function) -> None:
    truth = function(z.double())
    allowed = (function(z).double() - truth).abs() + 2 * torch.finfo(z.dtype).eps * truth.abs() + LEAST[function]
    assert ((found.flatten().double() - truth).abs() <= allowed).all()


@dtypes
def test_lstm(dtype):
    z = arguments(dtype)

    def cell(i=0.0, g=0.0, bias=(0.0, 0.0, 0.0, 0.0)):
        """The cell state; one unit a sample: the input is the pre-activation of the gates with weight 1."""
        weights = [torch.tensor([[i], [0.0], [g], [0.0]]), torch.zeros(4, 1), torch.tensor(bias), torch.zeros(4)]
        return functional.lstm(z.view(1, -1, 1), None, [w.to(dtype) for w in weights])[2]

    check(cell(g=1.0, bias=(1000.0, 0.0, 0.0, 0.0)), z, torch.tanh)  # i = 1 (saturated), so that c = g
    check(cell(i=1.0, bias=(0.0, 0.0, 1000.0, 0.0)), z, torch.sigmoid)  # g = 1 (saturated), so that c = i


@dtypes
@pytest.mark.parametrize("reset_after", [True, False], ids=["reset_after", "reset_before"])
def test_gru(dtype, reset_after):
    z = arguments(dtype)
    weights = [torch.ones(3, 1, dtype=dtype), torch.zeros(3, 1, dtype=dtype)]
    forward = torch.ops.pykernels.gru_forward
    _, _, gates = forward(z.view(1, -1, 1), None, None, weights, False, reset_after, False, True)
    r, update, n, m = gates.unbind(-1)  # of one unit
    check(r, z, torch.sigmoid)
    check(update, z, torch.sigmoid)
    check(n, z, torch.tanh)
    assert not m.any()

    # z = 0 (saturated), so that h = n
    bias = torch.tensor([0.0, -1000.0, 0.0], dtype=dtype)
    output, _ = functional.gru(z.view(1, -1, 1), None, [*weights, bias, 0 * bias], reset_after=reset_after)
    check(output, z, torch.tanh)


@dtypes
def test_rnn(dtype):
    z = arguments(dtype)
    weights = [torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)]
    check(functional.rnn(z.view(1, -1, 1), None, weights, bias=False)[0], z, torch.tanh)
    output, _ = functional.rnn(z.view(1, -1, 1), None, weights, bias=False, nonlinearity="relu")
    assert torch.equal(output.flatten(), z.relu())
