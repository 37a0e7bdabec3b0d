"""The modules: parameters and shapes. The arithmetic is in `pykernels.functional`."""

from .attention import DotAttention, MultiheadAttention
from .conv import Conv1d, Conv2d, Conv3d
from .gru import GRU, GRUCell
from .layer_norm import LayerNorm
from .lstm import LSTM, LSTMCell
from .rnn import RNN, JordanRNN, RNNCell
from .transformer import TransformerDecoderLayer, TransformerEncoderLayer
from .unfold import Fold, Unfold

__all__ = [
    "LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell", "JordanRNN",
    "MultiheadAttention", "DotAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "LayerNorm",
    "Conv1d", "Conv2d", "Conv3d", "Unfold", "Fold",
]  # fmt: skip
