"""functional.lstm, gru and rnn equal their reference twins over drawn configurations: results and every gradient."""

from __future__ import annotations

import pytest
import torch

from pykernels import functional, reference
from tests.helpers import (
    FLAG,
    FLAGS,
    LOW,
    SEED,
    Case,
    assert_equal,
    assert_same_bits,
    call,
    call_cell,
    check_values,
    drawn,
    every_kind,
    run,
    split,
    with_gradients,
)

# Tails of every vector width: odd sizes around 2, 4, 8, 16, 32 and 48 units, batches around the rows of a tile.
SHAPES = {"steps": (1, 9), "batch": (1, 19), "inputs": (1, 70), "hidden": (1, 70), "seed": SEED}
STATES, LASTS = ("h0", "c0"), ("h_n", "c_n")


@every_kind
@drawn(150, **SHAPES, **FLAGS)
def test_float64_equals_the_twin(device, kind, case):
    check_values(case, torch.float64, device)


@every_kind
@drawn(80, **SHAPES, **FLAGS)
def test_float32_is_as_exact_as_the_twin(device, kind, case):
    check_values(case, torch.float32, device)


@every_kind
@pytest.mark.parametrize("dtype", LOW, ids=str)
@drawn(50, **SHAPES, **FLAGS)
def test_low_precision_is_as_exact_as_the_twin(device, dtype, kind, case):
    check_values(case, dtype, device, floor=4)


@every_kind
@drawn(25, **SHAPES, **FLAGS, layers=(2, 3))
def test_layers(device, kind, case):
    check_values(case, torch.float64, device)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(57, 33, 37, 101),
        Case(57, 33, 37, 101, packed=True, bidirectional=True),
        Case(5, 33, 101, 257, peephole=True),
        Case(4, 65, 257, 101, bidirectional=True, projection=True),
        Case(130, 1, 3, 64, packed=True),
        Case(2, 130, 48, 48, states=False),
        Case(3, 1, 7, 513, bias=False),
        Case(300, 2, 1, 1),
    ],
    ids=str,
)
def test_beyond_one_block(device, case, dtype, kind):
    """Sizes that cross the borders of the product's blocks."""
    check_values(case.of(kind), dtype, device)


OTHER_FORMS = [
    Case(57, 33, 37, 101, bidirectional=True, kind="gru", reset_after=False),
    Case(5, 33, 101, 257, packed=True, kind="gru", reset_after=False),
    Case(57, 33, 37, 101, packed=True, kind="rnn", relu=True),
    Case(20, 33, 37, 257, bidirectional=True, kind="rnn", relu=True),
    Case(57, 33, 37, 101, kind="rnn", projection=True),
    Case(5, 33, 101, 257, packed=True, bidirectional=True, kind="rnn", projection=True),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", OTHER_FORMS, ids=str)
def test_other_forms_beyond_one_block(device, case, dtype):
    """The original GRU, ReLU and Jordan's network, which have kernels of their own."""
    check_values(case, dtype, device)


@every_kind
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(
    "case", [Case(20, 33, 37, 101), Case(9, 33, 101, 256, packed=True, projection=True, reset_after=False)], ids=str
)
def test_beyond_one_block_in_low_precision(device, case, dtype, kind):
    check_values(case.of(kind), dtype, device, floor=2)


@every_kind
@drawn(20, **SHAPES, **FLAGS)
def test_same_bits_every_time(device, kind, case):
    assert_same_bits(*(run(functional, case, torch.float32, device) for _ in range(2)))


@every_kind
@drawn(25, steps=(1, 6), batch=(1, 9), inputs=(1, 40), hidden=(1, 40), seed=SEED, **{**FLAGS, "packed": [False]})
def test_packed_of_full_length_is_padded(device, kind, case):
    """Packed sequences of one length hold the rows of the padded tensor: the same values and gradients."""
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    sizes = torch.full((case.steps,), case.batch)

    def packed(input, hx, weights, **options):
        function = getattr(functional, kind)
        output, *states = function(input.flatten(0, 1), hx, weights, batch_sizes=sizes, **options)
        return output.unflatten(0, input.shape[:2]), *states

    found = []
    for where in (packed, functional):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        found.append(with_gradients(call(where, case, leaves), leaves))
    assert_equal(*found)


@every_kind
@drawn(10, steps=(1, 6), batch=(1, 6), bidirectional=FLAG, layers=(1, 2), seed=SEED)
def test_batch_first_turns_input_and_output(device, kind, case):
    input, hx, weights = split(case.tensors(torch.float64, device, requires_grad=False))
    function = getattr(functional, kind)
    output, *states = function(input.transpose(0, 1), hx, weights, batch_first=True, **case.options)
    expected = function(input, hx, weights, **case.options)
    torch.testing.assert_close((output.transpose(0, 1), *states), expected, rtol=0, atol=0)


@every_kind
@drawn(10, steps=(2, 12), batch=(1, 9), inputs=(1, 20), hidden=(1, 40), seed=SEED, layers=(1, 2),
       **{**FLAGS, "packed": [False], "bidirectional": [False]})  # fmt: skip
def test_a_sequence_in_pieces(device, kind, case):
    """Each piece begins with the states in which the one before it ended: values and gradients of the whole."""
    cut = 1 + case.seed % (case.steps - 1)
    found = []
    for pieces in ([case.steps], [cut, case.steps - cut]):
        tensors = case.tensors(torch.float64, device)
        carried, outputs = {}, []
        for piece in tensors["input"].split(pieces):
            results = call(functional, case, {**tensors, "input": piece, **carried})
            outputs.append(results["output"])
            carried = {name: results[last] for name, last in zip(STATES, LASTS, strict=True) if last in results}
        results["output"] = torch.cat(outputs)
        found.append(with_gradients(results, tensors))
    assert_equal(*found)


@every_kind
def test_dropout_between_layers(device, kind):
    """Dropped elements are those that torch.dropout drops from each layer's output, in order; none in inference."""
    case = Case(steps=5, batch=4, layers=3, bidirectional=True, kind=kind)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    plain = call(functional, case, tensors)
    assert_same_bits(call(functional, case, tensors, dropout=0.5, training=False), plain)
    torch.manual_seed(1)
    dropped = call(functional, case, tensors, dropout=0.5, training=True)
    torch.manual_seed(1)
    assert_equal(dropped, call(reference, case, tensors, dropout=0.5, training=True))
    assert not torch.equal(dropped["output"], plain["output"])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@drawn(40, batch=(1, 18), inputs=(1, 40), hidden=(1, 70), seed=SEED, steps=[1],
       **{**FLAGS, "bidirectional": [False], "projection": [False], "packed": [False]})  # fmt: skip
def test_cell_is_one_step(device, dtype, kind, case):
    """The cell equals one step of the twin, and its gradients those of the step."""
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    found = []
    for function in ("cell", "layer"):
        tensors = case.tensors(dtype, device)
        if function == "cell":
            results = call_cell(functional, case, tensors)
        else:
            _, *states = call(reference, case, tensors).values()
            results = {name: state[0] for name, state in zip("hc"[: len(states)], states, strict=True)}
        found.append(with_gradients(results, tensors))
    assert_equal(*found, tolerance=tolerance)
    with torch.no_grad():
        assert_same_bits(call_cell(functional, case, tensors), {n: t for n, t in found[0].items() if n in "hc"})
