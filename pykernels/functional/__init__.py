"""The operators as functions. `pykernels.reference` has the same names in plain PyTorch."""

from .attention import scaled_dot_product_attention
from .conv import conv1d, conv2d, conv3d
from .conv_pool import conv2d_relu_max_pool2d
from .dot_attention import dot_attention
from .gru import gru, gru_cell
from .hopfield import hopfield_packed_retrieve, hopfield_retrieve, hopfield_update
from .layer_norm import layer_norm
from .lstm import lstm, lstm_cell
from .multi_head_attention import multi_head_attention_forward
from .pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from .random import random_mask
from .rnn import rnn, rnn_cell
from .unfold import fold, unfold

__all__ = [
    "lstm", "lstm_cell", "gru", "gru_cell", "rnn", "rnn_cell",
    "scaled_dot_product_attention", "dot_attention", "multi_head_attention_forward", "layer_norm", "random_mask",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "max_unpool1d", "max_unpool2d", "max_unpool3d",
    "conv1d", "conv2d", "conv3d", "conv2d_relu_max_pool2d", "unfold", "fold",
    "hopfield_update", "hopfield_retrieve", "hopfield_packed_retrieve",
]  # fmt: skip
