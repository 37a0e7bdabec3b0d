"""The operators as functions. `pykernels.reference` has the same names in plain PyTorch."""

from .lstm import lstm, lstm_cell

__all__ = ["lstm", "lstm_cell"]
