"""GRU rows: inference, training, packed sequences, bf16, one step, and the memory held for backward."""

from __future__ import annotations

from bench.layers import GRU
from bench.recurrent import (
    CALL,
    LOW_PRECISION,
    LOW_PRECISION_SHAPES,
    MEMORY_SHAPES,
    PACKED,
    SHAPES,
    SMALL_STEP,
    Rows,
    over,
    over_streams,
)

_SAVED = "the backward step waits for saved gates and reset products that left the cache"
ROWS = Rows(
    GRU,
    {
        "gru-inference": SMALL_STEP,
        "gru-training": _SAVED + "; with few sequences also: " + SMALL_STEP,
        "gru-packed": _SAVED + "; the last steps of the longest sequences fill only a part of the register tile",
        "gru-bf16": LOW_PRECISION,
        "gru-streaming": CALL,
    },
)


@over(SHAPES)
def test_gru_inference(shape, compare, plan):
    ROWS.inference(compare, plan, shape, 1.3)


@over(SHAPES)
def test_gru_training(shape, compare):
    ROWS.training(compare, shape, 2.5)


@over(PACKED, "shape order")
def test_gru_packed(shape, order, compare):
    ROWS.packed(compare, shape, order, 3.0)


@over(LOW_PRECISION_SHAPES[:2])
def test_gru_bf16(shape, compare):
    ROWS.low_precision(compare, shape, 1.4)


@over_streams
def test_gru_streaming(cell, hidden, compare):
    ROWS.streaming(compare, hidden, cell, 1.5)


@over(MEMORY_SHAPES)
def test_gru_memory(shape, keep):
    ROWS.memory(keep, shape)
