"""What only the simple recurrent network has: ReLU in every precision, exactly, and its derivative at NaN."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pykernels import functional, reference
from tests.helpers import FLAGS, LOW, SEED, Case, assert_same_bits, call, call_cell, drawn, with_gradients

RELU = {**FLAGS, "relu": [True]}
DTYPES = [torch.float64, torch.float32, *LOW]


def small_integers(case: Case, dtype: torch.dtype, device) -> dict[str, torch.Tensor]:
    """Operands that every sum of the network has without rounding, in every dtype.

    Inputs, states and biases are integers up to 2; of weights one in each row and column is 1 or -1. So a unit grows
    by no more than 8 in a step, and no incoming gradient is larger than 2.
    """
    draw = torch.Generator().manual_seed(case.seed)
    made = {}
    for name, tensor in case.tensors(requires_grad=False).items():
        if name.startswith("weight"):
            rows, columns = tensor.shape
            places = torch.randperm(max(rows, columns), generator=draw)
            signs = torch.randint(2, (max(rows, columns),), generator=draw) * 2 - 1
            square = torch.zeros(len(places), len(places), dtype=torch.float64)
            square[torch.arange(len(places)), places] = signs.double()
            tensor = square[:rows, :columns]
        else:
            tensor = torch.randint(-2, 3, tensor.shape, generator=draw)
        made[name] = tensor.to(device, dtype).requires_grad_()
    return made


def integer_gradients(results, leaves):
    """As `with_gradients`, with small integers for the gradients that come in."""
    draw = torch.Generator().manual_seed(1)
    weighting = [torch.randint(-2, 3, r.shape, generator=draw).to(r) for r in results.values()]
    gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), weighting)
    named = {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: result.detach() for name, result in results.items()} | named


def rounded(values: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) for name, value in values.items()}


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(60, steps=(1, 6), batch=(1, 19), inputs=(1, 40), hidden=(1, 70), seed=SEED, **RELU)
def test_relu_is_exact_where_the_sums_are(device, dtype, case):
    """Kinks of sums that are exactly zero included: the derivative there is 0, as torch's."""
    case = case.of("rnn")
    ours, exact = (small_integers(case, d, device) for d in (dtype, torch.float64))
    found = integer_gradients(call(functional, case, ours), ours)
    expected = integer_gradients(call(reference, case, exact), exact)
    assert_same_bits(found, rounded(expected, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@drawn(30, steps=[1], batch=(1, 19), inputs=(1, 40), hidden=(1, 70), seed=SEED,
       **{**RELU, "bidirectional": [False], "projection": [False], "packed": [False]})  # fmt: skip
def test_relu_of_the_cell_is_exact_where_the_sums_are(device, dtype, case):
    case = case.of("rnn")
    ours, exact = (small_integers(case, d, device) for d in (dtype, torch.float64))
    found = integer_gradients(call_cell(functional, case, ours), ours)
    assert_same_bits(found, rounded(integer_gradients(call_cell(reference, case, exact), exact), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("projection", [False, True], ids=["elman", "jordan"])
@pytest.mark.parametrize("hidden", [1, 7, 16, 19])
def test_the_gradient_passes_where_relu_is_nan(device, dtype, projection, hidden):
    """As torch's: 0 where the result is at most 0, which NaN is not. So numbers pass through units that are NaN."""
    case = Case(3, 2, 4, hidden, kind="rnn", relu=True, projection=projection)
    found = []
    for where, kind in ((functional, dtype), (reference, torch.float64)):
        tensors = {n: t.detach().to(dtype).to(kind) for n, t in case.tensors(device=device).items()}
        tensors["input"][1, 0, 0] = torch.nan
        leaves = {name: t.requires_grad_() for name, t in tensors.items()}
        found.append(with_gradients(call(where, case, leaves), leaves))
    ours, twins = found
    for name, value in twins.items():
        assert torch.equal(ours[name].isnan(), value.isnan()), name
        if dtype == torch.float64:
            torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert ours["output"][1:, 0].isnan().all() and ours["grad weight_ih_l0"][:, 0].isnan().all()
    assert ours["grad input"].isfinite().all() and ours["grad input"][1:, 0].abs().min() > 0


def test_jordans_network_is_elmans_with_a_product_behind_it(device):
    """With W_hh = V W' it feeds V h back as Elman's feeds h: outputs are those of Elman's, projected."""
    jordan = Case(6, 3, 5, 9, kind="rnn", projection=True)
    tensors = jordan.tensors(torch.float64, device, requires_grad=False)
    tensors["h0"] = tensors["h0"] * 0 + tensors["bias_ho_l0"]  # o_0 = V 0 + c
    w, v, c = (tensors[name] for name in ("weight_hh_l0", "weight_ho_l0", "bias_ho_l0"))
    elman = {name: t for name, t in tensors.items() if "_ho_" not in name and name != "h0"}
    elman |= {"weight_hh_l0": w @ v, "bias_hh_l0": tensors["bias_hh_l0"] + w @ c}
    hidden = call(functional, dataclasses.replace(jordan, projection=False), elman)["output"]
    torch.testing.assert_close(call(functional, jordan, tensors)["output"], hidden @ v.T + c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nonlinearity", ["sin", "ReLU", None])
def test_an_unknown_function_is_an_error(device, nonlinearity):
    case = Case(kind="rnn")
    tensors = case.tensors(torch.float32, device)
    weights = list(tensors.values())[2:]
    for attempt in (
        lambda: functional.rnn(tensors["input"], None, weights, nonlinearity=nonlinearity),
        lambda: functional.rnn_cell(tensors["input"][0], None, *weights, nonlinearity=nonlinearity),
    ):
        with pytest.raises((RuntimeError, ValueError), match=str(nonlinearity)):
            attempt()
