"""The random masks of `pykernels.functional.random`, number by number, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["random_mask"]

LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a * b for a, b < 2^32; int64 holds no product of two such numbers whole."""
    upper, lower = (a >> 16) * b, (a & 0xFFFF) * b
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & LOW


def philox(counter: Sequence[Tensor], key: tuple[Any, Any]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random 32-bit numbers for each counter of four such numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & LOW, (k1 + _KEY_STEPS[1]) & LOW
    return c0, c1, c2, c3


def draw_seed() -> Tensor:
    """A key for Philox, one int64 on the CPU, drawn from torch's generator."""
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device="cpu")


def random_mask(
    like: Tensor, seed: Tensor, stream: int, size: Sequence[int], p: float, value: float = 1.0, as_bytes: bool = False
) -> Tensor:
    """The twin of `pykernels.functional.random_mask`: the same arguments and the same bits."""
    count = math.prod(size)
    quarter = (count + 3) // 4
    index = torch.arange(quarter, dtype=torch.int64, device=like.device)
    zero = torch.zeros_like(index)
    start = int(seed.item())
    numbers = torch.cat(philox((index & LOW, index >> 32, zero + stream, zero), (start & LOW, start >> 32 & LOW)))
    chosen = numbers[:count] < math.floor(p * 2.0**32 + 0.5)
    dtype = torch.uint8 if as_bytes else like.dtype
    return (chosen.to(dtype) * value).to(dtype).reshape(tuple(size))
