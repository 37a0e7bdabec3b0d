"""What every recurrent twin shares: walking packed steps, running both directions, stacking layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[..., "tuple[Tensor, ...]"]
"""(input, batch_sizes, *states, weights, *flags) -> output and each final state."""
Step = Callable[[Tensor, "tuple[Tensor, ...]"], "tuple[Tensor, ...]"]


class Direction(NamedTuple):
    """How one direction of a layer runs.

    weight_ih, bias_ih: of the input part of a step.
    step: (input part, states) -> new states, all of them with one row for each sequence; the first is put out.
    widths: of each state.
    """

    weight_ih: Tensor
    bias_ih: Tensor | None
    step: Step
    widths: tuple[int, ...]


def unpack(weights: Sequence[Tensor], *present: bool) -> list[Any]:
    """The weights of one direction by their places: None for each that is not `present`."""
    rest = iter(weights)
    return [next(rest) if here else None for here in present]


def walk(
    steps: Sequence[Tensor], states: tuple[Tensor, ...], step: Step, reverse: bool, packed: bool
) -> tuple[Tensor, ...]:
    """Run one direction over `steps` and return every step's output, joined, and each sequence's final states.

    Args:
        steps: the input part of every time step, [B_t, ...] each. B_t is the same for all of them when padded, and
            never grows when packed.
        states: the initial states, [B, ...] each; the first is the one that is put out.
        step: (input part, states) -> new states, all of B_t rows.
        reverse: from the last step to the first, so that each sequence starts at its own last step.
        packed: the batch changes from step to step. (Nothing branches on how, so that this can be traced.)
    """
    if not steps:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

    outputs: list[Tensor] = []
    if reverse:
        waiting = states
        if packed:
            states = tuple(s[:0] for s in states)
        for part in reversed(steps):
            if packed:
                # sequences whose last step this is join with their initial states
                running, size = states[0].shape[0], part.shape[0]
                states = tuple(torch.cat((s, w[running:size])) for s, w in zip(states, waiting, strict=True))
            states = step(part, states)
            outputs.append(states[0])
        return torch.cat(outputs[::-1]), *states

    finished: list[tuple[Tensor, ...]] = []
    for part in steps:
        if packed:
            # sequences that have ended leave, the shortest first
            size = part.shape[0]
            finished.append(tuple(s[size:] for s in states))
            states = tuple(s[:size] for s in states)
        states = step(part, states)
        outputs.append(states[0])
    if packed:
        states = tuple(torch.cat(parts) for parts in zip(states, *reversed(finished), strict=True))
    return torch.cat(outputs), *states


def run_directions(
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor | None, ...],
    weights: Sequence[Tensor],
    bidirectional: bool,
    direction: Callable[[Sequence[Tensor]], Direction],
) -> tuple[Tensor, ...]:
    """Run one layer over all steps, in one or both directions.

    Args:
        input: [T, B, I], or [N, I] when packed.
        batch_sizes: how many sequences still run at each step, int64 on the CPU, never growing; None if padded.
        states: the initial states, [D, B, ...] each or None for zeros; D is the number of directions.
        weights: of all directions, in turn.
        direction: makes of one direction's weights what is to be done with them.

    Returns:
        output [T, B, D*...] or [N, D*...], then each final state [D, B, ...].
    """
    # the sizes of the steps, and of the whole batch
    if batch_sizes is None:
        steps, batch = [input.shape[1]] * input.shape[0], input.shape[1]
        rows = input.flatten(0, 1)
    else:
        steps = batch_sizes.tolist()
        batch, rows = steps[0], input

    directions = 2 if bidirectional else 1
    count = len(weights) // directions
    found = []
    for d in range(directions):
        weight_ih, bias_ih, step, widths = direction(weights[d * count : (d + 1) * count])
        own = tuple(
            input.new_zeros(batch, width) if state is None else state[d]
            for state, width in zip(states, widths, strict=True)
        )
        parts = F.linear(rows, weight_ih, bias_ih).split(steps)
        found.append(walk(parts, own, step, d == 1, batch_sizes is not None))

    return join_directions(found, input if batch_sizes is None else None)


def join_directions(found: Sequence[tuple[Tensor, ...]], padded: Tensor | None) -> tuple[Tensor, ...]:
    """One layer's results out of what `walk` has found for each direction; `padded` is the input, if it is padded."""
    outputs, *finals = zip(*found, strict=True)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    if padded is not None:
        output = output.unflatten(0, padded.shape[:2])
    return output, *(torch.stack(final) for final in finals)


def run_layers(
    layer: Layer,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor | None, ...],
    weights: Sequence[Tensor],
    flags: tuple[bool, ...],
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    training: bool,
    batch_first: bool = False,
) -> tuple[Tensor, ...]:
    """Run `num_layers` layers in sequence, with dropout between them.

    Returns the last layer's output, then every final state with the layers along its first dimension.
    """
    turned = batch_first and batch_sizes is None
    if turned:
        input = input.transpose(0, 1)
    directions = 2 if bidirectional else 1
    count = len(weights) // num_layers
    finals: list[tuple[Tensor, ...]] = []
    for k in range(num_layers):
        own = (None if s is None else s[k * directions : (k + 1) * directions] for s in states)
        input, *final = layer(input, batch_sizes, *own, weights[k * count : (k + 1) * count], *flags)
        finals.append(tuple(final))
        if dropout != 0 and training and k < num_layers - 1:
            input = F.dropout(input, dropout, True)
    if turned:
        input = input.transpose(0, 1)
    return input, *(torch.cat(parts) for parts in zip(*finals, strict=True))
