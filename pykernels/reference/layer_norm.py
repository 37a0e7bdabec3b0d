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
from .random import draw_seed

__all__ = ["layer_norm", "layer_norm_total"]


def normalize(
    total: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y of the total, normalised over its last `dims` dimensions, and their mean and 1 / sqrt(variance + epsilon)."""
    over = tuple(range(-dims, 0))
    x = total.to(sum_dtype(total))
    mean = x.mean(over, keepdim=True)
    scale = ((x - mean).square().mean(over, keepdim=True) + epsilon).rsqrt()
    y = (x - mean) * scale
    if weight is not None:
        y = y * weight.to(x.dtype)
    if bias is not None:
        y = y + bias.to(x.dtype)
    return y.to(total.dtype), mean, scale


def sum_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


def dropped(x: Tensor, seed: Tensor | None, dims: int, dropout: float) -> Tensor:
    """x with elements dropped, and the others times 1 / (1 - p). Its rows are the last `dims` dimensions; they are
    treated like the keys of attention's head 0."""
    if seed is None or dropout == 0:
        return x
    columns = math.prod(x.shape[x.dim() - dims :])
    rows = math.prod(x.shape[: x.dim() - dims])
    keep = attention_keep(seed, 1, 1, rows, columns, dropout, x.device).reshape(x.shape)
    return x * keep * (1 / (1 - dropout) if dropout < 1 else 0.0)


def layer_norm_total(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    normalized_shape: Sequence[int],
    dropout: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the operator `layer_norm_forward` computes: y, the total ([0] where it is the input), statistics [*, 2]."""
    dims = len(normalized_shape)
    if residual is None and seed is None:
        total = input
    else:
        total = dropped(input.to(sum_dtype(input)), seed, dims, dropout)
        total = (total if residual is None else total + residual).to(input.dtype)
    y, mean, scale = normalize(total, weight, bias, dims, epsilon)
    stats = torch.stack((mean, scale), -1).reshape(*input.shape[: input.dim() - dims], 2)
    return y, input.new_empty(0) if total is input else total, stats


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
    x, r, seed = arguments(input, normalized_shape, weight, bias, residual, dropout_p)
    out, total, _ = layer_norm_total(x, r, weight, bias, seed, normalized_shape, dropout_p, eps)
    total = x if r is None and seed is None else total
    return (out, total) if return_total else out


def arguments(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The operator's input, residual and seed."""
    check_shapes(input, normalized_shape, weight, bias, residual)
    seed = dropout_seed(dropout_p)
    if residual is not None and residual.dtype != input.dtype:
        dtype = torch.promote_types(input.dtype, residual.dtype)
        input, residual = input.to(dtype), residual.to(dtype)
    return input, residual, seed


def dropout_seed(dropout_p: float) -> Tensor | None:
    """A key for dropout's random numbers from torch's generator; None where nothing is dropped."""
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")
    return draw_seed() if dropout_p > 0 else None


def check_shapes(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> None:
    """Raise what the operator raises, which is torch's text where it has one."""
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
    if input.shape[max(input.dim() - len(shape), 0) :] != shape:
        expected = ", ".join(map(str, shape))
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [*, {expected}], but got input of size"
            f"{list(input.shape)}"
        )
    if residual is not None and residual.shape != input.shape:
        sizes = f"{list(input.shape)} like the input, got {list(residual.shape)}"
        raise RuntimeError(f"[layer_norm] expected residual of shape {sizes}")
