"""Multi-head attention: projections around `scaled_dot_product_attention`, which takes the heads where they lie."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import attention_with_weights, scaled_dot_product_attention

__all__ = ["multi_head_attention_forward"]

_shape_check: Any = F._mha_shape_check  # type: ignore[attr-defined]


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    r"""Multi-head attention; takes what :func:`torch.nn.functional.multi_head_attention_forward` takes.

    .. math::
        y = \mathrm{concat}_h\big(\mathrm{softmax}(Q_h K_h^T / \sqrt d + M)\, V_h\big)\, W_o^T + b_o

    with :math:`Q = q W_q^T + b_q`, K and V likewise, cut into heads of d = E / H columns. The meaning of every argument
    is torch's (masks of bool are true where nothing is seen), but for these:

    * a row that sees nothing gives zeros before the last projection, not values that are not numbers;
    * `is_causal`, torch's hint that `attn_mask` is the causal one, is taken with `need_weights` and `key_padding_mask`
      too: the mask is not looked at, and half the work is saved;
    * with `need_weights` the scores are still never stored: the weights are computed once more, and with
      `average_attn_weights` only their mean is.

    Args:
        batch_first: query, key and value are [N, L, E] instead of [L, N, E], and so is the result.

    Returns:
        y, like the query, and the weights or None: [N, L, S], or [N, H, L, S] without `average_attn_weights`.

    Raises:
        AssertionError, RuntimeError, ValueError: torch's, with torch's messages.

    Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762).
    """
    batched = _shape_check(query, key, value, key_padding_mask, attn_mask, num_heads)
    batch_at = 0 if batch_first or not batched else 1
    key_is_value, is_self = key is value, query is key and key is value
    if not batched:
        query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    batch, rows, keys = query.shape[batch_at], query.shape[1 - batch_at], key.shape[1 - batch_at]
    _check_sizes(query, key, value, embed_dim_to_check, num_heads, use_separate_proj_weight)
    if is_causal and attn_mask is None:
        raise RuntimeError(
            "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
            "`generate_square_subsequent_mask` to create this mask."
        )
    _check_mask(key_padding_mask, "key_padding_mask", attn_mask)
    _check_mask(attn_mask, "attn_mask", None)
    _check_mask_shape(attn_mask, batch * num_heads, rows, keys)
    if is_causal and bias_k is None and not add_zero_attn:
        attn_mask = None
    else:
        is_causal = False

    if use_separate_proj_weight:
        weights = [_given(w, f"use_separate_proj_weight is True but {name}_proj_weight is None")
                   for w, name in ((q_proj_weight, "q"), (k_proj_weight, "k"), (v_proj_weight, "v"))]  # fmt: skip
        for name, x, weight in zip(("query", "key", "value"), (query, key, value), weights, strict=True):
            if weight.shape != (query.shape[2], x.shape[2]):
                sizes = f"{(query.shape[2], x.shape[2])}, but got {weight.shape}"
                raise AssertionError(f"expecting {name} weights shape of {sizes}")
        biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    else:
        weight = _given(in_proj_weight, "use_separate_proj_weight is False but in_proj_weight is None")
        q, k, v = _project(query, key, value, weight, in_proj_bias, is_self, key_is_value)
    if bias_k is not None and bias_v is not None:
        k, v = _append(k, bias_k, batch_at, static_k, "key"), _append(v, bias_v, batch_at, static_v, "value")
    elif bias_k is not None or bias_v is not None:
        given, missing = ("bias_k", "bias_v") if bias_v is None else ("bias_v", "bias_k")
        raise AssertionError(f"{given} is set but {missing} is None")
    q, k, v = (_heads(x, num_heads, batch_at) for x in (q, k, v))
    k, v = _static(static_k, k, num_heads, "static_k"), _static(static_v, v, num_heads, "static_v")
    if add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    mask = _mask(attn_mask, key_padding_mask, batch, num_heads, keys, k.shape[2], q.dtype)

    dropout = dropout_p if training else 0.0
    if need_weights and not 0 <= dropout <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {dropout}")
    found = None
    if need_weights:
        y, found = attention_with_weights(q, k, v, mask, dropout, is_causal, average=average_attn_weights)
    else:
        y = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    y = y.permute(0, 2, 1, 3) if batch_at == 0 else y.permute(2, 0, 1, 3)
    y = F.linear(y.flatten(2), out_proj_weight, out_proj_bias)
    if not batched:
        y, found = y.squeeze(0), None if found is None else found.squeeze(0)
    return y, found


def _given(weight: Tensor | None, otherwise: str) -> Tensor:
    if weight is None:
        raise AssertionError(otherwise)
    return weight


def _check_sizes(query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_heads: int, separate: bool) -> None:
    given = query.shape[2]
    if given != embed_dim:
        raise AssertionError(f"was expecting embedding dimension of {embed_dim}, but got {given}")
    if given % num_heads:
        raise AssertionError(f"embed_dim {given} not divisible by num_heads {num_heads}")
    if separate and key.shape[:2] != value.shape[:2]:
        raise AssertionError(f"key's sequence and batch dims {key.shape[:2]} do not match value's {value.shape[:2]}")
    if not separate and key.shape != value.shape:
        raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")


def _check_mask(mask: Tensor | None, name: str, other: Tensor | None) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise AssertionError(f"only bool and floating types of {name} are supported")
    if other is not None and other.dtype != mask.dtype:
        warnings.warn(
            f"Support for mismatched {name} and attn_mask is deprecated. Use same type for both instead.", stacklevel=4
        )


def _check_mask_shape(mask: Tensor | None, heads: int, rows: int, keys: int) -> None:
    if mask is None:
        return
    expected = (rows, keys) if mask.dim() == 2 else (heads, rows, keys)
    if mask.shape != expected:
        raise RuntimeError(f"The shape of the {mask.dim()}D attn_mask is {mask.shape}, but should be {expected}.")


def _project(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None, is_self: bool, key_is_value: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V by as few products as there are different inputs; views where they come from one."""
    if is_self:
        q, k, v = F.linear(query, weight, bias).chunk(3, -1)
        return q, k, v
    size = query.shape[2]
    if key_is_value:
        weights, biases = weight.split([size, 2 * size]), (None, None) if bias is None else bias.split([size, 2 * size])
        k, v = F.linear(key, weights[1], biases[1]).chunk(2, -1)
        return F.linear(query, weights[0], biases[0]), k, v
    w, b = weight.chunk(3), (None, None, None) if bias is None else bias.chunk(3)
    return F.linear(query, w[0], b[0]), F.linear(key, w[1], b[1]), F.linear(value, w[2], b[2])


def _append(x: Tensor, bias: Tensor, batch_at: int, static: Tensor | None, name: str) -> Tensor:
    """One more key or value for every example."""
    if static is not None:
        raise AssertionError(f"bias cannot be added to static {name}.")
    shape = list(x.shape)
    shape[1 - batch_at] = 1
    return torch.cat((x, bias.expand(shape)), 1 - batch_at)


def _heads(x: Tensor, num_heads: int, batch_at: int) -> Tensor:
    """[N, H, L, d], a view."""
    x = x.unflatten(2, (num_heads, -1))
    return x.permute(0, 2, 1, 3) if batch_at == 0 else x.permute(1, 2, 0, 3)


def _static(static: Tensor | None, x: Tensor, num_heads: int, name: str) -> Tensor:
    if static is None:
        return x
    batch, size = x.shape[0], x.shape[3]
    if static.shape[0] != batch * num_heads:
        raise AssertionError(f"expecting {name}.size(0) of {batch * num_heads}, but got {static.shape[0]}")
    if static.shape[2] != size:
        raise AssertionError(f"expecting {name}.size(2) of {size}, but got {static.shape[2]}")
    return static.unflatten(0, (batch, num_heads))


def _mask(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    batch: int,
    num_heads: int,
    keys: int,
    all_keys: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Both masks as one for `scaled_dot_product_attention`, whose masks of bool are true where a key is seen."""
    if attn_mask is not None:
        attn_mask = _seen(attn_mask, all_keys, dtype)
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (batch, num_heads))
    if key_padding_mask is None:
        return attn_mask
    for dim, expected in ((0, batch), (1, keys)):
        more = (all_keys - keys) * dim
        if key_padding_mask.shape[dim] != expected:
            raise AssertionError(
                f"Expected key_padded_mask.shape[{dim}] to be {expected + more}, but got "
                f"{key_padding_mask.shape[dim] + more}"
            )
    padding = _seen(key_padding_mask, all_keys, dtype)[:, None, None, :]
    if attn_mask is None:
        return padding
    if attn_mask.dtype == torch.bool and padding.dtype == torch.bool:
        return attn_mask & padding
    return _added(attn_mask, dtype) + _added(padding, dtype)


def _seen(mask: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """The mask for as many keys as there are in the end: those beyond its own are seen."""
    mask = mask.logical_not() if mask.dtype == torch.bool else mask.to(dtype)
    more = keys - mask.shape[-1]
    return F.pad(mask, (0, more), value=mask.dtype == torch.bool) if more > 0 else mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -torch.inf)
