"""pykernels.LSTMCell, GRUCell and RNNCell equal torch.nn's; their errors are torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pykernels
from tests.helpers import LOW, assert_equal, assert_no_worse, outcome, with_gradients

from .pairs import CELLS, every_cell

DTYPES = [torch.float64, torch.float32, *LOW]


def results(pair, module, operands, dtype):
    leaves = {name: t.to(dtype).detach().requires_grad_() for name, t in operands.items()}
    found = pair.named(module(leaves["input"], pair.hx(leaves)))
    return with_gradients(found, leaves | dict(module.named_parameters()))


@every_cell
@pytest.mark.parametrize("states", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("batch", [None, 1, 3, 18])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("sizes", [(5, 6), (1, 1), (37, 101)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch(device, dtype, sizes, bias, batch, states, pair):
    inputs, hidden = sizes
    theirs = pair.theirs(inputs, hidden, bias, dtype=dtype, device=device)
    ours = pair.ours(inputs, hidden, bias, dtype=dtype, device=device)
    ours.load_state_dict(theirs.state_dict())
    shape = () if batch is None else (batch,)
    operands = {"input": torch.randn(*shape, inputs)}
    operands |= {name: torch.randn(*shape, hidden) for name in pair.states if states}
    operands = {name: t.to(device, dtype) for name, t in operands.items()}
    found, expected = results(pair, ours, operands, dtype), results(pair, theirs, operands, dtype)
    if dtype == torch.float64:
        assert_equal(found, expected)
    else:
        truth = results(pair, copy.deepcopy(theirs).double(), operands, torch.float64)
        kept = [name for name in found if not (pair.nonlinearity and name.startswith("grad"))]
        assert_no_worse(*({name: which[name] for name in kept} for which in (found, expected, truth)), floor=4)
    with torch.no_grad():
        for name, value in pair.named(ours(operands["input"], pair.hx(operands))).items():
            assert torch.equal(value, found[name])


@every_cell
def test_is_one_step_of_the_module(device, pair):
    """The bits of a sequence of one step, in both forms of the GRU."""
    for options in ({}, {"bias": False}, {"reset_after": False}):
        if "reset_after" in options and pair.name != "GRUCell":
            continue
        cell = pair.ours(5, 6, **options, device=device)
        kind = getattr(pykernels, pair.name.removesuffix("Cell"))
        layer = kind(5, 6, **options, **pair.options, device=device)
        layer.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
        x, *states = (torch.randn(3, width).to(device) for width in (5, 6, 6))
        states = dict(zip(pair.states, states, strict=False))
        stepped = pair.named(cell(x, pair.hx(states)))
        _, last = layer(x[None], pair.hx({name: state[None] for name, state in states.items()}))
        for name, expected in pair.named(last).items():
            assert torch.equal(stepped[name], expected[0])


@every_cell
def test_no_batch(device, pair):
    cell = pair.ours(5, 6, device=device)
    found = pair.named(cell(torch.zeros(0, 5, device=device)))
    assert all(state.shape == (0, 6) for state in found.values())
    sum(state.sum() for state in found.values()).backward()
    assert cell.weight_hh.grad.abs().max() == 0


@every_cell
def test_decoding_loop_trains(device, pair):
    """The use of a cell: its own state fed back over steps, gradients through all of them."""
    found = []
    for make in (pair.ours, pair.theirs):
        torch.manual_seed(3)
        cell = make(4, 4, dtype=torch.float64).to(device)
        h, states, outputs = torch.randn(2, 4, dtype=torch.float64).to(device), {}, []
        for _ in range(7):
            step = pair.named(cell(h, pair.hx(states)))
            states = {name.replace("_n", "0"): state for name, state in step.items()}
            h = states["h0"]
            outputs.append(h)
        found.append(with_gradients({"h": torch.stack(outputs)}, dict(cell.named_parameters())))
    assert_equal(*found)


# -- errors -----------------------------------------------------------------------------------------------------------
def pairs_of(*shapes, **options):
    return tuple(torch.zeros(shape, **options) for shape in shapes)


BAD_INPUT = {
    "three_dimensions": lambda cell: cell(torch.zeros(2, 3, 5)),
    "no_dimension": lambda cell: cell(torch.tensor(1.0)),
    "width": lambda cell: cell(torch.zeros(2, 4)),
    "width_unbatched": lambda cell: cell(torch.zeros(4)),
    "input_is_none": lambda cell: cell(None),
    "input_is_a_list": lambda cell: cell([1.0]),
    "meta": lambda cell: cell(torch.zeros(2, 5, device="meta")),
    "no_input": lambda cell: cell(),
}
BAD_STATES_OF_LSTM = {
    "hidden_width": lambda cell: cell(torch.zeros(2, 5), pairs_of((2, 7), (2, 7))),
    "cell_width": lambda cell: cell(torch.zeros(2, 5), pairs_of((2, 6), (2, 7))),
    "hidden_batch": lambda cell: cell(torch.zeros(2, 5), pairs_of((3, 6), (3, 6))),
    "cell_batch": lambda cell: cell(torch.zeros(2, 5), pairs_of((2, 6), (3, 6))),
    "hidden_rank": lambda cell: cell(torch.zeros(2, 5), pairs_of((1, 2, 6), (1, 2, 6))),
    "cell_rank": lambda cell: cell(torch.zeros(2, 5), pairs_of((2, 6), (1, 2, 6))),
    "unbatched_states": lambda cell: cell(torch.zeros(2, 5), pairs_of((6,), (6,))),
    "batched_states": lambda cell: cell(torch.zeros(5), pairs_of((1, 6), (1, 6))),
    "state_is_none": lambda cell: cell(torch.zeros(2, 5), (torch.zeros(2, 6), None)),
    "one_state": lambda cell: cell(torch.zeros(2, 5), (torch.zeros(2, 6),)),
}
BAD_STATE_OF_OTHERS = {
    "hidden_width": lambda cell: cell(torch.zeros(2, 5), torch.zeros(2, 7)),
    "hidden_batch": lambda cell: cell(torch.zeros(2, 5), torch.zeros(3, 6)),
    "hidden_rank": lambda cell: cell(torch.zeros(2, 5), torch.zeros(1, 2, 6)),
    "hidden_scalar": lambda cell: cell(torch.zeros(2, 5), torch.tensor(0.0)),
    "unbatched_state": lambda cell: cell(torch.zeros(2, 5), torch.zeros(6)),
    "batched_state": lambda cell: cell(torch.zeros(5), torch.zeros(1, 6)),
    "unbatched_width": lambda cell: cell(torch.zeros(5), torch.zeros(7)),
    "state_is_a_tuple": lambda cell: cell(torch.zeros(2, 5), (torch.zeros(2, 6),)),
    "state_is_a_number": lambda cell: cell(torch.zeros(2, 5), 1.0),
}


def bad_calls(pair) -> dict:
    return BAD_INPUT | (BAD_STATES_OF_LSTM if pair.is_lstm else BAD_STATE_OF_OTHERS)


@pytest.mark.parametrize("pair, name", [(pair, name) for pair in CELLS for name in bad_calls(pair)], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_bad_input_gets_torchs_error(pair, name, grad):
    attempt = bad_calls(pair)[name]
    with torch.set_grad_enabled(grad):
        expected = outcome(lambda: attempt(pair.theirs(5, 6)))
        assert expected is not None
        assert outcome(lambda: attempt(pair.ours(5, 6))) == expected


@every_cell
@pytest.mark.parametrize("x", [torch.zeros(2, 5).double(), torch.zeros(2, 5).long()], ids=["float64", "int64"])
def test_another_dtype_is_a_runtime_error(x, pair):
    assert outcome(lambda: pair.theirs(5, 6)(x))[0] is RuntimeError
    with torch.no_grad():
        assert outcome(lambda: pair.ours(5, 6)(x))[0] is RuntimeError
    assert outcome(lambda: pair.ours(5, 6)(x))[0] is RuntimeError
    assert outcome(lambda: pair.ours(5, 6)(torch.zeros(2, 5), pair.state(2, 6, dtype=x.dtype)))


@every_cell
def test_a_bad_batch_named_by_torch_in_the_unbatched_form(pair):
    """A state for another batch than the one that `unsqueeze` makes."""
    for attempt in (
        lambda cell: cell(torch.zeros(5), pair.state(2, 6)),
        lambda cell: cell(torch.zeros(5), pair.state()),
    ):
        expected = outcome(lambda: attempt(pair.theirs(5, 6)))  # noqa: B023
        assert expected is not None
        assert outcome(lambda: attempt(pair.ours(5, 6))) == expected  # noqa: B023


ARGUMENTS = [(), (5,), (5, 6.0), (5.0, 6), (5, -1), (5, 6, True, None, None, 1), (5, 6, True, "tanh", None, None, 1)]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_bad_arguments_get_torchs_error(name, arguments):
    expected = outcome(lambda: getattr(nn, name)(*arguments))
    found = outcome(lambda: getattr(pykernels, name)(*arguments))
    if expected is None:
        assert found is None
        return
    assert found[0] is expected[0]
    if "positional argument" not in found[1]:  # Python's own text counts our keyword too
        assert found[1] == expected[1]


@pytest.mark.parametrize("nonlinearity", ["sin", None, "ReLU"])
def test_an_unknown_function_of_the_cell_is_found_when_it_runs(nonlinearity):
    """As torch's RNNCell, which looks at it then."""
    expected = outcome(lambda: nn.RNNCell(5, 6, nonlinearity=nonlinearity)(torch.zeros(2, 5)))
    found = outcome(lambda: pykernels.RNNCell(5, 6, nonlinearity=nonlinearity)(torch.zeros(2, 5)))
    assert expected is not None and found == expected
