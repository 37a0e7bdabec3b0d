"""Random masks that are the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._operators import loop_over

__all__ = ["random_mask"]


def random_mask(
    like: Tensor, seed: Tensor, stream: int, size: Sequence[int], p: float, value: float = 1.0, as_bytes: bool = False
) -> Tensor:
    """A mask that has `value` with probability `p`, each element for itself, and 0 otherwise.

    The numbers come from the counter-based generator Philox4x32-10: with n elements and q = ceil(n / 4), element e is
    number e // q of counter (e % q, stream) under the key `seed`, and is chosen if that number is below
    floor(p * 2^32 + 1/2). The same arguments give the same mask on every device.

    Args:
        like: has the dtype and the device that the mask is to have.
        seed: one int64 on the CPU.
        stream: with the same seed, different streams are independent; 0 ... 2^32 - 1.
        size: of the mask.
        p: the probability, 0 ... 1.
        value: what the chosen elements are.
        as_bytes: the mask is of uint8.

    Source: Salmon et al. 2011 (https://doi.org/10.1145/2063384.2063405).

    Example::

        >>> pykernels.functional.random_mask(torch.empty(0), torch.tensor([7]), 0, (2, 4), 0.5)
        tensor([[0., 1., 0., 0.],
                [1., 1., 1., 0.]])
    """
    return torch.ops.pykernels.random_mask(like.detach(), seed, stream, size, p, value, as_bytes)


def _fake(
    like: Tensor, seed: Tensor, stream: int, size: Sequence[Any], p: float, value: float, as_bytes: bool
) -> Tensor:
    return like.new_empty(size, dtype=torch.uint8 if as_bytes else like.dtype)


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int | None]:
    """One mask for all examples, unless each has a seed of its own: of `like` only dtype and device count."""
    op = torch.ops.pykernels.random_mask
    like = args[0] if in_dims[0] is None else args[0].select(in_dims[0], 0)
    if in_dims[1] is None:
        return op(like, *args[1:]), None

    def one(*args: Any) -> tuple[Tensor]:
        return (op(*args),)

    (mask,), (dim,) = loop_over(one, info, (None, *in_dims[1:]), (like, *args[1:]))
    return mask, dim


torch.library.register_fake("pykernels::random_mask", _fake)
torch.library.register_vmap("pykernels::random_mask", _vmap)
