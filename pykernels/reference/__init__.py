"""The twins: every operator of `pykernels.functional` in plain PyTorch, written as its equations."""

from .gru import gru, gru_cell, gru_layer
from .lstm import lstm, lstm_cell, lstm_layer
from .rnn import rnn, rnn_cell, rnn_layer

__all__ = [
    "lstm", "lstm_cell", "lstm_layer",
    "gru", "gru_cell", "gru_layer",
    "rnn", "rnn_cell", "rnn_layer",
]  # fmt: skip
