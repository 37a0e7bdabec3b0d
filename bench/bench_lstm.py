"""LSTM rows: inference, training, packed sequences, bf16, one step, and the memory held for backward."""

from __future__ import annotations

from bench.layers import LSTM
from bench.recurrent import (
    CALL,
    LOW_PRECISION,
    LOW_PRECISION_SHAPES,
    MEMORY_SHAPES,
    SMALL_STEP,
    Rows,
    Shape,
    over,
    over_streams,
)

# The least ratio to reach in inference.
SHAPES: dict[Shape, float] = {
    (100, 1, 64, 64): 1.1,
    (100, 1, 128, 256): 1.1,
    (100, 1, 512, 512): 1.0,
    (100, 8, 128, 256): 1.1,
    (100, 8, 256, 256): 1.1,
    (100, 32, 64, 64): 1.1,
    (100, 32, 128, 256): 1.1,
    (100, 32, 512, 512): 1.1,
    (57, 3, 37, 101): 1.1,
    (23, 5, 19, 77): 1.1,
    (41, 17, 130, 200): 1.1,
}

PACKED_SHAPES: list[Shape] = [(100, 8, 128, 256), (100, 32, 64, 64), (100, 32, 128, 256)]

_SAVED = (
    "the backward step waits for saved gates and cell states that left the cache (a third of its time is loads that "
    "miss), and the weight gradients read the gate gradients once more from the last-level cache while packing"
)
ROWS = Rows(
    LSTM,
    {
        "lstm-inference": SMALL_STEP,
        "lstm-training": _SAVED + "; with few sequences also: " + SMALL_STEP,
        "lstm-packed": _SAVED + "; the last steps of the longest sequences fill only a part of the register tile",
        "lstm-bf16": LOW_PRECISION,
        "lstm-streaming": CALL,
    },
)


@over(SHAPES, "shape target")
def test_lstm_inference(shape, target, compare, plan):
    ROWS.inference(compare, plan, shape, target)


@over(list(SHAPES))
def test_lstm_training(shape, compare):
    ROWS.training(compare, shape, 1.2)


@over([(shape, order) for shape in PACKED_SHAPES for order in ("sorted", "unsorted")], "shape order")
def test_lstm_packed(shape, order, compare):
    ROWS.packed(compare, shape, order, 3.0)


@over(LOW_PRECISION_SHAPES)
def test_lstm_bf16(shape, compare):
    ROWS.low_precision(compare, shape, 1.4)


@over_streams
def test_lstm_streaming(cell, hidden, compare):
    ROWS.streaming(compare, hidden, cell, 1.5)


@over(MEMORY_SHAPES)
def test_lstm_memory(shape, keep):
    ROWS.memory(keep, shape)
