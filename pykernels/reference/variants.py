"""The variants of the recurrent layers written as their equations, in plain PyTorch: layer normalisation inside the
cell, zoneout, and dropout of the state that is fed back or of the weights that it meets.

`*_variant_layer` are the twins of the operators `*_variant_forward`, which run the steps from their input parts on.
How input parts and masks are made: `varied.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .recurrent import Step, join_directions, unpack, walk

EPSILON = 1e-5
"""What layer normalisation adds to a variance, as `torch.nn.LayerNorm` does by default."""


def input_part_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    layer_norm: bool,
    bidirectional: bool,
) -> tuple[Tensor]:
    r"""The input's part of all steps: what the operator `input_part_forward` computes.

    .. math::
        u = N(W_i x) + b_i

    where N is layer normalisation of all gates, or nothing without `layer_norm`.

    Args:
        input: x, [T, B, I], or [N, I] when packed.
        batch_sizes: None if padded; of packed input nothing else is asked.
        weights: for each direction weight_ih [G*H, I], bias_ih [G*H] if `bias`, the gain [G*H] of N if `layer_norm`.

    Returns:
        u, [T, B, D*G*H] or [N, D*G*H].
    """
    directions = 2 if bidirectional else 1
    count = len(weights) // directions
    parts = []
    for d in range(directions):
        weight_ih, bias_ih, gain = unpack(weights[d * count : (d + 1) * count], True, bias, layer_norm)
        if layer_norm:
            parts.append(F.layer_norm(F.linear(input, weight_ih), gain.shape, gain, bias_ih, EPSILON))
        else:
            parts.append(F.linear(input, weight_ih, bias_ih))
    return (parts[0] if directions == 1 else torch.cat(parts, -1),)


Ending = Callable[[Tensor, Tensor, "tuple[Tensor, ...]"], "tuple[Tensor, ...]"]
"""(input part, what is fed back, states) -> the new states."""


def _with_noise(
    ending: Ending, scale: Tensor | None, stay: Sequence[Tensor | None], zoneout: Sequence[float], widths: Sequence[int]
) -> Step:
    """A step of `walk`. Its part is the input part with, beside it, the masks of the states that stay."""

    def step(part: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        masked = [width for mask, width in zip(stay, widths, strict=True) if mask is not None]
        own, *masks = part.split([part.shape[1] - sum(masked), *masked], 1)
        fed = states[0] if scale is None else states[0] * scale[: part.shape[0]]
        new = ending(own, fed, states)
        kept = []
        for before, after, mask, share in zip(states, new, stay, zoneout, strict=True):
            if mask is not None:
                after = torch.where(masks.pop(0) != 0, before, after)
            elif share != 0:
                after = after + share * (before - after)
            kept.append(after)
        return tuple(kept)

    return step


def _run(
    parts: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    scale: Tensor | None,
    stay: Sequence[Tensor | None],
    zoneout: Sequence[float],
    bidirectional: bool,
    widths: Callable[[Sequence[Tensor]], tuple[int, ...]],
    ending: Callable[[Sequence[Tensor]], Ending],
) -> tuple[Tensor, ...]:
    """Every step of one layer; `widths` and `ending` are those of one direction's weights."""
    sizes = [parts.shape[1]] * parts.shape[0] if batch_sizes is None else batch_sizes.tolist()
    rows = parts.flatten(0, 1) if batch_sizes is None else parts
    directions = 2 if bidirectional else 1
    count = len(weights) // directions
    found = []
    for d, own_rows in enumerate(rows.chunk(directions, 1)):
        own = weights[d * count : (d + 1) * count]
        wide = widths(own)
        masks = [None if mask is None else mask[d] for mask in stay]
        beside = torch.cat([own_rows, *(m.to(rows.dtype) for m in masks if m is not None)], 1)
        start = tuple(
            rows.new_zeros(sizes[0] if sizes else 0, width) if state is None else state[d]
            for state, width in zip(states, wide, strict=True)
        )
        step = _with_noise(ending(own), None if scale is None else scale[d], masks, zoneout, wide)
        found.append(walk(beside.split(sizes), start, step, d == 1, batch_sizes is not None))
    return join_directions(found, parts if batch_sizes is None else None)


def _sums(fed: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, weight_ln: Tensor | None) -> Tensor:
    """What a step adds to its input part: W_hh h + b, with W_hh h normalised over all gates where there is a gain."""
    if weight_ln is None:
        return F.linear(fed, weight_hh, bias_hh)
    return F.layer_norm(F.linear(fed, weight_hh), (weight_hh.shape[0],), weight_ln, bias_hh, EPSILON)


def lstm_variant_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    state_scale: Tensor | None,
    stay: Tensor | None,
    stay_cell: Tensor | None,
    zoneout: float,
    zoneout_cell: float,
    bias: bool,
    projection: bool,
    peephole: bool,
    layer_norm: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The steps of one LSTM layer, with its variants: what the operator `lstm_variant_forward` computes.

    .. math::
        a_t &= u_t + N(W_h (s * h_{t-1})) + b, \qquad i, f, g, o \text{ the quarters of } a_t \\
        \tilde{c}_t &= \sigma(f + p_f * c_{t-1}) * c_{t-1} + \sigma(i + p_i * c_{t-1}) * \tanh(g) \\
        \tilde{h}_t &= W_r (\sigma(o + p_o * \tilde{c}_t) * \tanh(N_c(\tilde{c}_t))) \\
        h_t &= z^h_t * h_{t-1} + (1 - z^h_t) * \tilde{h}_t \\
        c_t &= z^c_t * c_{t-1} + (1 - z^c_t) * \tilde{c}_t

    N and N_c are layer normalisation, of all gates and of the cell, or nothing without `layer_norm`.

    Args:
        input: the input parts u, [T, B, D*4H], or [N, D*4H] when packed.
        batch_sizes, h0, c0: as in `lstm_layer`.
        weights: for each direction weight_hh [4H, Ho], bias_hh [4H] if `bias`, weight_hr [P, H] if `projection`,
            weight_peephole [3, H] if `peephole`, and if `layer_norm` the gain [4H] of N, and gain and shift [H] of N_c.
        state_scale: s, [D, B, Ho], or None for ones.
        stay, stay_cell: z of h [D, N, Ho] and of c [D, N, H], not zero where the state stays; uint8. None: z is
            `zoneout`, `zoneout_cell`, everywhere.

    Returns:
        output [T, B, D*Ho] or [N, D*Ho], h_n [D, B, Ho], c_n [D, B, H].
    """

    def ending(own: Sequence[Tensor]) -> Ending:
        weight_hh, bias_hh, weight_hr, diagonal, gain, cell_gain, cell_shift = unpack(
            own, True, bias, projection, peephole, layer_norm, layer_norm, layer_norm
        )

        def finish(part: Tensor, fed: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            c = states[1]
            i, f, g, o = (part + _sums(fed, weight_hh, bias_hh, gain)).chunk(4, 1)
            if diagonal is not None:
                i, f = i + diagonal[0] * c, f + diagonal[1] * c
            new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            if diagonal is not None:
                o = o + diagonal[2] * new
            seen = F.layer_norm(new, new.shape[1:], cell_gain, cell_shift, EPSILON) if layer_norm else new
            h = torch.sigmoid(o) * torch.tanh(seen)
            return (h if weight_hr is None else F.linear(h, weight_hr)), new

        return finish

    output, h_n, c_n = _run(
        input, batch_sizes, (h0, c0), weights, state_scale, (stay, stay_cell), (zoneout, zoneout_cell), bidirectional,
        lambda own: (own[0].shape[1], own[0].shape[0] // 4), ending,
    )  # fmt: skip
    return output, h_n, c_n


def gru_variant_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    state_scale: Tensor | None,
    stay: Tensor | None,
    zoneout: float,
    bias: bool,
    reset_after: bool,
    layer_norm: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    r"""The steps of one GRU layer, with its variants: what the operator `gru_variant_forward` computes.

    .. math::
        q_t &= N(W_h (s * h_{t-1})) + b \\
        r_t &= \sigma(u^r_t + q^r_t), \quad z_t = \sigma(u^z_t + q^z_t), \quad n_t = \tanh(u^n_t + r_t * q^n_t) \\
        \tilde{h}_t &= (1 - z_t) * n_t + z_t * h_{t-1} \\
        h_t &= k_t * h_{t-1} + (1 - k_t) * \tilde{h}_t

    where k is what `stay` or `zoneout` say, and N is layer normalisation of all gates, or nothing without `layer_norm`.
    Where `reset_after` is false, in which case there is no `layer_norm`,

    .. math::
        n_t = \tanh(u^n_t + W_{hn} (r_t * s * h_{t-1}) + b_n)

    Args:
        input: the input parts u, [T, B, D*3H], or [N, D*3H] when packed.
        batch_sizes, h0: as in `gru_layer`.
        weights: for each direction weight_hh [3H, H], bias_hh [3H] if `bias`, the gain [3H] of N if `layer_norm`.
        state_scale, stay, zoneout: as in `lstm_variant_layer`.

    Returns:
        output [T, B, D*H] or [N, D*H], h_n [D, B, H].
    """

    def ending(own: Sequence[Tensor]) -> Ending:
        weight_hh, bias_hh, gain = unpack(own, True, bias, layer_norm)
        gates = weight_hh.shape[0] // 3 * 2
        bias_rz, bias_n = (None, None) if bias_hh is None else (bias_hh[:gates], bias_hh[gates:])

        def finish(part: Tensor, fed: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if reset_after:
                sums = _sums(fed, weight_hh, bias_hh, gain)
                r, z = torch.sigmoid(part[:, :gates] + sums[:, :gates]).chunk(2, 1)
                n = torch.tanh(part[:, gates:] + r * sums[:, gates:])
            else:
                r, z = torch.sigmoid(part[:, :gates] + F.linear(fed, weight_hh[:gates], bias_rz)).chunk(2, 1)
                n = torch.tanh(part[:, gates:] + F.linear(r * fed, weight_hh[gates:], bias_n))
            return (n + z * (states[0] - n),)

        return finish

    output, h_n = _run(
        input, batch_sizes, (h0,), weights, state_scale, (stay,), (zoneout,), bidirectional,
        lambda own: (own[0].shape[1],), ending,
    )  # fmt: skip
    return output, h_n


def rnn_variant_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    state_scale: Tensor | None,
    stay: Tensor | None,
    zoneout: float,
    bias: bool,
    relu: bool,
    layer_norm: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    r"""The steps of one RNN layer, with its variants: what the operator `rnn_variant_forward` computes.

    .. math::
        \tilde{h}_t &= f(u_t + N(W_h (s * h_{t-1})) + b) \\
        h_t &= k_t * h_{t-1} + (1 - k_t) * \tilde{h}_t

    where k is what `stay` or `zoneout` say, N is layer normalisation, or nothing without `layer_norm`, and f is
    max(0, .) if `relu` and tanh otherwise.

    Args:
        input: the input parts u, [T, B, D*H], or [N, D*H] when packed.
        batch_sizes, h0: as in `rnn_layer`.
        weights: for each direction weight_hh [H, H], bias_hh [H] if `bias`, the gain [H] of N if `layer_norm`.
        state_scale, stay, zoneout: as in `lstm_variant_layer`.

    Returns:
        output [T, B, D*H] or [N, D*H], h_n [D, B, H].
    """

    def ending(own: Sequence[Tensor]) -> Ending:
        weight_hh, bias_hh, gain = unpack(own, True, bias, layer_norm)
        activation = torch.relu if relu else torch.tanh
        return lambda part, fed, states: (activation(part + _sums(fed, weight_hh, bias_hh, gain)),)

    output, h_n = _run(
        input, batch_sizes, (h0,), weights, state_scale, (stay,), (zoneout,), bidirectional,
        lambda own: (own[0].shape[1],), ending,
    )  # fmt: skip
    return output, h_n
