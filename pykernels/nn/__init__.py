"""The modules: parameters and shapes. The arithmetic is in `pykernels.functional`."""

from .lstm import LSTM, LSTMCell

__all__ = ["LSTM", "LSTMCell"]
