"""Bad input gets torch's error: same type and text as the module of torch.nn called in the same wrong way."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pykernels
from tests.helpers import outcome

from .pairs import LAYERS, Pair, every_layer

X = (7, 3, 5)  # a good input of a layer of 5 inputs and 6 units: T, B, I
STATE = (1, 3, 6)


def zeros(*shapes, **options):
    made = tuple(torch.zeros(shape, **options) for shape in shapes)
    return made if len(made) > 1 else made[0]


GRADS = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
BAD_INPUT = {
    "input_of_one_dimension": ({}, lambda m: m(zeros((5,)))),
    "input_of_four_dimensions": ({}, lambda m: m(zeros((1, 7, 3, 5)))),
    "input_is_none": ({}, lambda m: m(None)),
    "input_is_a_list": ({}, lambda m: m([1.0, 2.0])),
    "input_missing": ({}, lambda m: m()),
    "input_twice_too_many": ({}, lambda m: m(zeros(X), None, None)),
    "width": ({}, lambda m: m(zeros((7, 3, 4)))),
    "width_unbatched": ({}, lambda m: m(zeros((7, 4)))),
    "width_batch_first": ({"batch_first": True}, lambda m: m(zeros((7, 3, 4)))),
    "width_zero": ({}, lambda m: m(zeros((7, 3, 0)))),
    "no_steps": ({}, lambda m: m(zeros((0, 3, 5)))),
    "no_steps_batch_first": ({"batch_first": True}, lambda m: m(zeros((3, 0, 5)))),
    "no_steps_unbatched": ({}, lambda m: m(zeros((0, 5)))),
    "no_steps_two_ways": ({"bidirectional": True}, lambda m: m(zeros((0, 3, 5)))),
    "input_float64": ({}, lambda m: m(zeros(X).double())),
    "input_float16": ({}, lambda m: m(zeros(X).half())),
    "input_integer": ({}, lambda m: m(zeros(X).long())),
    "input_bool": ({}, lambda m: m(zeros(X).bool())),
    "input_float32_module_float64": ({"dtype": torch.float64}, lambda m: m(zeros(X))),
    "input_meta": ({}, lambda m: m(zeros(X, device="meta"))),
    "module_meta": ({"device": "meta"}, lambda m: m(zeros(X))),
    # packing
    "unsorted_lengths": ({}, lambda m: m(pack_padded_sequence(zeros(X), [3, 7, 1]))),
    "a_length_of_zero": ({}, lambda m: m(pack_padded_sequence(zeros(X), [7, 3, 0]))),
    "lengths_of_another_batch": ({}, lambda m: m(pack_padded_sequence(zeros(X), [7, 3]))),
}

BAD_STATES_OF_LSTM = {
    "no_steps_projection": ({"proj_size": 2}, lambda m: m(zeros((0, 3, 5)))),
    "states_meta": ({}, lambda m: m(zeros(X), zeros(STATE, STATE, device="meta"))),
    "hidden_is_none": ({}, lambda m: m(zeros(X), (None, zeros(STATE)))),
    "cell_is_none": ({}, lambda m: m(zeros(X), (zeros(STATE), None))),
    "one_state_in_a_tuple": ({}, lambda m: m(zeros(X), (zeros(STATE),))),
    "three_states": ({}, lambda m: m(zeros(X), zeros(STATE, STATE, STATE))),
    "states_are_a_tensor": ({}, lambda m: m(zeros(X), zeros(STATE))),
    "hidden_batch": ({}, lambda m: m(zeros(X), zeros((1, 2, 6), STATE))),
    "cell_batch": ({}, lambda m: m(zeros(X), zeros(STATE, (1, 2, 6)))),
    "hidden_width": ({}, lambda m: m(zeros(X), zeros((1, 3, 7), STATE))),
    "cell_width": ({}, lambda m: m(zeros(X), zeros(STATE, (1, 3, 7)))),
    "hidden_rows": ({}, lambda m: m(zeros(X), zeros((2, 3, 6), (2, 3, 6)))),
    "rows_of_one_layer_for_two": ({"num_layers": 2}, lambda m: m(zeros(X), zeros(STATE, STATE))),
    "rows_of_one_direction_for_two": ({"bidirectional": True}, lambda m: m(zeros(X), zeros(STATE, STATE))),
    "hidden_width_with_projection": ({"proj_size": 2}, lambda m: m(zeros(X), zeros(STATE, STATE))),
    "cell_width_with_projection": ({"proj_size": 2}, lambda m: m(zeros(X), zeros((1, 3, 2), (1, 3, 2)))),
    "states_of_batch_first": ({"batch_first": True}, lambda m: m(zeros((3, 7, 5)), zeros((3, 1, 6), (3, 1, 6)))),
    "unbatched_states_for_a_batch": ({}, lambda m: m(zeros(X), zeros((1, 6), (1, 6)))),
    "unbatched_cell_for_a_batch": ({}, lambda m: m(zeros(X), zeros(STATE, (1, 6)))),
    "batched_states_without_a_batch": ({}, lambda m: m(zeros((7, 5)), zeros((1, 1, 6), (1, 1, 6)))),
    "batched_cell_without_a_batch": ({}, lambda m: m(zeros((7, 5)), zeros((1, 6), (1, 1, 6)))),
    "unbatched_width": ({}, lambda m: m(zeros((7, 5)), zeros((1, 7), (1, 6)))),
    "unbatched_rows": ({}, lambda m: m(zeros((7, 5)), zeros((2, 6), (2, 6)))),
}
BAD_STATE_OF_OTHERS = {
    "state_meta": ({}, lambda m: m(zeros(X), zeros(STATE, device="meta"))),
    "state_is_a_tuple": ({}, lambda m: m(zeros(X), (zeros(STATE), zeros(STATE)))),
    "state_is_a_number": ({}, lambda m: m(zeros(X), 1.0)),
    "batch": ({}, lambda m: m(zeros(X), zeros((1, 2, 6)))),
    "state_width": ({}, lambda m: m(zeros(X), zeros((1, 3, 7)))),
    "rows": ({}, lambda m: m(zeros(X), zeros((2, 3, 6)))),
    "rows_of_one_layer_for_two": ({"num_layers": 2}, lambda m: m(zeros(X), zeros(STATE))),
    "rows_of_one_direction_for_two": ({"bidirectional": True}, lambda m: m(zeros(X), zeros(STATE))),
    "state_of_batch_first": ({"batch_first": True}, lambda m: m(zeros((3, 7, 5)), zeros((3, 1, 6)))),
    "unbatched_state_for_a_batch": ({}, lambda m: m(zeros(X), zeros((1, 6)))),
    "batched_state_without_a_batch": ({}, lambda m: m(zeros((7, 5)), zeros((1, 1, 6)))),
    "unbatched_state_width": ({}, lambda m: m(zeros((7, 5)), zeros((1, 7)))),
    "unbatched_rows": ({}, lambda m: m(zeros((7, 5)), zeros((2, 6)))),
    "state_float64": ({}, lambda m: m(zeros(X), zeros(STATE).double())),
    "packed_state_batch": ({}, lambda m: m(pack_padded_sequence(zeros(X), [7, 3, 1]), zeros((1, 2, 6)))),
    "packed_state_width": ({}, lambda m: m(pack_padded_sequence(zeros(X), [7, 3, 1]), zeros((1, 3, 5)))),
    "packed_width": ({}, lambda m: m(pack_padded_sequence(zeros((7, 3, 4)), [7, 3, 1]))),
    "packed_float64": ({}, lambda m: m(pack_padded_sequence(zeros(X).double(), [7, 3, 1]))),
}


def bad_calls(pair: Pair) -> dict:
    return BAD_INPUT | (BAD_STATES_OF_LSTM if pair.is_lstm else BAD_STATE_OF_OTHERS)


@GRADS
@pytest.mark.parametrize("pair, name", [(pair, name) for pair in LAYERS for name in bad_calls(pair)], ids=str)
def test_bad_input_gets_torchs_error(pair, name, grad):
    options, attempt = bad_calls(pair)[name]
    with torch.set_grad_enabled(grad):
        expected = outcome(lambda: attempt(pair.theirs(5, 6, **options)))
        found = outcome(lambda: attempt(pair.ours(5, 6, **options)))
    assert expected is not None, "torch accepts this"
    assert found is not None, f"accepted; torch: {expected}"
    assert found == expected


def packed(data, sizes):
    return PackedSequence(data, torch.as_tensor(sizes))


# Made by hand, past the checks of pack_padded_sequence. torch fails with whatever its products happen to say
# (or not at all); ours must be an error too, and one that can be read.
BAD_PACKED = {
    "sizes_rise": lambda m, p: m(packed(zeros((7, 5)), [2, 3, 2])),
    "sizes_sum_to_less": lambda m, p: m(packed(zeros((7, 5)), [3, 2, 1])),
    "sizes_sum_to_more": lambda m, p: m(packed(zeros((7, 5)), [3, 3, 3])),
    "a_size_of_zero": lambda m, p: m(packed(zeros((7, 5)), [4, 3, 0])),
    "a_negative_size": lambda m, p: m(packed(zeros((7, 5)), [4, 4, -1])),
    "another_width": lambda m, p: m(packed(zeros((7, 4)), [3, 3, 1])),
    "another_rank": lambda m, p: m(packed(zeros((7, 5, 1)), [3, 3, 1])),
    "another_dtype": lambda m, p: m(packed(zeros((7, 5)).double(), [3, 3, 1])),
    "state_batch": lambda m, p: m(packed(zeros((7, 5)), [3, 3, 1]), p.state(1, 2, 6)),
    "state_width": lambda m, p: m(packed(zeros((7, 5)), [3, 3, 1]), p.state(1, 3, 5)),
    "state_rows": lambda m, p: m(packed(zeros((7, 5)), [3, 3, 1]), p.state(2, 3, 6)),
    "state_rank": lambda m, p: m(packed(zeros((7, 5)), [3, 3, 1]), p.state(3, 6)),
    "no_steps": lambda m, p: m(packed(zeros((0, 5)), torch.zeros(0, dtype=torch.int64))),
}


@GRADS
@every_layer
@pytest.mark.parametrize("name", BAD_PACKED)
def test_bad_packed_input_is_an_error(name, pair, grad):
    with torch.set_grad_enabled(grad):
        found = outcome(lambda: BAD_PACKED[name](pair.ours(5, 6), pair))
    assert found is not None
    assert found[0] in (RuntimeError, ValueError, IndexError) and found[1]


@GRADS
@pytest.mark.parametrize("which", ["both", "hidden", "cell"])
def test_states_of_another_dtype(which, grad):
    """torch's text depends on the library that it calls; here it names the operator."""
    module = pykernels.LSTM(5, 6)
    hidden = zeros(STATE, dtype=torch.float32 if which == "cell" else torch.float64)
    cell = zeros(STATE, dtype=torch.float32 if which == "hidden" else torch.float64)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=r"\[lstm\] expected .*got|dtype"):
        module(zeros(X), (hidden, cell))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
@every_layer
def test_a_dtype_without_kernel_is_named(dtype, pair):
    operator = pair.name.lower()
    weights = [w.detach().to(dtype) for w in pair.ours(5, 6).parameters()]
    with pytest.raises((RuntimeError, TypeError, NotImplementedError), match=rf"\[{operator}\]"):
        getattr(pykernels.functional, operator)(zeros(X).to(dtype), None, weights)


BAD_ARGUMENTS = [
    ((), {}),
    ((3,), {}),
    ((3, 4), {"nonlinearity": "sin"}),
    ((3, 4), {"mode": "LSTM"}),
    ((3.0, 4), {}),
    ((3, 4.0), {}),
    ((0, 4), {}),
    ((3, 0), {}),
    ((-3, 4), {}),
    ((3, -4), {}),
    (("3", 4), {}),
    ((3, 4), {"num_layers": 0}),
    ((3, 4), {"num_layers": -1}),
    ((3, 4), {"num_layers": 1.5}),
    ((3, 4), {"num_layers": "1"}),
    ((3, 4), {"dropout": 1.5}),
    ((3, 4), {"dropout": -0.1}),
    ((3, 4), {"dropout": "a"}),
    ((3, 4), {"dropout": True}),
    ((3, 4), {"dropout": None}),
    ((3, 4), {"bias": 1}),
    ((3, 4), {"bias": None}),
    ((3, 4), {"batch_first": 1}),
    ((3, 4), {"proj_size": 2}),
    ((3, 4), {"proj_size": 4}),
    ((3, 4), {"proj_size": 5}),
    ((3, 4), {"proj_size": -1}),
    ((3, 4), {"proj_size": 2.0}),
    ((3, 4), {"dtype": torch.int32}),
    ((3, 4), {"device": "nowhere"}),
    ((3, 4, 1, True, False, 0.0, False, 0, None, None, 1), {}),
    ((3, 4, 1, "sin"), {}),
    ((3, 4, 1, "tanh", True, False, 0.0, False, 0, None, None, 1), {}),
]


@pytest.mark.parametrize("arguments, options", BAD_ARGUMENTS, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_bad_arguments_get_torchs_error(name, arguments, options):
    expected = outcome(lambda: getattr(nn, name)(*arguments, **options))
    found = outcome(lambda: getattr(pykernels, name)(*arguments, **options))
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found[0] is expected[0]
        if "__init__()" not in expected[1]:  # Python's own texts name the function
            assert found[1] == expected[1]


@every_layer
def test_dropout_of_one_layer_warns_as_torch(pair):
    texts = []
    for make in (pair.ours, pair.theirs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make(3, 4, dropout=0.5)
        texts.append([(w.category, str(w.message)) for w in caught])
    assert texts[0] == texts[1] and len(texts[0]) == 1


@every_layer
def test_an_error_leaves_the_module_usable(pair):
    module = pair.ours(5, 6)
    before = module(zeros(X))[0]
    for name, (options, attempt) in bad_calls(pair).items():
        if not options:
            assert outcome(lambda: attempt(module)) is not None, name  # noqa: B023
    assert torch.equal(module(zeros(X))[0], before)
