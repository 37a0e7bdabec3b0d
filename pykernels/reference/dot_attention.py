"""Encoder-decoder attention by dot products, written as its equations in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    """The twin of `pykernels.functional.dot_attention`: the same arguments."""
    d = query if query_weight is None else F.linear(query, query_weight)
    if keys is None:
        keys = memory if memory_weight is None else F.linear(memory, memory_weight)
    scores = scale * (d @ keys.mT)
    seen = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        seen = seen & mask
    if lengths is not None:
        seen = seen & (torch.arange(memory.shape[-2], device=memory.device) < lengths[..., None, None])
    blind = ~seen.any(-1, keepdim=True)
    weights = torch.softmax(torch.where(blind, 0.0, scores.masked_fill(~seen, -torch.inf)), -1)
    weights = torch.where(blind, 0.0, weights)
    context = weights @ memory
    return (context, weights) if return_weights else context
