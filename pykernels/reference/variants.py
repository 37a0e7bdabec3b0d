"""The variants of the recurrent layers written as their equations, in plain PyTorch: layer normalisation inside the
cell, zoneout, and dropout of the state that is fed back or of the weights that it meets.

`*_variant_layer` are the twins of the operators `*_variant_forward`, which run the steps from their input parts on.
`variant_layer` makes a whole layer of such an operator, or of its twin: the input parts, and the random masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .random import random_mask
from .recurrent import Layer, Step, join_directions, unpack, walk

EPSILON = 1e-5
"""What layer normalisation adds to a variance, as `torch.nn.LayerNorm` does by default."""


class Variants(NamedTuple):
    """What a layer varies.

    layer_norm: the sums of the input and of the state are normalised over all gates, and an LSTM's cell before it
        goes out.
    zoneout: the probability with which a unit keeps its last state through a step: of h and, for an LSTM, of c.
    recurrent_dropout: the probability with which a unit of the state is not fed back, at any step.
    weight_dropout: the probability with which a recurrent weight is zero.
    """

    layer_norm: bool = False
    zoneout: tuple[float, ...] = (0.0,)
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0

    def active(self, training: bool) -> bool:
        """Whether there is anything to do other than in the plain layer."""
        return (
            self.layer_norm or any(self.zoneout) or (training and (self.recurrent_dropout or self.weight_dropout) > 0)
        )


# --- the steps, from their input parts on

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


# --- a whole layer

Run = Callable[
    [Tensor, "Tensor | None", Sequence["Tensor | None"], Sequence[Tensor], Sequence[Any]], "tuple[Tensor, ...]"
]
"""(input, batch_sizes, states, weights, flags) -> output and each final state."""
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
WEIGHTS, STATE, STAY = 0, 1, 2
"""The streams of random numbers; a second state's, which stays by itself, is the one after STAY."""


def check_variants(
    layer_norm: bool, zoneout: float | Sequence[float], recurrent_dropout: float, weight_dropout: float, states: int
) -> Variants:
    """The variants out of a user's arguments, with one zoneout for each state."""
    each = tuple(zoneout) if isinstance(zoneout, (tuple, list)) else (zoneout,) * states
    if len(each) != states:
        raise ValueError(f"zoneout should be a number or one for each of {states} states, got {zoneout!r}")
    names = (*["zoneout"] * states, "recurrent_dropout", "weight_dropout")
    for name, p in zip(names, (*each, recurrent_dropout, weight_dropout), strict=True):
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise ValueError(f"{name} should be a number in range [0, 1] representing a probability, got {p!r}")
    return Variants(layer_norm, each, recurrent_dropout, weight_dropout)


def run_variant_layer(
    plain: Run,
    steps: Run,
    mask: Callable[..., Tensor],
    kind: str,
    variants: Variants,
    training: bool,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    flags: Sequence[bool],
) -> tuple[Tensor, ...]:
    """One layer with its variants: masks are drawn and input parts made, and then it runs step by step.

    Args:
        plain: the whole layer without variants.
        steps: the layer from its input parts on, with flags (state_scale, stay of each state, zoneout of each state,
            *own flags, layer_norm, bidirectional), where own flags are those of the plain layer without the last, and
            for the RNN without its second, `projection`.
        mask: `random_mask`.
        kind: "lstm", "gru" or "rnn".
        weights: for each direction those of the plain layer, then with `layer_norm` the gains of the input's and of
            the state's sums, and gain and shift of an LSTM's cell.
        flags: those of the plain layer: `bias` first, `bidirectional` last.
    """
    bias, bidirectional, own_flags = flags[0], flags[-1], (flags[0], flags[2]) if kind == "rnn" else flags[:-1]
    directions = 2 if bidirectional else 1
    count = len(weights) // directions
    each = [list(weights[d * count : (d + 1) * count]) for d in range(directions)]
    weight_hh = each[0][1]
    hidden, width = weight_hh.shape[0] // GATES[kind], weight_hh.shape[1]
    zoneout = variants.zoneout if training else ()
    random = training and (variants.weight_dropout > 0 or variants.recurrent_dropout > 0 or any(zoneout))
    seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device="cpu") if random else None

    def dropout(stream: int, size: Sequence[int], p: float) -> Tensor:
        return mask(input, seed, stream, size, 1 - p, 1 / (1 - p) if p < 1 else 0.0)

    if training and variants.weight_dropout > 0:
        kept = dropout(WEIGHTS, (directions, *weight_hh.shape), variants.weight_dropout)
        for own, scale in zip(each, kept, strict=True):
            own[1] = own[1] * scale
    if not variants.layer_norm and not any(variants.zoneout) and not (training and variants.recurrent_dropout > 0):
        return plain(input, batch_sizes, states, [w for own in each for w in own], flags)
    if kind == "rnn" and flags[1]:
        raise ValueError("layer_norm, zoneout and recurrent_dropout do not go together with projection")
    if kind == "gru" and variants.layer_norm and not flags[1]:
        raise ValueError("layer_norm needs reset_after=True, where all gates are one product")

    state_scale = None
    if training and variants.recurrent_dropout > 0:
        state_scale = dropout(
            STATE, (directions, _batch(input, batch_sizes, states), width), variants.recurrent_dropout
        )
    rows = input.shape[0] if batch_sizes is not None else input.shape[0] * input.shape[1]
    stay: list[Tensor | None] = [None] * len(variants.zoneout)
    for i, (p, wide) in enumerate(zip(zoneout, (width, hidden), strict=False)):
        if p > 0:
            stay[i] = mask(input, seed, STAY + i, (directions, rows, wide), p, 1.0, True)

    parts, recurrent = [], []
    norms = (4 if len(states) == 2 else 2) if variants.layer_norm else 0
    for own in each:
        weight_ih, weight_hh, *rest = own
        bias_ih = rest.pop(0) if bias else None
        gains = rest[len(rest) - norms :]
        recurrent += [weight_hh, *rest[: len(rest) - norms], *gains[1:]]
        if gains:
            part = F.linear(input, weight_ih)
            parts.append(F.layer_norm(part, (part.shape[-1],), gains[0], bias_ih, EPSILON))
        else:
            parts.append(F.linear(input, weight_ih, bias_ih))
    whole = parts[0] if directions == 1 else torch.cat(parts, -1)
    varied = (state_scale, *stay, *variants.zoneout, *own_flags, variants.layer_norm, bidirectional)
    return steps(whole, batch_sizes, states, recurrent, varied)


def with_variants(
    kind: str,
    plain: Layer,
    steps: Layer,
    states: int,
    training: bool,
    layer_norm: bool,
    zoneout: float | Sequence[float],
    recurrent_dropout: float,
    weight_dropout: float,
) -> Layer:
    """The twin of a layer with its variants, out of that of the plain layer and that of the steps."""
    variants = check_variants(layer_norm, zoneout, recurrent_dropout, weight_dropout, states)
    if not variants.active(training):
        return plain

    def run(layer: Layer, input: Tensor, batch_sizes: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        own, weights, flags = rest
        return layer(input, batch_sizes, *own, weights, *flags)

    def layer(input: Tensor, batch_sizes: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        return run_variant_layer(
            partial(run, plain), partial(run, steps), random_mask, kind, variants, training,
            input, batch_sizes, rest[:states], rest[states], rest[states + 1 :],
        )  # fmt: skip

    return layer


def _batch(input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor | None]) -> int:
    """The number of sequences."""
    if batch_sizes is None:
        return input.shape[1]
    return next((state.shape[1] for state in states if state is not None), None) or int(batch_sizes[0])
