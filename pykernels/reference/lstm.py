"""The LSTM written as its equations, in plain PyTorch.

This is what `pykernels.functional.lstm` is held against, and what carries it where the kernels do not go: forward-mode
differentiation and second derivatives. Any dtype, any device, any number of derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .recurrent import Direction, run_directions, run_layers, unpack
from .variants import lstm_variant_layer
from .varied import with_variants

__all__ = ["lstm", "lstm_cell", "lstm_layer"]


def _step(
    part: Tensor,
    states: tuple[Tensor, ...],
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    weight_peephole: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One time step; `part` is W_ih x_t + b_ih, [B, 4H]."""
    h, c = states
    i, f, g, o = (part + F.linear(h, weight_hh, bias_hh)).chunk(4, 1)
    if weight_peephole is not None:
        p_i, p_f, p_o = weight_peephole.unbind(0)
        i, f = i + p_i * c, f + p_f * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if weight_peephole is not None:
        o = o + p_o * c
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if weight_hr is None else F.linear(h, weight_hr)), c


def lstm_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    projection: bool,
    peephole: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One LSTM layer over all time steps, in one or both directions: what the operator `lstm_forward` computes.

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi} + p_i * c_{t-1}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf} + p_f * c_{t-1}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t * c_{t-1} + i_t * g_t \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho} + p_o * c_t) \\
        h_t &= W_{hr} (o_t * \tanh(c_t))

    without the terms in p where there is no peephole, and without W_hr where there is no projection.

    Args:
        input: [T, B, I], or [N, I] when packed.
        batch_sizes: how many sequences still run at each step, int64 on the CPU, never growing; None if padded.
        h0: [D, B, Ho] or None for zeros; D is the number of directions, Ho is P with a projection and H without.
        c0: [D, B, H] or None for zeros.
        weights: for each direction weight_ih [4H, I], weight_hh [4H, Ho], bias_ih and bias_hh [4H] if `bias`,
            weight_hr [P, H] if `projection`, weight_peephole [3, H] (rows i, f, o) if `peephole`.

    Returns:
        output [T, B, D*Ho] or [N, D*Ho], h_n [D, B, Ho], c_n [D, B, H].
    """

    def direction(own: Sequence[Tensor]) -> Direction:
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole = unpack(
            own, True, True, bias, bias, projection, peephole
        )
        step = partial(
            _step, weight_hh=weight_hh, bias_hh=bias_hh, weight_hr=weight_hr, weight_peephole=weight_peephole
        )
        return Direction(weight_ih, bias_ih, step, (weight_hh.shape[1], weight_hh.shape[0] // 4))

    output, h_n, c_n = run_directions(input, batch_sizes, (h0, c0), weights, bidirectional, direction)
    return output, h_n, c_n


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    projection: bool = False,
    peephole: bool = False,
    layer_norm: bool = False,
    zoneout: float | Sequence[float] = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The twin of `pykernels.functional.lstm`: the same arguments and results, from plain PyTorch operators."""
    h0, c0 = (None, None) if hx is None else hx
    flags = (bias, projection, peephole, bidirectional)
    layer = with_variants(
        "lstm", lstm_layer, lstm_variant_layer, 2, training,
        layer_norm, zoneout, recurrent_dropout, weight_dropout,
    )  # fmt: skip
    output, h_n, c_n = run_layers(
        layer, input, batch_sizes, (h0, c0), weights, flags, num_layers, bidirectional, dropout, training,
        batch_first,
    )  # fmt: skip
    return output, h_n, c_n


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_peephole: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The twin of `pykernels.functional.lstm_cell`: one time step, input [B, I] -> h, c [B, H]."""
    if hx is None:
        h = c = input.new_zeros(input.shape[0], weight_hh.shape[1])
    else:
        h, c = hx
    return _step(F.linear(input, weight_ih, bias_ih), (h, c), weight_hh, bias_hh, None, weight_peephole)
