"""functional.lstm equals its reference twin over drawn configurations: results and every gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pykernels import functional, reference
from tests.helpers import (
    FLAG,
    LOW,
    SEED,
    Case,
    assert_equal,
    assert_no_worse,
    assert_same_bits,
    call,
    drawn,
    run,
    split,
    with_gradients,
)

# Tails of every vector width: odd sizes around 2, 4, 8, 16, 32 and 48 units, batches around the rows of a tile.
SHAPES = {
    "steps": (1, 9),
    "batch": (1, 19),
    "inputs": (1, 70),
    "hidden": (1, 70),
    "seed": SEED,
}
KINDS = {
    "bias": FLAG,
    "bidirectional": FLAG,
    "projection": FLAG,
    "peephole": FLAG,
    "packed": FLAG,
    "states": FLAG,
}


@drawn(150, **SHAPES, **KINDS)
def test_float64_equals_the_twin(device, case):
    ours = run(functional.lstm, case, torch.float64, device)
    assert_equal(ours, run(reference.lstm, case, torch.float64, device))


@drawn(80, **SHAPES, **KINDS)
def test_float32_is_as_exact_as_the_twin(device, case):
    ours = run(functional.lstm, case, torch.float32, device)
    peer = run(reference.lstm, case, torch.float32, device)
    truth = run(reference.lstm, case, torch.float64, device, draw_as=torch.float32)
    assert_no_worse(ours, peer, truth, floor=8)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@drawn(50, **SHAPES, **KINDS)
def test_low_precision_is_as_exact_as_the_twin(device, dtype, case):
    ours = run(functional.lstm, case, dtype, device)
    peer = run(reference.lstm, case, dtype, device)
    truth = run(reference.lstm, case, torch.float64, device, draw_as=dtype)
    assert_no_worse(ours, peer, truth, floor=4)


@drawn(25, **SHAPES, **KINDS, layers=(2, 3))
def test_layers(device, case):
    ours = run(functional.lstm, case, torch.float64, device)
    assert_equal(ours, run(reference.lstm, case, torch.float64, device))


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
def test_beyond_one_block(device, case, dtype):
    """Sizes that cross the borders of the product's blocks."""
    ours, peer = run(functional.lstm, case, dtype, device), run(reference.lstm, case, dtype, device)
    if dtype == torch.float64:
        assert_equal(ours, peer)
    else:
        assert_no_worse(ours, peer, run(reference.lstm, case, torch.float64, device, draw_as=dtype), floor=8)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("case", [Case(20, 33, 37, 101), Case(9, 33, 101, 256, packed=True, projection=True)], ids=str)
def test_beyond_one_block_in_low_precision(device, case, dtype):
    truth = run(reference.lstm, case, torch.float64, device, draw_as=dtype)
    assert_no_worse(run(functional.lstm, case, dtype, device), run(reference.lstm, case, dtype, device), truth)


@drawn(20, **SHAPES, **KINDS)
def test_same_bits_every_time(device, case):
    assert_same_bits(
        run(functional.lstm, case, torch.float32, device), run(functional.lstm, case, torch.float32, device)
    )


@drawn(25, steps=(1, 6), batch=(1, 9), inputs=(1, 40), hidden=(1, 40), seed=SEED, **{**KINDS, "packed": [False]})
def test_packed_of_full_length_is_padded(device, case):
    """Packed sequences of one length hold the rows of the padded tensor: the same values and gradients."""
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    sizes = torch.full((case.steps,), case.batch)

    def packed(input, hx, weights, **options):
        output, h_n, c_n = functional.lstm(input.flatten(0, 1), hx, weights, batch_sizes=sizes, **options)
        return output.unflatten(0, input.shape[:2]), h_n, c_n

    found = []
    for function in (packed, functional.lstm):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        found.append(with_gradients(call(function, case, leaves), leaves))
    assert_equal(*found)


@drawn(10, steps=(1, 6), batch=(1, 6), bidirectional=FLAG, layers=(1, 2), seed=SEED)
def test_batch_first_turns_input_and_output(device, case):
    input, hx, weights = split(case.tensors(torch.float64, device, requires_grad=False))
    output, h_n, c_n = functional.lstm(input.transpose(0, 1), hx, weights, batch_first=True, **case.options)
    expected = functional.lstm(input, hx, weights, **case.options)
    torch.testing.assert_close((output.transpose(0, 1), h_n, c_n), expected, rtol=0, atol=0)


def test_dropout_between_layers(device):
    """Dropped elements are those that torch.dropout drops from each layer's output, in order; none in inference."""
    case = Case(steps=5, batch=4, layers=3, bidirectional=True)
    tensors = case.tensors(torch.float64, device, requires_grad=False)
    plain = call(functional.lstm, case, tensors)
    assert_same_bits(call(functional.lstm, case, tensors, dropout=0.5, training=False), plain)
    torch.manual_seed(1)
    dropped = call(functional.lstm, case, tensors, dropout=0.5, training=True)
    torch.manual_seed(1)
    assert_equal(dropped, call(reference.lstm, case, tensors, dropout=0.5, training=True))
    assert not torch.equal(dropped["output"], plain["output"])


@drawn(40, batch=(1, 18), inputs=(1, 40), hidden=(1, 70), bias=FLAG, peephole=FLAG, states=FLAG, seed=SEED)
def test_cell_is_one_step(device, case):
    """lstm_cell equals one step of the twin, and its gradients those of the step."""
    case = dataclasses.replace(case, steps=1)
    found = []
    for function in ("cell", "layer"):
        tensors = case.tensors(torch.float64, device)
        weights = {name.removesuffix("_l0"): tensors[name] for name in case.weight_shapes()}
        if function == "cell":
            hx = (tensors["h0"][0], tensors["c0"][0]) if case.states else None
            h, c = functional.lstm_cell(tensors["input"][0], hx, **weights)
        else:
            _, (h,), (c,) = call(reference.lstm, case, tensors).values()
        found.append(with_gradients({"h": h, "c": c}, tensors))
    assert_equal(*found)
