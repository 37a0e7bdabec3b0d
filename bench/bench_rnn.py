"""Elman RNN rows: inference, training, packed sequences, bf16, and one step.

There is no row about memory: the forward pass holds nothing for the backward pass but its output.
"""

from __future__ import annotations

from bench.layers import RNN
from bench.recurrent import (
    CALL,
    LOW_PRECISION,
    LOW_PRECISION_SHAPES,
    PACKED,
    SHAPES,
    SMALL_STEP,
    Rows,
    over,
    over_streams,
)

RELU_SHAPES = [(100, 32, 128, 256)]

ROWS = Rows(
    RNN,
    {
        "rnn-inference": SMALL_STEP,
        "rnn-training": SMALL_STEP,
        "rnn-packed": SMALL_STEP + "; the last steps of the longest sequences fill only a part of the register tile",
        "rnn-bf16": LOW_PRECISION,
        "rnn-streaming": CALL,
    },
)


@over(SHAPES)
def test_rnn_inference(shape, compare, plan):
    ROWS.inference(compare, plan, shape, 1.5)


@over(RELU_SHAPES)
def test_rnn_inference_relu(shape, compare, plan):
    ROWS.inference(compare, plan, shape, 1.5, nonlinearity="relu")


@over(SHAPES)
def test_rnn_training(shape, compare):
    ROWS.training(compare, shape, 2.0)


@over(RELU_SHAPES)
def test_rnn_training_relu(shape, compare):
    ROWS.training(compare, shape, 2.0, nonlinearity="relu")


@over(PACKED, "shape order")
def test_rnn_packed(shape, order, compare):
    ROWS.packed(compare, shape, order, 3.0)


@over(LOW_PRECISION_SHAPES[:2])
def test_rnn_bf16(shape, compare):
    ROWS.low_precision(compare, shape, 1.4)


@over_streams
def test_rnn_streaming(cell, hidden, compare):
    ROWS.streaming(compare, hidden, cell, 1.5)
