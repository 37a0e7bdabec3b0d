"""The twins: every operator of `pykernels.functional` in plain PyTorch, written as its equations."""

from .lstm import lstm, lstm_cell, lstm_layer

__all__ = ["lstm", "lstm_cell", "lstm_layer"]
