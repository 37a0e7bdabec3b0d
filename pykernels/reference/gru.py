"""The GRU written as its equations, in plain PyTorch.

This is what `pykernels.functional.gru` is held against, and what carries it where the kernels do not go: forward-mode
differentiation and second derivatives. Any dtype, any device, any number of derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .recurrent import Direction, run_directions, run_layers, unpack
from .variants import gru_variant_layer
from .varied import with_variants

__all__ = ["gru", "gru_cell", "gru_layer"]


def _step(
    part: Tensor, states: tuple[Tensor, ...], weight_hh: Tensor, bias_hh: Tensor | None, reset_after: bool
) -> tuple[Tensor]:
    """One time step; `part` is W_ih x_t + b_ih, [B, 3H]."""
    (h,) = states
    if reset_after:
        of_input, of_hidden = part.chunk(3, 1), F.linear(h, weight_hh, bias_hh).chunk(3, 1)
        r, z = (torch.sigmoid(a + b) for a, b in zip(of_input[:2], of_hidden[:2], strict=True))
        n = torch.tanh(of_input[2] + r * of_hidden[2])
    else:
        gates = weight_hh.shape[0] // 3 * 2
        bias_rz, bias_n = (None, None) if bias_hh is None else (bias_hh[:gates], bias_hh[gates:])
        r, z = torch.sigmoid(part[:, :gates] + F.linear(h, weight_hh[:gates], bias_rz)).chunk(2, 1)
        n = torch.tanh(part[:, gates:] + F.linear(r * h, weight_hh[gates:], bias_n))
    return (n + z * (h - n),)


def gru_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    reset_after: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    r"""One GRU layer over all time steps, in one or both directions: what the operator `gru_forward` computes.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t * (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) * n_t + z_t * h_{t-1}

    and, where `reset_after` is false,

    .. math::
        n_t = \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t * h_{t-1}) + b_{hn})

    Args:
        input: [T, B, I], or [N, I] when packed.
        batch_sizes: how many sequences still run at each step, int64 on the CPU, never growing; None if padded.
        h0: [D, B, H] or None for zeros; D is the number of directions.
        weights: for each direction weight_ih [3H, I], weight_hh [3H, H], bias_ih and bias_hh [3H] if `bias`; the gates
            in the order r, z, n.

    Returns:
        output [T, B, D*H] or [N, D*H], h_n [D, B, H].
    """

    def direction(own: Sequence[Tensor]) -> Direction:
        weight_ih, weight_hh, bias_ih, bias_hh = unpack(own, True, True, bias, bias)
        step = partial(_step, weight_hh=weight_hh, bias_hh=bias_hh, reset_after=reset_after)
        return Direction(weight_ih, bias_ih, step, (weight_hh.shape[1],))

    output, h_n = run_directions(input, batch_sizes, (h0,), weights, bidirectional, direction)
    return output, h_n


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    reset_after: bool = True,
    layer_norm: bool = False,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The twin of `pykernels.functional.gru`: the same arguments and results, from plain PyTorch operators."""
    flags = (bias, reset_after, bidirectional)
    layer = with_variants(
        "gru", gru_layer, gru_variant_layer, 1, training,
        layer_norm, zoneout, recurrent_dropout, weight_dropout,
    )  # fmt: skip
    output, h_n = run_layers(
        layer, input, batch_sizes, (hx,), weights, flags, num_layers, bidirectional, dropout, training, batch_first
    )
    return output, h_n


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
) -> Tensor:
    """The twin of `pykernels.functional.gru_cell`: one time step, input [B, I] -> h [B, H]."""
    h = input.new_zeros(input.shape[0], weight_hh.shape[1]) if hx is None else hx
    return _step(F.linear(input, weight_ih, bias_ih), (h,), weight_hh, bias_hh, reset_after)[0]
