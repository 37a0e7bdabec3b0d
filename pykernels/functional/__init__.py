"""The operators as functions. `pykernels.reference` has the same names in plain PyTorch."""

from .attention import scaled_dot_product_attention
from .bmu import bmu
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
from .radial_basis import radial_basis
from .random import random_mask
from .rbm import rbm_contrastive_divergence, rbm_free_energy, rbm_mean, rbm_sample, rbm_train_
from .rnn import rnn, rnn_cell
from .unfold import fold, unfold

__all__ = [
    "lstm", "lstm_cell", "gru", "gru_cell", "rnn", "rnn_cell",
    "scaled_dot_product_attention", "dot_attention", "multi_head_attention_forward", "layer_norm", "random_mask",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "max_unpool1d", "max_unpool2d", "max_unpool3d",
    "conv1d", "conv2d", "conv3d", "conv2d_relu_max_pool2d", "unfold", "fold",
    "bmu", "radial_basis",
    "rbm_mean", "rbm_sample", "rbm_free_energy", "rbm_contrastive_divergence", "rbm_train_",
    "hopfield_update", "hopfield_retrieve", "hopfield_packed_retrieve",
]  # fmt: skip
