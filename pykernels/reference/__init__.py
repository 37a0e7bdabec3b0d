"""The twins: every operator of `pykernels.functional` in plain PyTorch, written as its equations."""

from .attention import attention, attention_keep, attention_weights, scaled_dot_product_attention
from .bmu import bmu, distances, unit_sums
from .conv import conv, conv1d, conv2d, conv3d
from .dot_attention import dot_attention
from .gru import gru, gru_cell, gru_layer
from .hopfield import (
    hebbian_weight,
    hopfield_packed_retrieve,
    hopfield_retrieve,
    hopfield_update,
    pack_signs,
    pseudo_inverse_weight,
    storkey_weight,
    unpack_signs,
)
from .layer_norm import layer_norm, layer_norm_total
from .lstm import lstm, lstm_cell, lstm_layer
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
from .radial_basis import default_gamma, radial_basis
from .random import random_mask
from .rbm import rbm_contrastive_divergence, rbm_free_energy, rbm_mean, rbm_sample, rbm_train_
from .rnn import rnn, rnn_cell, rnn_layer
from .unfold import fold, unfold
from .variants import gru_variant_layer, input_part_layer, lstm_variant_layer, rnn_variant_layer

__all__ = [
    "lstm", "lstm_cell", "lstm_layer",
    "gru", "gru_cell", "gru_layer",
    "rnn", "rnn_cell", "rnn_layer",
    "lstm_variant_layer", "gru_variant_layer", "rnn_variant_layer", "input_part_layer",
    "scaled_dot_product_attention", "attention", "attention_keep", "attention_weights", "dot_attention",
    "layer_norm", "layer_norm_total",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "max_unpool1d", "max_unpool2d", "max_unpool3d",
    "conv", "conv1d", "conv2d", "conv3d", "unfold", "fold",
    "bmu", "distances", "unit_sums", "radial_basis", "default_gamma",
    "hopfield_update", "hopfield_retrieve", "hopfield_packed_retrieve", "hebbian_weight", "storkey_weight",
    "pseudo_inverse_weight", "pack_signs", "unpack_signs",
    "random_mask",
    "rbm_mean", "rbm_sample", "rbm_free_energy", "rbm_contrastive_divergence", "rbm_train_",
]  # fmt: skip
