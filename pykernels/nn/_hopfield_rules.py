"""The rules by which a Hopfield network stores patterns of +1 and -1, [M, N]: weights with zero diagonals."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CAPACITY", "WEIGHTS", "hebbian_sums", "storkey_steps"]


def hebbian_sums(patterns: Tensor) -> Tensor:
    """The sum over patterns of f(i) f(j): whole numbers, exact in float32 for fewer than 2^24 patterns."""
    return (patterns.T @ patterns).fill_diagonal_(0)


def _hebbian(patterns: Tensor) -> Tensor:
    return hebbian_sums(patterns) / max(len(patterns), 1)


def storkey_steps(weight: Tensor, patterns: Tensor) -> Tensor:
    """The weight after Storkey's rule has taken in some more patterns.

    With h = W f, what the rule subtracts are h(i) - w_ij f(j) times f(j) and the same turned round: two outer products,
    and twice the weight back.
    """
    units = patterns.shape[1]
    for f in patterns:
        h = weight @ f
        mixed = torch.outer(h, f)
        weight = (weight + (torch.outer(f, f) - (mixed + mixed.T) + 2 * weight) / units).fill_diagonal_(0)
    return weight


def _storkey(patterns: Tensor) -> Tensor:
    return storkey_steps(patterns.new_zeros(patterns.shape[1], patterns.shape[1]), patterns)


def _pseudo_inverse(patterns: Tensor) -> Tensor:
    """The projection onto the patterns: F^T (F F^T)^+ F, where F F^T holds whole numbers."""
    f = patterns.double()
    weight = f.T @ torch.linalg.pinv(f @ f.T, hermitian=True) @ f
    return ((weight + weight.T) / 2).to(patterns.dtype).fill_diagonal_(0)


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "hebbian": _hebbian,
    "storkey": _storkey,
    "pseudo_inverse": _pseudo_inverse,
}

CAPACITY: dict[str, Callable[[int], float]] = {
    "hebbian": lambda units: 0.138 * units,
    "storkey": lambda units: units / math.sqrt(2 * math.log(units)) if units > 1 else float(units),
    "pseudo_inverse": float,
}
"""How many random patterns a network of so many units holds."""
