"""Layer norm of a sum written as its equations, in plain PyTorch.

This is what `pykernels.functional.layer_norm` is held against, and what carries its second derivatives and forward
mode.
`arguments` says what its arguments mean, for the function and its twin alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention import attention_keep

__all__ = ["layer_norm", "layer_norm_rows", "normalize_rows"]


def normalize_rows(
    total: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, D] of the total [N, D], and each row's mean and 1 / sqrt(variance + epsilon), [N, 1]."""
    dtype = sum_dtype(total)
    x = total.to(dtype)
    mean = x.mean(1, keepdim=True)
    scale = ((x - mean).square().mean(1, keepdim=True) + epsilon).rsqrt()
    y = (x - mean) * scale
    if weight is not None:
        y = y * weight.to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    return y.to(total.dtype), mean, scale


def sum_dtype(rows: Tensor) -> torch.dtype:
    return rows.dtype if rows.dtype == torch.float64 else torch.float32


def dropout_rows(rows: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    """Rows [N, D] with elements dropped like the keys of attention's head 0, and the others times 1 / (1 - p)."""
    if seed is None or dropout == 0:
        return rows
    count, columns = rows.shape
    keep = attention_keep(seed, 1, 1, count, columns, dropout, rows.device)[0, 0]
    return rows * keep * (1 / (1 - dropout) if dropout < 1 else 0.0)


def layer_norm_rows(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the operator `layer_norm_forward` computes: y, the total ([0] where it is the input), statistics."""
    if residual is None and seed is None:
        total = input
    else:
        dropped = dropout_rows(input.to(sum_dtype(input)), seed, dropout)
        total = (dropped if residual is None else dropped + residual).to(input.dtype)
    y, mean, scale = normalize_rows(total, weight, bias, epsilon)
    return y, input.new_empty(0) if total is input else total, torch.cat((mean, scale), 1)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    return_total: bool = False,
) -> Any:
    """The twin of `pykernels.functional.layer_norm`: the same arguments."""
    tensors, input = arguments(input, normalized_shape, weight, bias, residual, dropout_p)
    x, r, w, b, seed = tensors
    out, total, _ = layer_norm_rows(x, r, w, b, seed, dropout_p, eps)
    total = total if r is not None or seed is not None else x
    out, total = (t.reshape(input.shape) for t in (out, total))
    return (out, total) if return_total else out


def arguments(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dropout_p: float,
) -> tuple[tuple[Any, ...], Tensor]:
    """The operator's tensors, and the input in the dtype of the sum."""
    shape = tuple(normalized_shape)
    if not shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            "normalized_shape = []"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(parameter.shape)} and normalized_shape = {list(shape)}"
            )
    if input.dim() < len(shape) or input.shape[-len(shape) :] != shape:
        expected = ", ".join(map(str, shape))
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [*, {expected}], but got input of size"
            f"{list(input.shape)}"
        )
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")
    if residual is not None:
        if residual.shape != input.shape:
            sizes = f"{list(input.shape)} like the input, got {list(residual.shape)}"
            raise RuntimeError(f"[layer_norm] expected residual of shape {sizes}")
        if residual.dtype != input.dtype:
            dtype = torch.promote_types(input.dtype, residual.dtype)
            input, residual = input.to(dtype), residual.to(dtype)
    columns = math.prod(shape)
    rows = math.prod(input.shape[: input.dim() - len(shape)])
    tensors = (
        input.reshape(rows, columns),
        None if residual is None else residual.reshape(rows, columns),
        None if weight is None else weight.reshape(columns),
        None if bias is None else bias.reshape(columns),
        torch.randint(2**63 - 1, (1,), dtype=torch.int64, device="cpu") if dropout_p > 0 else None,
    )
    return tensors, input
