"""LSTM rows: inference, training, packed sequences, bf16, one step, and the memory held for backward."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from bench import ours, peers
from bench.layers import check_same, lstm_work, training_step
from bench.memory import held_for_backward
from bench.pairs import fastest
from bench.rows import held_row

# Steps, batch, inputs, hidden units; and the least ratio to reach in inference.
SHAPES = [
    (100, 1, 64, 64, 1.1),
    (100, 1, 128, 256, 1.1),
    (100, 1, 512, 512, 1.0),
    (100, 8, 128, 256, 1.1),
    (100, 8, 256, 256, 1.1),
    (100, 32, 64, 64, 1.1),
    (100, 32, 128, 256, 1.1),
    (100, 32, 512, 512, 1.1),
    (57, 3, 37, 101, 1.1),
    (23, 5, 19, 77, 1.1),
    (41, 17, 130, 200, 1.1),
]
PACKED_SHAPES = [(100, 8, 128, 256), (100, 32, 64, 64), (100, 32, 128, 256)]
LOW_PRECISION_SHAPES = [(100, 32, 128, 256), (100, 32, 512, 512), (50, 64, 256, 512)]

# Why a row stays below 70 % of its bound: by "section label", or by section for all of its rows.
_SMALL_STEP = (
    "a step's product takes about a microsecond; the five transcendentals a unit, the barrier of the step and packing "
    "the weights once a call take as long, and the next step cannot start before"
)
_SAVED = (
    "the backward step waits for saved gates and cell states that left the cache (a third of its time is loads that "
    "miss), and the weight gradients read the gate gradients once more from the last-level cache while packing"
)
WHY: dict[str, str] = {
    "lstm-inference": _SMALL_STEP,
    "lstm-training": _SAVED + "; with few sequences also: " + _SMALL_STEP,
    "lstm-packed": _SAVED + "; the last steps of the longest sequences fill only a part of the register tile",
    "lstm-bf16": "packing and the gates stay in float32, and the product is twice as fast: their share doubles",
    "lstm-streaming": "one step of one sequence: the call itself costs more than its arithmetic",
}


def label_of(steps: int, batch: int, inputs: int, hidden: int) -> str:
    return f"B{batch} T{steps} I{inputs} H{hidden}"


def pair_of_modules(
    inputs: int, hidden: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.nn.Module, torch.nn.LSTM]:
    """Ours and torch's, with the same weights."""
    torch.manual_seed(inputs + hidden)
    theirs = torch.nn.LSTM(inputs, hidden, dtype=dtype)
    mine = ours.LSTM(inputs, hidden, dtype=dtype)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def check_gradients(
    mine: torch.nn.Module, theirs: torch.nn.Module, steps: dict[str, Callable], x: torch.Tensor
) -> None:
    """Runs both steps once and compares every gradient, relative to the largest of its tensor."""
    found = []
    for module, step in zip((mine, theirs), steps.values(), strict=True):
        step()
        found.append([leaf.grad.clone() for leaf in (*module.parameters(), x) if leaf.grad is not None])
    for one, other in zip(*found, strict=True):
        check_same(one / other.abs().max(), other / other.abs().max(), 1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: label_of(*shape[:4]).replace(" ", "-"))
def test_lstm_inference(shape, compare, plan):
    steps, batch, inputs, hidden, target = shape
    mine, theirs = pair_of_modules(inputs, hidden)
    x = torch.randn(steps, batch, inputs)
    works = {"ours": lambda: mine(x), "torch": lambda: theirs(x)}
    with torch.no_grad():
        check_same(mine(x)[0], theirs(x)[0])
        ways = peers.onnx_lstm(theirs, x, torch.get_num_threads())
        if ways is not None:
            works["ONNX Runtime"] = ways[fastest(ways, plan)]
    work = lstm_work(steps * batch, steps, inputs, hidden)
    label = label_of(steps, batch, inputs, hidden)
    compare("lstm-inference", label, works, grad=False, target=target, work=work, why=WHY)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: label_of(*shape[:4]).replace(" ", "-"))
def test_lstm_training(shape, compare):
    steps, batch, inputs, hidden, _ = shape
    mine, theirs = pair_of_modules(inputs, hidden)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    grad_output = torch.randn(steps, batch, hidden)
    works = {"ours": training_step(mine, x, grad_output), "torch": training_step(theirs, x, grad_output)}
    check_gradients(mine, theirs, works, x)
    work = lstm_work(steps * batch, steps, inputs, hidden, training=True)
    label = label_of(steps, batch, inputs, hidden)
    compare("lstm-training", label, works, grad=True, target=1.2, work=work, why=WHY)


@pytest.mark.parametrize("order", ["sorted", "unsorted"])
@pytest.mark.parametrize("shape", PACKED_SHAPES, ids=lambda shape: label_of(*shape).replace(" ", "-"))
def test_lstm_packed(shape, order, compare):
    steps, batch, inputs, hidden = shape
    mine, theirs = pair_of_modules(inputs, hidden)
    lengths = torch.randint(1, steps + 1, (batch,))
    lengths[0] = steps
    if order == "sorted":
        lengths = lengths.sort(descending=True).values
    padded = torch.randn(steps, batch, inputs)
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=order == "sorted")
    leaf = packed.data.detach().requires_grad_()
    packed = packed._replace(data=leaf)
    grad_output = torch.randn(int(lengths.sum()), hidden)
    works = {"ours": training_step(mine, packed, grad_output), "torch": training_step(theirs, packed, grad_output)}
    check_gradients(mine, theirs, works, leaf)
    work = lstm_work(int(lengths.sum()), steps, inputs, hidden, training=True)
    label = f"{label_of(steps, batch, inputs, hidden)} {order}"
    compare("lstm-packed", label, works, grad=True, target=3.0, work=work, why=WHY)


@pytest.mark.parametrize("shape", LOW_PRECISION_SHAPES, ids=lambda shape: label_of(*shape).replace(" ", "-"))
def test_lstm_bf16(shape, compare):
    """Judged against our own float32 where the processor has bf16 dot products; elsewhere the row has no target."""
    steps, batch, inputs, hidden = shape
    mine, theirs = pair_of_modules(inputs, hidden)
    x = torch.randn(steps, batch, inputs)
    mine_low, theirs_low, x_low = copy.deepcopy(mine).bfloat16(), copy.deepcopy(theirs).bfloat16(), x.bfloat16()
    works = {
        "ours": lambda: mine_low(x_low),
        "our float32": lambda: mine(x),
        "torch bf16": lambda: theirs_low(x_low),
    }
    with torch.no_grad():
        check_same(mine_low(x_low)[0].float(), theirs(x)[0], 0.05)
    dot_products = ours.isa().endswith("bf16")
    work = lstm_work(steps * batch, steps, inputs, hidden, size=2, rate=2.0 if dot_products else 1.0)
    target = 1.4 if dot_products else None
    label = label_of(steps, batch, inputs, hidden)
    compare("lstm-bf16", label, works, grad=False, target=target, work=work, against="our float32", why=WHY)


@pytest.mark.parametrize("hidden", [64, 256])
@pytest.mark.parametrize("kind", ["LSTMCell", "LSTM T1"])
def test_lstm_streaming(kind, hidden, compare):
    """One step of one sequence: what a caller pays who feeds a stream."""
    mine: torch.nn.Module
    theirs: torch.nn.Module
    if kind == "LSTMCell":
        theirs, mine = torch.nn.LSTMCell(hidden, hidden), ours.LSTMCell(hidden, hidden)
        mine.load_state_dict(theirs.state_dict())
        x, state = torch.randn(1, hidden), (torch.zeros(1, hidden), torch.zeros(1, hidden))
    else:
        mine, theirs = pair_of_modules(hidden, hidden)
        x, state = torch.randn(1, 1, hidden), (torch.zeros(1, 1, hidden), torch.zeros(1, 1, hidden))
    with torch.no_grad():
        check_same(mine(x, state)[0], theirs(x, state)[0])
    works = {"ours": lambda: mine(x, state), "torch": lambda: theirs(x, state)}
    work = lstm_work(1, 1, hidden, hidden)
    label = f"{kind} B1 I{hidden} H{hidden}"
    compare("lstm-streaming", label, works, grad=False, target=1.5, work=work, why=WHY)


@pytest.mark.parametrize(
    "shape", [SHAPES[1], SHAPES[6], SHAPES[7]], ids=lambda shape: label_of(*shape[:4]).replace(" ", "-")
)
def test_lstm_memory(shape, keep):
    """Bytes that the forward pass of a training step leaves allocated, beyond its results."""
    steps, batch, inputs, hidden, _ = shape
    mine, theirs = pair_of_modules(inputs, hidden)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    mine_bytes, theirs_bytes = held_for_backward(mine, x), held_for_backward(theirs, x)
    keep(held_row("lstm-memory", label_of(steps, batch, inputs, hidden), mine_bytes, theirs_bytes), [0.0])
