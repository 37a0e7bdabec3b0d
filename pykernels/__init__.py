"""Native CPU and CUDA kernels behind the names that PyTorch users already know."""

import torch  # noqa: F401  (first: it loads what the compiled modules are linked to)

from . import _native, functional, nn, reference  # noqa: F401  (_native registers torch.ops.pykernels.*)
from ._version import __version__
from .nn import (
    GRU,
    LSTM,
    RNN,
    Conv1d,
    Conv2d,
    Conv3d,
    DotAttention,
    Fold,
    GRUCell,
    JordanRNN,
    LayerNorm,
    LSTMCell,
    MultiheadAttention,
    RNNCell,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    Unfold,
)  # fmt: skip

__all__ = [
    "LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell", "JordanRNN",
    "MultiheadAttention", "DotAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "LayerNorm",
    "Conv1d", "Conv2d", "Conv3d", "Unfold", "Fold",
    "functional", "nn", "reference", "__version__",
]  # fmt: skip
