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

from .recurrent import run_layers, walk

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
    # the sizes of the steps, and of the whole batch
    if batch_sizes is None:
        steps, batch = [input.shape[1]] * input.shape[0], input.shape[1]
        rows = input.flatten(0, 1)
    else:
        steps = batch_sizes.tolist()
        batch, rows = steps[0], input

    count = 2 + 2 * bias + projection + peephole
    outputs, hidden, cells = [], [], []
    for d in range(2 if bidirectional else 1):
        optional = list(weights[d * count : (d + 1) * count])
        weight_ih, weight_hh = optional.pop(0), optional.pop(0)
        bias_ih, bias_hh = (optional.pop(0), optional.pop(0)) if bias else (None, None)
        weight_hr = optional.pop(0) if projection else None
        weight_peephole = optional.pop(0) if peephole else None

        h = input.new_zeros(batch, weight_hh.shape[1]) if h0 is None else h0[d]
        c = input.new_zeros(batch, weight_hh.shape[0] // 4) if c0 is None else c0[d]
        parts = F.linear(rows, weight_ih, bias_ih).split(steps)
        step = partial(
            _step, weight_hh=weight_hh, bias_hh=bias_hh, weight_hr=weight_hr, weight_peephole=weight_peephole
        )
        output, h, c = walk(parts, (h, c), step, d == 1, batch_sizes is not None)
        outputs.append(output)
        hidden.append(h)
        cells.append(c)

    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    if batch_sizes is None:
        output = output.unflatten(0, (input.shape[0], batch))
    return output, torch.stack(hidden), torch.stack(cells)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The twin of `pykernels.functional.lstm`: the same arguments and results, from plain PyTorch operators."""

    def layer(
        input: Tensor, batch_sizes: Tensor | None, states: tuple[Tensor, ...] | None, weights: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        h0, c0 = (None, None) if states is None else states
        return lstm_layer(input, batch_sizes, h0, c0, weights, bias, projection, peephole, bidirectional)

    turned = batch_first and batch_sizes is None
    if turned:
        input = input.transpose(0, 1)
    output, h_n, c_n = run_layers(layer, input, batch_sizes, hx, weights, num_layers, bidirectional, dropout, training)
    return output.transpose(0, 1) if turned else output, h_n, c_n


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
