"""What the rows of a recurrent layer share: operations and bytes, the training step, and a check of the results.

Operations, with N = T*B (packed: the sum of the lengths): the products take 2 * N * 4H * (I + H) in the forward pass
and twice that in the backward pass (once for the inputs' gradients, once for the weights'). Gates are not counted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.utils.rnn import PackedSequence

from bench.limits import Work


def lstm_work(
    rows: int, steps: int, inputs: int, hidden: int, *, training: bool = False, size: int = 4, rate: float = 1.0
) -> Work:
    """Operations and bytes of one layer over `rows` = N input rows in `steps` steps; `size` bytes an element."""
    weights = 4 * hidden * (inputs + hidden + 2) * size
    traffic = rows * (inputs + hidden) * size
    flop = 2.0 * rows * 4 * hidden * (inputs + hidden)
    recurrent = 4 * hidden * hidden * size
    if not training:
        return Work(flop, weights + traffic, recurrent, steps, rate)
    # Backward reads inputs, outputs and weights again and writes a gradient for each; gates and cells go out and back.
    saved = rows * 5 * hidden * size
    return Work(3 * flop, 3 * weights + 3 * traffic + 2 * saved, recurrent, 2 * steps, rate)


def check_same(mine: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    """A fast wrong answer is not worth a row."""
    error = (mine - theirs).abs().max().item()
    if not error <= tolerance * max(1.0, theirs.abs().max().item()):
        raise RuntimeError(f"[bench] expected the same result to {tolerance:g}, got a difference of {error:.2e}")


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
