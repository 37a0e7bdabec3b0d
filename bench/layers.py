"""What the rows of recurrent layers share: kinds, operations and bytes, modules in pairs, the training step, checks.

Operations, with N = T*B (packed: the sum of the lengths) and G the rows of a weight matrix over H (LSTM 4, GRU 3,
RNN 1): the products take 2 * N * GH * (I + H) in the forward pass and twice that in the backward pass (once for the
inputs' gradients, once for the weights'). What is done to single elements is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from bench import ours
from bench.limits import Work


@dataclass(frozen=True)
class Kind:
    """A recurrent layer by its name in torch.nn.

    `gates` is G; `saved` counts the values that a step keeps for the backward pass, for each unit, beside its output.
    """

    name: str
    gates: int
    saved: int

    @property
    def key(self) -> str:
        """The name as sections of the report begin with it."""
        return self.name.lower()


LSTM = Kind("LSTM", gates=4, saved=5)
GRU = Kind("GRU", gates=3, saved=4)
RNN = Kind("RNN", gates=1, saved=0)
KINDS = {kind.name: kind for kind in (LSTM, GRU, RNN)}


def layer_work(
    kind: Kind,
    rows: int,
    steps: int,
    inputs: int,
    hidden: int,
    *,
    training: bool = False,
    size: int = 4,
    rate: float = 1.0,
) -> Work:
    """Operations and bytes of one layer over `rows` = N input rows in `steps` steps; `size` bytes an element."""
    columns = kind.gates * hidden
    weights = columns * (inputs + hidden + 2) * size
    traffic = rows * (inputs + hidden) * size
    flop = 2.0 * rows * columns * (inputs + hidden)
    recurrent = columns * hidden * size
    if not training:
        return Work(flop, weights + traffic, recurrent, steps, rate)
    # Backward reads inputs, outputs and weights again and writes a gradient for each; what is saved goes out and back.
    saved = rows * kind.saved * hidden * size
    return Work(3 * flop, 3 * weights + 3 * traffic + 2 * saved, recurrent, 2 * steps, rate)


def pair_of_modules(name: str, inputs: int, hidden: int, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's of that name, with the same weights."""
    torch.manual_seed(inputs + hidden)
    theirs = getattr(torch.nn, name)(inputs, hidden, **options)
    mine = getattr(ours.library(), name)(inputs, hidden, **options)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def check_same(mine: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    """A fast wrong answer is not worth a row."""
    error = (mine - theirs).abs().max().item()
    if not error <= tolerance * max(1.0, theirs.abs().max().item()):
        raise RuntimeError(f"[bench] expected the same result to {tolerance:g}, got a difference of {error:.2e}")


def backward_of(call: Callable[[], torch.Tensor], leaves: Any, grad: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(call(), leaves, grad)


def training_step(
    module: torch.nn.Module, x: torch.Tensor | PackedSequence, grad_output: torch.Tensor
) -> Callable[[], None]:
    """Forward and backward with the gradients of all weights and of the input, from an empty start every time."""
    leaves = [*module.parameters(), x.data if isinstance(x, PackedSequence) else x]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        output = module(x)[0]
        (output.data if isinstance(output, PackedSequence) else output).backward(grad_output)

    return step


def check_gradients(
    mine: torch.nn.Module, theirs: torch.nn.Module, steps: dict[str, Callable], x: torch.Tensor
) -> None:
    """Runs both steps once and compares every gradient, relative to the largest of its tensor."""
    found = []
    for module, step in zip((mine, theirs), steps.values(), strict=True):
        step()
        found.append([leaf.grad.clone() for leaf in (*module.parameters(), x) if leaf.grad is not None])
    for one, other in zip(*found, strict=True):
        check_same(one / other.abs().max(), other / other.abs().max(), 1e-3)
