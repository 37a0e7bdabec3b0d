"""The modules: parameters and shapes. The arithmetic is in `pykernels.functional`."""

from .attention import DotAttention, MultiheadAttention
from .conv import Conv1d, Conv2d, Conv3d
from .gru import GRU, GRUCell
from .hopfield import Hopfield
from .layer_norm import LayerNorm
from .lstm import LSTM, LSTMCell
from .modern_hopfield import ModernHopfield
from .pool import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)
from .rnn import RNN, JordanRNN, RNNCell
from .transformer import TransformerDecoderLayer, TransformerEncoderLayer
from .unfold import Fold, Unfold

__all__ = [
    "LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell", "JordanRNN",
    "MultiheadAttention", "DotAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "LayerNorm",
    "MaxPool1d", "MaxPool2d", "MaxPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d",
    "AvgPool1d", "AvgPool2d", "AvgPool3d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d",
    "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
    "Conv1d", "Conv2d", "Conv3d", "Unfold", "Fold",
    "Hopfield", "ModernHopfield",
]  # fmt: skip
