r"""Hopfield networks in plain PyTorch: sweeps over states of +1 and -1, and the three rules that store patterns.

.. math::
    v_j = \sum_i w_{ji} y_i, \qquad
    y_j \leftarrow \begin{cases} \operatorname{sign}(v_j) & v_j \ne 0 \\ y_j & v_j = 0 \end{cases}

A field that is not a number leaves its unit as it is, too.

Shapes: weight [N, N], state [B, N], patterns [M, N], orders [N] or [B, N].

Source: Hopfield 1982 (https://doi.org/10.1073/pnas.79.8.2554).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .random import LOW, philox

__all__ = [
    "drawn_order", "hebbian_weight", "hopfield_packed_retrieve", "hopfield_retrieve", "hopfield_update", "pack_signs",
    "pseudo_inverse_weight", "storkey_weight", "unpack_signs",
]  # fmt: skip


def drawn_order(seed: Tensor, sweep: int, units: int) -> Tensor:
    """The units in the order of a sweep, drawn with a key: Fisher and Yates' shuffle with Philox's numbers."""
    index = torch.arange((units + 3) // 4, dtype=torch.int64)
    zero = torch.zeros_like(index)
    key = int(seed.item())
    words = philox((index & LOW, index >> 32, zero + sweep, zero), (key & LOW, key >> 32 & LOW))
    numbers = torch.stack(words, 1).flatten().tolist()
    order = list(range(units))
    for i in range(units - 1, 0, -1):
        j = numbers[i] * (i + 1) >> 32
        order[i], order[j] = order[j], order[i]
    return torch.tensor(order, dtype=torch.int64)


def _changed(field: Tensor, state: Tensor) -> Tensor:
    one = torch.ones_like(state)
    return torch.where(field > 0, one, torch.where(field < 0, -one, state))


def hopfield_update(
    weight: Tensor, state: Tensor, mode: str = "async", order: Tensor | None = None, seed: Tensor | None = None
) -> Tensor:
    """One sweep; `seed` draws the order of units where none is given."""
    return hopfield_retrieve(weight, state, mode, order, seed, 1)[0]


def hopfield_retrieve(
    weight: Tensor,
    state: Tensor,
    mode: str = "async",
    order: Tensor | None = None,
    seed: Tensor | None = None,
    max_sweeps: int = 100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sweeps until nothing changes: the state, how many there were, and the period (`functional.hopfield_retrieve`)."""
    rows = [
        _retrieve_one(weight, row, mode, own, seed, max_sweeps)
        for row, own in zip(*_each_row(state, order), strict=True)
    ]
    shape = state.shape[:-1]
    out = torch.stack([r[0] for r in rows]).reshape(state.shape) if rows else state.clone()
    sweeps, period = (
        torch.tensor([r[i] for r in rows], dtype=torch.int64, device=state.device).reshape(shape) for i in (1, 2)
    )
    return out, sweeps, period


def _each_row(state: Tensor, order: Tensor | None) -> tuple[list[Tensor], list[Tensor | None]]:
    rows = list(state.reshape(-1, state.shape[-1])) if state.numel() or state.dim() == 1 else list(state)
    if order is None or order.dim() == 1:
        return rows, [order] * len(rows)
    return rows, list(order)


def _retrieve_one(
    weight: Tensor, state: Tensor, mode: str, order: Tensor | None, seed: Tensor | None, most: int
) -> tuple[Tensor, int, int]:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    weight, units = weight.to(wide), state.shape[-1]
    before: list[Tensor] = []
    if units == 0:
        return state.clone(), 0, 1
    for sweep in range(most):
        before.append(state)
        if mode == "sync":
            state = _changed((weight * state.to(wide)).sum(-1), state)
        else:
            state = state.clone()
            if order is None and seed is None:
                raise ValueError("[hopfield] expected an order or a seed to draw orders with, got neither")
            units_in_turn = drawn_order(seed, sweep, units) if order is None and seed is not None else order
            flips = 0
            for unit in units_in_turn.tolist():  # type: ignore[union-attr]
                after = _changed((weight[unit] * state.to(wide)).sum(), state[unit])
                flips += not _same(after, state[unit])
                state[unit] = after
        if flips == 0 if mode == "async" else _same(state, before[-1]):
            return state, sweep + 1, 1
        if mode == "sync" and len(before) > 1 and _same(state, before[-2]):
            return state, sweep + 1, 2
    return state, most, 0


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def pack_signs(patterns: Tensor) -> Tensor:
    """[..., N] as bits, [..., ceil(N / 64)] of int64: bit i % 64 of word i / 64 is set where value i is above zero."""
    words = -(-patterns.shape[-1] // 64)
    bits = torch.nn.functional.pad((patterns > 0).to(torch.int64), (0, 64 * words - patterns.shape[-1]))
    shifts = torch.arange(64, device=patterns.device)
    return (bits.unflatten(-1, (words, 64)) << shifts).sum(-1)


def unpack_signs(packed: Tensor, units: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., ceil(N / 64)] of int64 as values +1 and -1, [..., N]."""
    shifts = torch.arange(64, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts & 1).flatten(-2)[..., :units]
    return (2 * bits - 1).to(dtype)


def hopfield_packed_retrieve(
    patterns: Tensor,
    state: Tensor,
    mode: str = "async",
    order: Tensor | None = None,
    seed: Tensor | None = None,
    max_sweeps: int = 100,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hopfield_retrieve` with M times the weight of Hebb's rule, in whole numbers; states count by their signs."""
    units = state.shape[-1]
    f = unpack_signs(patterns, units, torch.float64)
    weight = f.T @ f
    weight.fill_diagonal_(0)
    out, sweeps, period = hopfield_retrieve(weight, state.sign().double(), mode, order, seed, max_sweeps)
    return torch.where(out == state.sign(), state, out.to(state.dtype)), sweeps, period


def hebbian_weight(patterns: Tensor) -> Tensor:
    r""":math:`w_{ji} = \frac1M \sum_k f_k(i) f_k(j)` with a zero diagonal, of [M, N]."""
    weight = patterns.T @ patterns / max(len(patterns), 1)
    return weight.fill_diagonal_(0)


def storkey_weight(patterns: Tensor) -> Tensor:
    r"""Storkey's rule, pattern by pattern, of [M, N].

    .. math::
        \Delta w_{ij} = \frac1N \left( f(i) f(j) - f(i) h_{ji} - h_{ij} f(j) \right), \quad
        h_{ij} = \sum_{k \ne i, j} w_{ik} f(k)

    Source: Storkey 1997 (https://doi.org/10.1007/BFb0020196).
    """
    units = patterns.shape[-1]
    weight = patterns.new_zeros(units, units)
    for f in patterns:
        h = ((weight @ f) - weight.diagonal() * f)[:, None] - weight * f  # h[i, j]
        weight = weight + (f[:, None] * f - f[:, None] * h.T - h * f) / units
        weight.fill_diagonal_(0)
    return weight


def pseudo_inverse_weight(patterns: Tensor) -> Tensor:
    """The projection onto the patterns, of [M, N], with a zero diagonal.

    Source: Personnaz, Guyon and Dreyfus 1986 (https://doi.org/10.1103/PhysRevA.34.4217); without self-coupling: Kanter
    and Sompolinsky 1987 (https://doi.org/10.1103/PhysRevA.35.380).
    """
    weight = torch.linalg.pinv(patterns) @ patterns
    return weight.fill_diagonal_(0)
