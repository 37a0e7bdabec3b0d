"""What every recurrent twin shares: splitting flat weights, walking packed steps, stacking layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[[Tensor, "Tensor | None", "tuple[Tensor, ...] | None", Sequence[Tensor]], "tuple[Tensor, ...]"]
Step = Callable[[Tensor, "tuple[Tensor, ...]"], "tuple[Tensor, ...]"]


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


def run_layers(
    layer: Layer,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor, ...] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    training: bool,
) -> tuple[Tensor, ...]:
    """Run `num_layers` layers in sequence, with dropout between them.

    Returns the last layer's output, then every final state with the layers along its first dimension.
    """
    directions = 2 if bidirectional else 1
    count = len(weights) // num_layers
    finals: list[tuple[Tensor, ...]] = []
    for k in range(num_layers):
        own = None if states is None else tuple(s[k * directions : (k + 1) * directions] for s in states)
        input, *final = layer(input, batch_sizes, own, weights[k * count : (k + 1) * count])
        finals.append(tuple(final))
        if dropout != 0 and training and k < num_layers - 1:
            input = F.dropout(input, dropout, True)
    return input, *(torch.cat(parts) for parts in zip(*finals, strict=True))
