"""The modules: parameters and shapes. The arithmetic is in `pykernels.functional`."""

from .gru import GRU, GRUCell
from .lstm import LSTM, LSTMCell
from .rnn import RNN, JordanRNN, RNNCell

__all__ = ["LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell", "JordanRNN"]
