"""A recurrent layer with its variants, made of the plain layer, or of the operator that runs the steps from their input
parts on: what the input gives, and the random masks. Shared by the functions and their twins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from .random import draw_seed, random_mask
from .recurrent import Layer
from .variants import input_part_layer


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
    each: tuple[Any, ...] = tuple(zoneout) if isinstance(zoneout, (tuple, list)) else (zoneout,) * states
    if len(each) != states:
        raise ValueError(f"zoneout should be a number or one for each of {states} states, got {zoneout!r}")
    if not isinstance(layer_norm, bool):
        raise TypeError(f"layer_norm should be of type bool, got: {type(layer_norm).__name__}")
    names = (*["zoneout"] * states, "recurrent_dropout", "weight_dropout")
    for name, p in zip(names, (*each, recurrent_dropout, weight_dropout), strict=True):
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise ValueError(f"{name} should be a number in range [0, 1] representing a probability, got {p!r}")
    return Variants(layer_norm, each, recurrent_dropout, weight_dropout)


def run_variant_layer(
    plain: Run,
    input_part: Run,
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
        input_part: what the input gives for all steps, with flags (bias, layer_norm, bidirectional).
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
    seed = draw_seed() if random else None

    def dropout(stream: int, size: Sequence[int], p: float) -> Tensor:
        return mask(weight_hh, seed, stream, size, 1 - p, 1 / (1 - p) if p < 1 else 0.0)

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

    of_input, recurrent = [], []
    norms = (4 if len(states) == 2 else 2) if variants.layer_norm else 0
    for own in each:
        weight_ih, weight_hh, *rest = own
        bias_ih = [rest.pop(0)] if bias else []
        gains = rest[len(rest) - norms :]
        of_input += [weight_ih, *bias_ih, *gains[:1]]
        recurrent += [weight_hh, *rest[: len(rest) - norms], *gains[1:]]
    (parts,) = input_part(input, batch_sizes, (), of_input, (bias, variants.layer_norm, bidirectional))
    varied = (state_scale, *stay, *variants.zoneout, *own_flags, variants.layer_norm, bidirectional)
    return steps(parts, batch_sizes, states, recurrent, varied)


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
            partial(run, plain), partial(run, input_part_layer), partial(run, steps), random_mask, kind, variants,
            training, input, batch_sizes, rest[:states], rest[states], rest[states + 1 :],
        )  # fmt: skip

    return layer


def _batch(input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor | None]) -> int:
    """The number of sequences."""
    if batch_sizes is None:
        return input.shape[1]
    for state in states:
        if state is not None:
            return state.shape[1]
    return int(batch_sizes[0])
