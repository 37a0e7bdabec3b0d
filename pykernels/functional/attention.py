"""Scaled dot-product attention: the public function, and the autograd Function around the raw kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.attention import Lengths, Window, arguments, reshape
from . import _attention_ops, _dispatch
from ._dispatch import any_autocast, is_eager, needs_twin, raw_kernels, wants_grad

__all__ = ["scaled_dot_product_attention"]


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
    window: Window | None = None,
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
    if any_autocast() and (dtype := _dispatch.autocast_dtype(query)) is not None:
        query, key, value = (_dispatch.cast(t, dtype) for t in (query, key, value))
    options = (scale, enable_gqa, window, softcap, causal, lengths)
    tensors, numbers, shape = arguments(query, key, value, attn_mask, dropout_p, is_causal, *options)
    out, lse = _run(tensors, numbers)
    if shape is not None:
        out, lse = reshape(shape, out, lse)
    return (out, lse) if return_lse else out


def attention_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    average: bool = False,
    scale: float | None = None,
    lengths: Lengths | None = None,
) -> tuple[Tensor, Tensor]:
    """`scaled_dot_product_attention` of [B, H, L, E], and the weights that it gave the values, [B, H, L, S] (with
    `average` their mean over the heads, [B, L, S]). They cost a third product, and memory for themselves alone."""
    if any_autocast() and (dtype := _dispatch.autocast_dtype(query)) is not None:
        query, key, value = (_dispatch.cast(t, dtype) for t in (query, key, value))
    options = (scale, False, None, None, None, lengths)
    tensors, numbers, _ = arguments(query, key, value, attn_mask, dropout_p, is_causal, *options)
    out, lse = _run(tensors, numbers)
    query, key, _, *rest = tensors
    kernels = raw_kernels(query, key)
    if kernels is None or wants_grad(query, key, rest[0]) or not is_eager(lse, *(t for t in rest[:1] if t is not None)):
        return out, _attention_ops.weights_op(query, key, *rest, lse, *numbers, average)
    return out, kernels.attention_weights(query, key, *rest, lse, *numbers, average)


def _run(tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    query, key, value, mask = tensors[:4]
    kernels = raw_kernels(query, key)
    if kernels is None or not is_eager(value) or not (mask is None or is_eager(mask)):
        _dispatch.check_devices("attention", *tensors[:6])
        return _attention_ops.forward_op(*tensors, *numbers)
    if wants_grad(query, key, value, mask):
        return _apply(kernels, numbers, *tensors)
    return kernels.attention_forward(*tensors, *numbers)
