"""Scaled dot-product attention written as its equations, in plain PyTorch.

This is what `pykernels.functional.scaled_dot_product_attention` is held against, and what carries it where the kernels
do not go: forward-mode differentiation and second derivatives. `arguments` says what its arguments mean, for the
function and its twin alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .random import LOW, draw_seed, philox

__all__ = ["attention", "attention_keep", "attention_weights", "scaled_dot_product_attention"]

Lengths = Tensor | tuple[Tensor | None, Tensor | None]
Window = tuple[int | None, int | None]


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
    n_rows: Any = rows if row_lengths is None else row_lengths.to(device).reshape(-1, 1, 1, 1)
    n_keys: Any = keys if key_lengths is None else key_lengths.to(device).reshape(-1, 1, 1, 1)
    diagonal = i + (n_keys - n_rows) if bottom_right else i
    seen = (i < n_rows) & (j < n_keys)
    if left >= 0:
        seen = seen & (j >= diagonal - left)
    if right >= 0:
        seen = seen & (j <= diagonal + right)
    return seen if seen.dim() == 4 else seen[None, None]


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
    heads, groups, keys = query.shape[1], key.shape[1], key.shape[2]
    scores, blind = _scores(query, key, mask, row_lengths, key_lengths, scale, softcap, left, right, bottom_right)
    v = value.to(scores.dtype)
    if groups != heads:
        v = v.repeat_interleave(heads // groups, 1)
    lse = torch.logsumexp(scores, -1) if keys else scores.sum(-1)
    weights = _weights(scores, blind, lse)
    if seed is not None and dropout > 0:
        weights = _dropped(weights, seed, dropout)
    return (weights @ v).to(query.dtype), torch.where(blind.squeeze(-1), -math.inf, lse)


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    row_lengths: Tensor | None,
    key_lengths: Tensor | None,
    seed: Tensor | None,
    lse: Tensor,
    scale: float | None,
    softcap: float,
    dropout: float,
    left: int,
    right: int,
    bottom_right: bool,
    average: bool,
) -> Tensor:
    """What the operator `attention_weights` computes: d_ij exp(s_ij - l_i), [B, H, L, S], of the query's dtype, for the
    l of `attention`; with `average` the mean over the heads, [B, L, S]."""
    scores, blind = _scores(query, key, mask, row_lengths, key_lengths, scale, softcap, left, right, bottom_right)
    weights = _weights(scores, blind, torch.where(blind.squeeze(-1), 0.0, lse))
    if seed is not None and dropout > 0:
        weights = _dropped(weights, seed, dropout)
    return (weights.sum(1) / max(query.shape[1], 1) if average else weights).to(query.dtype)


def _scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    row_lengths: Tensor | None,
    key_lengths: Tensor | None,
    scale: float | None,
    softcap: float,
    left: int,
    right: int,
    bottom_right: bool,
) -> tuple[Tensor, Tensor]:
    """The scores [B, H, L, S], -inf where nothing is seen; and the rows that see nothing, [B, H, L, 1], whose scores
    are zeros."""
    heads, rows, keys = query.shape[1], query.shape[2], key.shape[2]
    dtype = query.dtype if query.dtype == torch.float64 else torch.float32
    q, k = query.to(dtype), key.to(dtype)
    if k.shape[1] != heads:
        k = k.repeat_interleave(heads // k.shape[1], 1)
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
    return torch.where(blind, 0.0, scores), blind


def _weights(scores: Tensor, blind: Tensor, lse: Tensor) -> Tensor:
    return torch.where(blind, 0.0, torch.exp(scores - lse.unsqueeze(-1)))


def _dropped(weights: Tensor, seed: Tensor, dropout: float) -> Tensor:
    batch, heads, rows, keys = weights.shape
    keep = attention_keep(seed, batch, heads, rows, keys, dropout, weights.device)
    return weights * keep * (1 / (1 - dropout) if dropout < 1 else 0.0)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    window: Window | None = None,
    softcap: float | None = None,
    causal: str | None = None,
    lengths: Lengths | None = None,
) -> Any:
    """The twin of `pykernels.functional.scaled_dot_product_attention`: the same arguments."""
    options = (scale, enable_gqa, window, softcap, causal, lengths)
    tensors, numbers, shape = arguments(query, key, value, attn_mask, dropout_p, is_causal, *options)
    out, lse = attention(*tensors, *numbers)
    if shape is not None:
        out, lse = reshape(shape, out, lse)
    return (out, lse) if return_lse else out


def reshape(shape: tuple[int, ...], out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The results with the batch dimensions that were asked for."""
    return out.reshape(*shape, *out.shape[2:]), lse.reshape(*shape, *lse.shape[2:])


def arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    window: Window | None,
    softcap: float | None,
    causal: str | None,
    lengths: Lengths | None,
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, ...] | None]:
    """The operator's tensors and numbers, and the shape of the result's batch dimensions if it is not theirs."""
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{_name(query)} key.dtype: {_name(key)} and value.dtype: {_name(value)} instead."
        )
    if not query.device == key.device == value.device:
        raise RuntimeError(
            "Expected query, key, and value to have the same device type, but got query.device: "
            f"{query.device} key.device: {key.device} and value.device: {value.device} instead."
        )
    if query.dim() < 2 or key.dim() < 2 or value.dim() < 2:
        raise RuntimeError(
            "Expected query, key, and value to all be  at least 2 dimensional, but got query.dim: "
            f"{query.dim()} key.dim: {key.dim()} and value.dim: {value.dim()} instead."
        )
    if not 0 <= dropout_p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")
    left, right = _window(window, is_causal or causal is not None)
    if causal not in (None, "top-left", "bottom-right"):
        raise ValueError(f"causal: expected 'top-left' or 'bottom-right', got {causal!r}")
    if is_causal and causal == "bottom-right":
        raise ValueError("causal: is_causal means 'top-left', got 'bottom-right' too")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: expected a positive number, got {softcap}")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype: "
            f"{_name(attn_mask)} and  query.dtype: {_name(query)} instead."
        )
    query, key, value, attn_mask, shape = _four_dimensions(query, key, value, attn_mask, enable_gqa)
    row_lengths, key_lengths = lengths if isinstance(lengths, tuple) else (lengths, lengths)
    tensors = (
        query, key, value, attn_mask, _lengths(row_lengths, query), _lengths(key_lengths, query),
        draw_seed() if dropout_p > 0 else None,
    )  # fmt: skip
    return tensors, (scale, softcap or 0.0, float(dropout_p), left, right, causal == "bottom-right"), shape


_NAMES = {
    torch.float64: "double", torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half",
    torch.int64: "long int", torch.int32: "int", torch.uint8: "unsigned char",
}  # fmt: skip


def _name(tensor: Tensor) -> str:
    """A dtype as torch's messages call it."""
    return _NAMES.get(tensor.dtype, str(tensor.dtype))


def _window(window: Window | None, causal: bool) -> tuple[int, int]:
    """How far a row sees to both sides, -1 without a limit."""
    left, right = window or (None, None)
    for side in (left, right):
        if side is not None and side < 0:
            raise ValueError(f"window: expected numbers that are not negative, or None, got {window}")
    if causal:
        right = 0
    return -1 if left is None else left, -1 if right is None else right


def _lengths(lengths: Tensor | None, query: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        raise ValueError(f"lengths: expected a tensor of one dimension of integers, got {lengths!r}")
    if lengths.is_floating_point() or lengths.dtype == torch.bool or lengths.dim() != 1:
        raise ValueError(f"lengths: expected one dimension of integers, got {lengths.dtype} {list(lengths.shape)}")
    return lengths.to(device=query.device, dtype=torch.int64)


def _four_dimensions(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grouped: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[int, ...] | None]:
    """All as [B, H, ...], and the shape of B and H in the result if it is another."""
    four = query.dim() == key.dim() == value.dim() == 4 and query.shape[0] == key.shape[0] == value.shape[0]
    heads = query.shape[-3:-2], key.shape[-3:-2], value.shape[-3:-2]
    if grouped and (not heads[1] or heads[1] != heads[2] or heads[1][0] == 0 or heads[0][0] % heads[1][0]):
        raise RuntimeError("Number of heads in key and value must divide the number of heads in query")
    if four and (grouped or heads[0] == heads[1] == heads[2]):
        return query, key, value, mask, None
    own = 3 if grouped else 2  # dimensions that are not broadcast
    batch = torch.broadcast_shapes(query.shape[:-own], key.shape[:-own], value.shape[:-own])
    outer = batch if grouped or len(batch) < 2 else batch[:-1]  # they become one
    apart = len(batch) < 2 and not grouped  # there are no heads

    def merged(tensor: Tensor, inner: int) -> Tensor:
        tensor = tensor.expand(*outer, *tensor.shape[tensor.dim() - inner :])
        tensor = tensor.reshape(math.prod(outer), *tensor.shape[len(outer) :])
        return tensor.unsqueeze(1) if apart else tensor

    inner = 2 if apart else 3
    if not grouped:
        query, key, value = (t.expand(*batch, *t.shape[-2:]) for t in (query, key, value))
    if mask is not None and mask.dim() > inner:
        mask = merged(mask, inner)
    query, key, value = (merged(t, inner) for t in (query, key, value))
    return query, key, value, mask, (*batch, query.shape[1]) if grouped else batch
