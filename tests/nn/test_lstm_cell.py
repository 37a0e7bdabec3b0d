"""pykernels.LSTMCell equals torch.nn.LSTMCell, and one step of pykernels.LSTM; its errors are torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pykernels
from tests.helpers import LOW, assert_equal, assert_no_worse, outcome, with_gradients

DTYPES = [torch.float64, torch.float32, *LOW]


def results(module, operands, dtype):
    leaves = {name: t.to(dtype).detach().requires_grad_() for name, t in operands.items()}
    h, c = module(leaves["input"], (leaves["h0"], leaves["c0"]) if "h0" in leaves else None)
    return with_gradients({"h": h, "c": c}, leaves | dict(module.named_parameters()))


@pytest.mark.parametrize("states", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("batch", [None, 1, 3, 18])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("sizes", [(5, 6), (1, 1), (37, 101)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch(device, dtype, sizes, bias, batch, states):
    inputs, hidden = sizes
    theirs = nn.LSTMCell(inputs, hidden, bias, dtype=dtype, device=device)
    ours = pykernels.LSTMCell(inputs, hidden, bias, dtype=dtype, device=device)
    ours.load_state_dict(theirs.state_dict())
    shape = () if batch is None else (batch,)
    operands = {"input": torch.randn(*shape, inputs)}
    if states:
        operands |= {"h0": torch.randn(*shape, hidden), "c0": torch.randn(*shape, hidden)}
    operands = {name: t.to(device, dtype) for name, t in operands.items()}
    found, expected = results(ours, operands, dtype), results(theirs, operands, dtype)
    if dtype == torch.float64:
        assert_equal(found, expected)
    else:
        truth = results(copy.deepcopy(theirs).double(), operands, torch.float64)
        assert_no_worse(found, expected, truth, floor=4)
    with torch.no_grad():
        given = (operands["h0"], operands["c0"]) if states else None
        for name, value in zip("hc", ours(operands["input"], given), strict=True):
            assert torch.equal(value, found[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peephole_is_one_step_of_the_module(device, dtype):
    cell = pykernels.LSTMCell(5, 6, peephole=True, dtype=dtype, device=device)
    layer = pykernels.LSTM(5, 6, peephole=True, dtype=dtype, device=device)
    layer.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x, h, c = (torch.randn(3, width).to(device, dtype) for width in (5, 6, 6))
    h_next, c_next = cell(x, (h, c))
    _, (h_n, c_n) = layer(x[None], (h[None], c[None]))
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(h_next, h_n[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(c_next, c_n[0], rtol=tolerance, atol=tolerance)
    assert not torch.equal(h_next, pykernels.LSTMCell.forward(_without_peephole(cell), x, (h, c))[0])


def _without_peephole(cell):
    plain = pykernels.LSTMCell(5, 6, dtype=cell.weight_ih.dtype, device=cell.weight_ih.device)
    plain.load_state_dict({name: p for name, p in cell.state_dict().items() if "peephole" not in name})
    return plain


def test_no_batch(device):
    cell = pykernels.LSTMCell(5, 6, device=device)
    h, c = cell(torch.zeros(0, 5, device=device))
    assert h.shape == c.shape == (0, 6)
    (h.sum() + c.sum()).backward()
    assert cell.weight_hh.grad.abs().max() == 0


def test_decoding_loop_trains(device):
    """The use of a cell: its own state fed back over steps, gradients through all of them."""
    found = []
    for kind in (pykernels.LSTMCell, nn.LSTMCell):
        torch.manual_seed(3)
        cell = kind(4, 4, dtype=torch.float64).to(device)
        h = torch.randn(2, 4, dtype=torch.float64).to(device)
        c, outputs = torch.zeros_like(h), []
        for _ in range(7):
            h, c = cell(h, (h, c))
            outputs.append(h)
        found.append(with_gradients({"h": torch.stack(outputs)}, dict(cell.named_parameters())))
    assert_equal(*found)


def states(*shapes, **options):
    return tuple(torch.zeros(shape, **options) for shape in shapes)


BAD_CALLS = {
    "three_dimensions": lambda cell: cell(torch.zeros(2, 3, 5)),
    "no_dimension": lambda cell: cell(torch.tensor(1.0)),
    "width": lambda cell: cell(torch.zeros(2, 4)),
    "width_unbatched": lambda cell: cell(torch.zeros(4)),
    "hidden_width": lambda cell: cell(torch.zeros(2, 5), states((2, 7), (2, 7))),
    "cell_width": lambda cell: cell(torch.zeros(2, 5), states((2, 6), (2, 7))),
    "hidden_batch": lambda cell: cell(torch.zeros(2, 5), states((3, 6), (3, 6))),
    "cell_batch": lambda cell: cell(torch.zeros(2, 5), states((2, 6), (3, 6))),
    "hidden_rank": lambda cell: cell(torch.zeros(2, 5), states((1, 2, 6), (1, 2, 6))),
    "cell_rank": lambda cell: cell(torch.zeros(2, 5), states((2, 6), (1, 2, 6))),
    "unbatched_states": lambda cell: cell(torch.zeros(2, 5), states((6,), (6,))),
    "batched_states": lambda cell: cell(torch.zeros(5), states((1, 6), (1, 6))),
    "state_is_none": lambda cell: cell(torch.zeros(2, 5), (torch.zeros(2, 6), None)),
    "input_is_none": lambda cell: cell(None),
    "one_state": lambda cell: cell(torch.zeros(2, 5), (torch.zeros(2, 6),)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_gets_torchs_error(name):
    expected = outcome(lambda: BAD_CALLS[name](nn.LSTMCell(5, 6)))
    assert expected is not None
    assert outcome(lambda: BAD_CALLS[name](pykernels.LSTMCell(5, 6))) == expected


@pytest.mark.parametrize("x", [torch.zeros(2, 5).double(), torch.zeros(2, 5).long()], ids=["float64", "int64"])
def test_another_dtype_is_a_runtime_error(x):
    assert outcome(lambda: nn.LSTMCell(5, 6)(x))[0] is RuntimeError
    with torch.no_grad():
        assert outcome(lambda: pykernels.LSTMCell(5, 6)(x))[0] is RuntimeError
    assert outcome(lambda: pykernels.LSTMCell(5, 6)(x))[0] is RuntimeError
    assert outcome(lambda: pykernels.LSTMCell(5, 6)(torch.zeros(2, 5), states((2, 6), (2, 6), dtype=x.dtype)))


@pytest.mark.parametrize("arguments", [(), (5,), (5, 6.0), (5.0, 6), (5, -1), (5, 6, True, None, None, 1)], ids=str)
def test_bad_arguments_get_torchs_error(arguments):
    expected = outcome(lambda: nn.LSTMCell(*arguments))
    kind, text = outcome(lambda: pykernels.LSTMCell(*arguments))
    assert kind is expected[0]
    if "positional argument" not in text:  # Python's own text counts our keyword too
        assert text == expected[1]
