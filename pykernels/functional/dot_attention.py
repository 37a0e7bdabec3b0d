"""Encoder-decoder attention by dot products: projections around `scaled_dot_product_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import attention_with_weights, scaled_dot_product_attention

__all__ = ["dot_attention"]


def dot_attention(
    query: Tensor,
    memory: Tensor,
    query_weight: Tensor | None = None,
    memory_weight: Tensor | None = None,
    *,
    keys: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float = 1.0,
    return_weights: bool = False,
) -> Any:
    r"""Attention of a decoder over the states of an encoder, by dot products ("multiplicative").

    .. math::
        e_{ij} = \mathrm{scale}\; (W_a d_i) \cdot (U_a h_j), \quad
        a_{ij} = \frac{\exp e_{ij}}{\sum_k \exp e_{ik}}, \quad
        C_i = \sum_j a_{ij} h_j

    A row that sees no state of the encoder has zeros for weights and context.

    Where the decoder has fewer states than the encoder, :math:`(U_a^T W_a d_i) \cdot h_j` is computed instead: the same
    number for less work, and the states are read where they lie.

    Args:
        query: d, the decoder's states, [B, L, D].
        memory: h, the encoder's states, [B, S, E].
        query_weight: W_a, [A, D]; None for none.
        memory_weight: U_a, [A, E]; None for none.
        scale: of the scores, which grow with A: 1, or :math:`1 / \sqrt A` as in scaled dot-product attention.
        keys: U_a h, [B, S, A], if it is at hand from an earlier call; `memory_weight` is not used then.
        mask: of bool, broadcast to [B, L, S]: true where a state of the decoder sees one of the encoder.
        lengths: [B] of integers: how many states of the encoder each example has.
        return_weights: also return a.

    Returns:
        C, [B, L, E], or (C, a) with a of [B, L, S].

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit.
        ValueError: `lengths` are not integers of one dimension.

    Source: Luong, Pham and Manning 2015 (https://arxiv.org/abs/1508.04025).

    Example::

        >>> context, weights = pykernels.functional.dot_attention(d, h, w_a, u_a, return_weights=True)
    """
    for name, tensor in (("query", query), ("memory", memory), ("keys", memory if keys is None else keys)):
        if tensor.dim() != 3:
            raise RuntimeError(f"[dot_attention] expected {name} of 3 dimensions, got {tensor.dim()}")
    if mask is not None and (mask.dtype != torch.bool or mask.dim() > 3):
        raise RuntimeError(
            f"[dot_attention] expected a mask of bool, broadcast to [B, L, S], got {mask.dtype} {list(mask.shape)}"
        )
    if query_weight is not None:
        query = F.linear(query, query_weight)
    if keys is None and memory_weight is not None:
        if query.shape[1] < memory.shape[1]:
            query = query @ memory_weight
        else:
            keys = F.linear(memory, memory_weight)
    keys = memory if keys is None else keys
    if query.shape[2] != keys.shape[2]:
        raise RuntimeError(
            f"[dot_attention] expected the decoder's states and the keys to be of one size, got {query.shape[2]} and "
            f"{keys.shape[2]}"
        )
    query, keys, value = (t.unsqueeze(1) for t in (query, keys, memory))
    if mask is not None:
        mask = mask.unsqueeze(1) if mask.dim() == 3 else mask
    of_keys = None if lengths is None else (None, lengths)
    if not return_weights:
        return scaled_dot_product_attention(query, keys, value, mask, scale=scale, lengths=of_keys).squeeze(1)
    context, weights = attention_with_weights(query, keys, value, mask, scale=scale, lengths=of_keys)
    return context.squeeze(1), weights.squeeze(1)
