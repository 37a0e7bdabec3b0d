"""Scaled dot-product attention: the public function, and the autograd Function around the raw kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _attention_ops, _dispatch
from ._dispatch import any_autocast, is_eager, needs_twin, raw_kernels, wants_grad

__all__ = ["scaled_dot_product_attention"]

Lengths = Tensor | tuple[Tensor | None, Tensor | None]


class _Attention(torch.autograd.Function):
    """The raw kernels. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, numbers: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, ...]:
        results = kernels.attention_forward(*tensors, *numbers)
        ctx.kernels, ctx.numbers = kernels, numbers
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *results)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        *tensors, out, lse = ctx.saved_tensors
        need = ctx.needs_input_grad[2 : 2 + _attention_ops.OPERANDS]
        none = (None,) * (len(tensors) - _attention_ops.OPERANDS)
        if needs_twin(*grads):
            given = (*tensors[_attention_ops.OPERANDS :], *ctx.numbers)
            operands, function = _attention_ops.split_mask(tensors[: _attention_ops.OPERANDS], given)
            return None, None, *_dispatch.twin_vjp(function, operands, need, grads), *none
        call = ctx.kernels.attention_backward if is_eager(out) else _attention_ops.backward_op
        found = call(*grads, *tensors, out, lse, *ctx.numbers, *need)
        return None, None, *(grad if n else None for grad, n in zip(found, need, strict=True)), *none


_apply = _dispatch.direct_apply(_Attention)


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
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    causal: str | None = None,
    lengths: Lengths | None = None,
) -> Any:
    r"""Scaled dot-product attention; takes what :func:`torch.nn.functional.scaled_dot_product_attention` takes.

    .. math::
        s_{ij} = c \tanh(\mathrm{scale}\; q_i \cdot k_j / c) + m_{ij}, \quad
        \ell_i = \log \sum_j e^{s_{ij}}, \quad
        y_i = \sum_j d_{ij}\, e^{s_{ij} - \ell_i}\, v_j

    over the keys j that row i sees; c is `softcap` (without: s = scale q·k + m), m the mask, and :math:`d_{ij}`
    dropout's 0 or 1 / (1 - p). The scores are never stored: memory grows with L + S.

    A row that sees nothing gives zeros, an l of -inf, and no gradients. Values that are not numbers in a query stay in
    its row. bf16 and fp16 are summed, and their weights found, in float32. The results have the same bits for any
    number of threads.

    Args:
        query: q, [..., H, L, E]. Batch dimensions are broadcast against each other.
        key: k, [..., H, S, E].
        value: v, [..., H, S, F].
        attn_mask: broadcast to [..., H, L, S]: of bool, true where a row sees a key; or numbers that are added to the
            scores. It has a gradient.
        dropout_p: the probability with which a weight is dropped, always (as in torch: pass 0 when evaluating). The
            random numbers are a function of a seed drawn from torch's generator on the CPU, the same on every device.
        is_causal: row i sees the keys j <= i only. May be given together with a mask.
        scale: None for :math:`1 / \sqrt E`.
        enable_gqa: key and value may have fewer heads, G, a divisor of H: query head h reads head h // (H / G).
        return_lse: also return l, [..., H, L], of float32 (float64 for such a query). It has a gradient.
        window: (left, right): row i sees the keys from i - left to i + right; None is no limit.
        softcap: c > 0.
        causal: "top-left" is `is_causal`; with "bottom-right" the last row sees the last key: i stands for i + S - L
            here and in `window` (with lengths, for i + keys - rows of the example).
        lengths: [B] of integers, for padded batches: of example b only the first `lengths[b]` rows and keys are there.
            A pair gives those of rows and of keys apart, None for all. What lies beyond is not read; its rows give
            zeros.

    Returns:
        y, [..., H, L, F], or (y, l).

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit; the messages of torch where it has one.
        ValueError: `causal` is neither of the two, a `window` or `softcap` is negative, or `dropout_p` no probability.

    Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762); computed as by Dao et al. 2022
    (https://arxiv.org/abs/2205.14135).

    Example::

        >>> q, k, v = torch.randn(3, 2, 8, 100, 64)
        >>> y = pykernels.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    """
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{query.dtype} key.dtype: {key.dtype} and value.dtype: {value.dtype} instead."
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
            f"{attn_mask.dtype} and  query.dtype: {query.dtype} instead."
        )
    if any_autocast() and (dtype := _dispatch.autocast_dtype(query)) is not None:
        query, key, value = (_dispatch.cast(t, dtype) for t in (query, key, value))
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.to(query.dtype)

    query, key, value, attn_mask, shape = _four_dimensions(query, key, value, attn_mask, enable_gqa)
    row_lengths, key_lengths = lengths if isinstance(lengths, tuple) else (lengths, lengths)
    tensors = (
        query, key, value, attn_mask, _lengths(row_lengths, query), _lengths(key_lengths, query),
        torch.randint(2**63 - 1, (1,), dtype=torch.int64, device="cpu") if dropout_p > 0 else None,
    )  # fmt: skip
    numbers = (scale, softcap or 0.0, float(dropout_p), left, right, causal == "bottom-right")
    out, lse = _run(tensors, numbers)
    if shape is not None:
        out, lse = out.reshape(*shape, *out.shape[2:]), lse.reshape(*shape, *lse.shape[2:])
    return (out, lse) if return_lse else out


def _run(tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    query, key, value, mask = tensors[:4]
    kernels = raw_kernels(query, key)
    if kernels is None or not is_eager(value) or not (mask is None or is_eager(mask)):
        _dispatch.check_devices("attention", *tensors[:6])
        return _attention_ops.forward_op(*tensors, *numbers)
    if wants_grad(query, key, value, mask):
        return _apply(kernels, numbers, *tensors)
    return kernels.attention_forward(*tensors, *numbers)


def _window(window: tuple[int | None, int | None] | None, causal: bool) -> tuple[int, int]:
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
