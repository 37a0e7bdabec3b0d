"""Scaled dot-product attention written as its equations, in plain PyTorch.

This is what `pykernels.functional.scaled_dot_product_attention` is held against, and what carries it where the kernels
do not go: forward-mode differentiation and second derivatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .random import LOW, philox

__all__ = ["attention", "attention_keep"]


def visible(
    rows: int,
    keys: int,
    row_lengths: Tensor | None,
    key_lengths: Tensor | None,
    left: int,
    right: int,
    bottom_right: bool,
    device: torch.device,
) -> Tensor:
    """Which keys each row sees by its place alone, [B or 1, 1, L, S]."""
    i, j = torch.arange(rows, device=device)[:, None], torch.arange(keys, device=device)
    n_rows = torch.tensor([rows], device=device) if row_lengths is None else row_lengths.to(device)
    n_keys = torch.tensor([keys], device=device) if key_lengths is None else key_lengths.to(device)
    n_rows, n_keys = (n.reshape(-1, 1, 1, 1) for n in (n_rows, n_keys))
    diagonal = i + (n_keys - n_rows if bottom_right else torch.zeros_like(n_keys))
    seen = (i < n_rows) & (j < n_keys)
    if left >= 0:
        seen = seen & (j >= diagonal - left)
    if right >= 0:
        seen = seen & (j <= diagonal + right)
    return seen


def attention_keep(
    seed: Tensor, batch: int, heads: int, rows: int, keys: int, p: float, device: torch.device
) -> Tensor:
    """Which weights dropout keeps, [B, H, L, S] of bool.

    That of row i and key j of head number n = b*H + h is kept unless number (j % 64) // 16 of Philox's counter
    ((j // 64) * 16 + j % 16, i, n, 0) under the key `seed` is below floor(p * 2^32 + 1/2).
    """
    blocks = (keys + 63) // 64
    place = torch.arange(blocks * 16, device=device)
    row, head = torch.arange(rows, device=device)[:, None], torch.arange(batch * heads, device=device)[:, None, None]
    counter = torch.broadcast_tensors(place, row, head, torch.zeros_like(place))
    number = seed.to(device).reshape(())
    numbers = torch.stack(philox(counter, (number & LOW, number >> 32 & LOW)))  # [4, B*H, L, blocks*16]
    numbers = numbers.unflatten(-1, (blocks, 16)).movedim(0, -2).flatten(-3)[..., :keys]
    return (numbers >= math.floor(p * 2.0**32 + 0.5)).unflatten(0, (batch, heads))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    row_lengths: Tensor | None,
    key_lengths: Tensor | None,
    seed: Tensor | None,
    scale: float | None,
    softcap: float,
    dropout: float,
    left: int,
    right: int,
    bottom_right: bool,
) -> tuple[Tensor, Tensor]:
    r"""What the operator `attention_forward` computes.

    .. math::
        s_{ij} = c \tanh(\mathrm{scale}\, q_i \cdot k_j / c) + m_{ij}, \quad
        \ell_i = \log \sum_j e^{s_{ij}}, \quad
        y_i = \sum_j d_{ij} e^{s_{ij} - \ell_i} v_j

    over the keys j that row i sees; c = `softcap` (0: none), m the mask, d_ij dropout's 0 or 1 / (1 - p). A row that
    sees nothing gives zeros and :math:`\ell = -\infty`.

    Args:
        query, key, value: q [B, H, L, E], k [B, G, S, E], v [B, G, S, F]; H is a multiple of G, and query head h reads
            head h // (H / G).
        mask: broadcast to [B, H, L, S]: numbers that are added, or where a bool is false nothing is seen; or None.
        row_lengths, key_lengths: [B], how many rows and keys of each example there are; None for all.
        seed: of dropout, or None without.
        scale: None for :math:`1 / \sqrt E`.
        left, right: row i sees the keys from i - left to i + right (-1: no limit), counted from the upper left corner
            or, with `bottom_right`, so that the last row is at the last key.

    Returns:
        y [B, H, L, F] and l [B, H, L], l of float32 at least.
    """
    heads, rows, keys = query.shape[1], query.shape[2], key.shape[2]
    dtype = query.dtype if query.dtype == torch.float64 else torch.float32
    q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
    if k.shape[1] != heads:
        k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(max(query.shape[3], 1)) if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    seen = visible(rows, keys, row_lengths, key_lengths, left, right, bottom_right, query.device)
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask.to(dtype)
    scores = torch.where(seen, scores, -math.inf)
    blind = (scores == -math.inf).all(-1, keepdim=True)  # the derivatives of a sum of nothing are not numbers
    scores = torch.where(blind, 0.0, scores)
    lse = torch.logsumexp(scores, -1) if keys else scores.sum(-1)
    weights = torch.where(blind, 0.0, torch.exp(scores - lse.unsqueeze(-1)))
    if seed is not None and dropout > 0:
        keep = attention_keep(seed, query.shape[0], heads, rows, keys, dropout, query.device)
        weights = weights * keep * (1 / (1 - dropout) if dropout < 1 else 0.0)
    return (weights @ v).to(query.dtype), torch.where(blind.squeeze(-1), -math.inf, lse)
