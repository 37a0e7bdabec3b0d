"""The recurrent layers with layer normalisation, zoneout and dropout of what is fed back: the operators
`torch.ops.pykernels.{lstm,gru,rnn}_variant_{forward,backward}` and `input_part_{forward,backward}`, and layers made of
them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..reference import varied
from ..reference.variants import gru_variant_layer, input_part_layer, lstm_variant_layer, rnn_variant_layer
from . import _recurrent
from ._recurrent_ops import Kind
from .random import random_mask


def _widths(kind: str) -> Callable[..., tuple[Sequence[int], Sequence[int]]]:
    """(weights, flags) -> the width of each state, and of the rows of everything kept."""
    gates, states = varied.GATES[kind], 2 if kind == "lstm" else 1

    def widths(weights: Sequence[Tensor], flags: Sequence[Any]) -> tuple[Sequence[int], Sequence[int]]:
        rows, width = weights[0].shape
        hidden, norm = rows // gates, flags[-2]
        saved = (rows if norm else 0, (3 if states == 2 else 1) if norm else 0)
        if states == 2:
            return (width, hidden), (4 * hidden, hidden, *saved)
        return (width,), (hidden if gates == 1 else 4 * hidden, *saved)

    return widths


def _input_widths(weights: Sequence[Tensor], flags: Sequence[Any]) -> tuple[Sequence[int], Sequence[int]]:
    columns, norm = weights[0].shape[0], flags[1]
    return (columns,), (columns if norm else 0, 1 if norm else 0)


_INPUT_PART = Kind(
    "input_part",
    input_part_layer,
    states=0,
    kept=2,  # normalized, stats
    flags=3,  # bias, layer_norm, bidirectional
    widths=_input_widths,
)
_KINDS = {
    "lstm": Kind(
        "lstm_variant",
        lstm_variant_layer,
        states=2,
        kept=4,  # gates, cells, normalized, stats
        flags=10,  # state_scale, stay, stay_cell, zoneout, zoneout_cell, bias, projection, peephole, layer_norm, bidir.
        widths=_widths("lstm"),
    ),
    "gru": Kind(
        "gru_variant",
        gru_variant_layer,
        states=1,
        kept=3,  # gates, normalized, stats
        flags=7,  # state_scale, stay, zoneout, bias, reset_after, layer_norm, bidirectional
        widths=_widths("gru"),
    ),
    "rnn": Kind(
        "rnn_variant",
        rnn_variant_layer,
        states=1,
        kept=3,  # gates, normalized, stats
        flags=7,  # state_scale, stay, zoneout, bias, relu, layer_norm, bidirectional
        widths=_widths("rnn"),
    ),
}


def runner(
    kind: Kind,
    training: bool,
    layer_norm: bool,
    zoneout: float | Sequence[float],
    recurrent_dropout: float,
    weight_dropout: float,
) -> Callable[..., tuple[Tensor, ...]]:
    """What runs one layer: `_recurrent.run_layer`, or the same with the variants, where any is active."""
    if layer_norm is False and zoneout == 0 and recurrent_dropout == 0 and weight_dropout == 0:
        return _recurrent.run_layer
    variants = varied.check_variants(layer_norm, zoneout, recurrent_dropout, weight_dropout, kind.states)
    if not variants.active(training):
        return _recurrent.run_layer
    return partial(_run_layer, variants, training)


def _run_layer(
    variants: varied.Variants,
    training: bool,
    kind: Kind,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    flags: Sequence[bool],
) -> tuple[Tensor, ...]:
    _check(kind, variants.layer_norm, input, batch_sizes, states, weights, flags)
    run = partial(
        varied.run_variant_layer,
        partial(_recurrent.run_layer, kind),
        partial(_recurrent.run_layer, _INPUT_PART),
        partial(_recurrent.run_layer, _KINDS[kind.name]),
        random_mask,
        kind.name,
        variants,
        training,
    )
    with _recurrent.without_autocast(input):
        return run(input, batch_sizes, tuple(states), weights, flags)


def _check(
    of: Kind,
    layer_norm: bool,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    flags: Sequence[bool],
) -> None:
    """Raise where there is not enough to draw masks and make input parts from; the operators check the rest."""
    kind = of.name
    bias, *extras, bidirectional = flags
    each = 4 if bias else 2
    if kind == "lstm":
        each += sum(extras) + (4 if layer_norm else 0)
    elif kind == "rnn" and extras[0]:
        each += each // 2  # and no layer_norm, which does not go together with a projection
    else:
        each += 2 if layer_norm else 0
    expected, rank = each * (2 if bidirectional else 1), 3 if batch_sizes is None else 2
    if len(weights) != expected:
        raise RuntimeError(f"[{kind}] expected {expected} weights, got {len(weights)}")
    if input.dim() != rank:
        form = "padded" if batch_sizes is None else "packed"
        raise RuntimeError(f"[{kind}] expected a {rank}-D {form} input, got {input.dim()}-D")
    if not input.is_floating_point():
        raise RuntimeError(f"[{kind}] expected input of a floating dtype, got {input.dtype}")
    if weights[1].dim() != 2:
        raise RuntimeError(f"[{kind}] expected weight_hh of two dimensions, got {weights[1].dim()}-D")
    for own in weights[1::each]:
        if own.shape != weights[1].shape:
            shapes = f"{list(weights[1].shape)} and {list(own.shape)}"
            raise RuntimeError(f"[{kind}] expected weight_hh of one shape for both directions, got {shapes}")
    for state in states:
        if state is not None and state.dim() != 3:
            raise RuntimeError(f"[{kind}] expected 3-D states, got {state.dim()}-D")
    if batch_sizes is not None and (batch_sizes.dim() != 1 or batch_sizes.numel() == 0):
        raise RuntimeError(f"[{kind}] expected batch_sizes of one dimension and at least one step")
