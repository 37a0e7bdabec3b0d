"""The Elman and the Jordan RNN written as their equations, in plain PyTorch.

This is what `pykernels.functional.rnn` is held against, and what carries it where the kernels do not go: forward-mode
differentiation and second derivatives. Any dtype, any device, any number of derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .recurrent import Direction, run_directions, run_layers, unpack
from .variants import rnn_variant_layer
from .varied import with_variants

__all__ = ["rnn", "rnn_cell", "rnn_layer"]


def _step(
    part: Tensor,
    states: tuple[Tensor, ...],
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_ho: Tensor | None,
    bias_ho: Tensor | None,
    relu: bool,
) -> tuple[Tensor]:
    """One time step; `part` is W_ih x_t + b_ih, [B, H]."""
    (state,) = states
    h = part + F.linear(state, weight_hh, bias_hh)
    h = torch.relu(h) if relu else torch.tanh(h)
    return (h if weight_ho is None else F.linear(h, weight_ho, bias_ho),)


def rnn_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    projection: bool,
    relu: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    r"""One RNN layer over all time steps, in one or both directions: what the operator `rnn_forward` computes.

    .. math::
        h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    and, with `projection`,

    .. math::
        h_t &= f(W_{ih} x_t + b_{ih} + W_{hh} o_{t-1} + b_{hh}) \\
        o_t &= W_{ho} h_t + b_{ho}

    where f is max(0, .) if `relu` and tanh otherwise. The state S that is put out and fed back is h, or o with
    `projection`.

    Args:
        input: [T, B, I], or [N, I] when packed.
        batch_sizes: how many sequences still run at each step, int64 on the CPU, never growing; None if padded.
        h0: [D, B, S] or None for zeros; D is the number of directions.
        weights: for each direction weight_ih [H, I], weight_hh [H, S], bias_ih and bias_hh [H] if `bias`,
            weight_ho [S, H] if `projection`, bias_ho [S] if both.

    Returns:
        output [T, B, D*S] or [N, D*S], h_n [D, B, S].
    """

    def direction(own: Sequence[Tensor]) -> Direction:
        weight_ih, weight_hh, bias_ih, bias_hh, weight_ho, bias_ho = unpack(
            own, True, True, bias, bias, projection, projection and bias
        )
        step = partial(_step, weight_hh=weight_hh, bias_hh=bias_hh, weight_ho=weight_ho, bias_ho=bias_ho, relu=relu)
        return Direction(weight_ih, bias_ih, step, (weight_hh.shape[1],))

    output, h_n = run_directions(input, batch_sizes, (h0,), weights, bidirectional, direction)
    return output, h_n


def rnn(
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
    nonlinearity: str = "tanh",
    projection: bool = False,
    layer_norm: bool = False,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The twin of `pykernels.functional.rnn`: the same arguments and results, from plain PyTorch operators."""
    flags = (bias, projection, is_relu(nonlinearity), bidirectional)
    layer = with_variants(
        "rnn", rnn_layer, rnn_variant_layer, 1, training,
        layer_norm, zoneout, recurrent_dropout, weight_dropout,
    )  # fmt: skip
    output, h_n = run_layers(
        layer, input, batch_sizes, (hx,), weights, flags, num_layers, bidirectional, dropout, training, batch_first
    )
    return output, h_n


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """The twin of `pykernels.functional.rnn_cell`: one time step, input [B, I] -> h [B, H]."""
    h = input.new_zeros(input.shape[0], weight_hh.shape[1]) if hx is None else hx
    part = F.linear(input, weight_ih, bias_ih)
    return _step(part, (h,), weight_hh, bias_hh, None, None, is_relu(nonlinearity))[0]


def is_relu(nonlinearity: str) -> bool:
    """Whether the nonlinearity is "relu" rather than "tanh"; anything else is an error, in torch's words."""
    if nonlinearity in ("tanh", "relu"):
        return nonlinearity == "relu"
    raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
