"""The operators as functions. `pykernels.reference` has the same names in plain PyTorch."""

from .attention import scaled_dot_product_attention
from .gru import gru, gru_cell
from .lstm import lstm, lstm_cell
from .random import random_mask
from .rnn import rnn, rnn_cell

__all__ = ["lstm", "lstm_cell", "gru", "gru_cell", "rnn", "rnn_cell", "scaled_dot_product_attention", "random_mask"]
