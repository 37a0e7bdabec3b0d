"""Layer norm of a sum: the public function, and the autograd Function around the raw kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.layer_norm import check_shapes, dropout_seed
from . import _dispatch, _layer_norm_ops
from ._dispatch import any_autocast, is_eager, needs_twin, raw_kernels, wants_grad

__all__ = ["layer_norm"]


class _LayerNorm(torch.autograd.Function):
    """The raw kernels. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        numbers: tuple[Any, ...],
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        out, total, stats = kernels.layer_norm_forward(input, residual, weight, bias, seed, *numbers)
        adds = residual is not None or seed is not None
        ctx.kernels, ctx.numbers, ctx.adds = kernels, numbers, residual is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total if adds else input, stats, weight, bias, seed)
        if not adds:
            ctx.mark_non_differentiable(total)
        return out, total

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_total: Tensor | None) -> tuple[Any, ...]:
        total, stats, weight, bias, seed = ctx.saved_tensors
        need = ctx.needs_input_grad[4:6]
        if needs_twin(grad_out, grad_total):
            # the total is an output of this function: its own gradient goes on from there
            given = (total, weight, bias), seed, *ctx.numbers, need, grad_out, grad_total
            of_total, of_input, of_weight, of_bias = _layer_norm_ops.gradients_by_twin(*given)
            return None, None, of_input, of_total if ctx.adds else None, of_weight, of_bias, None
        call = ctx.kernels.layer_norm_backward if is_eager(total) else _layer_norm_ops.backward_op
        of_total, of_input, *parameters = call(
            grad_out, grad_total, total, stats, weight, bias, seed, *ctx.numbers, *need
        )
        of_weight, of_bias = (grad if n else None for grad, n in zip(parameters, need, strict=True))
        of_input = of_total if seed is None else of_input
        return None, None, of_input, of_total if ctx.adds else None, of_weight, of_bias, None


_apply = _dispatch.direct_apply(_LayerNorm)


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
    r"""Layer norm of a sum; takes what :func:`torch.nn.functional.layer_norm` takes.

    .. math::
        s = r + \mathrm{dropout}(x), \quad
        y = \frac{s - \mathrm{E}[s]}{\sqrt{\mathrm{Var}[s] + \epsilon}} \odot w + b

    with mean and (biased) variance over the dimensions of `normalized_shape`, found in float32 for low precision. It is
    one pass over the memory instead of three. The gradients have the same bits for any number of threads.

    Args:
        input: x, [*, *normalized_shape].
        normalized_shape: the last dimensions, over which is normalised.
        weight, bias: w and b, of that shape; of x's dtype or of float32.
        eps: :math:`\epsilon`.
        residual: r, like x.
        dropout_p: the probability with which an element of x is dropped, always (as in torch's functions: pass 0 when
            evaluating). The random numbers are a function of a seed drawn from torch's generator on the CPU, the same
            on every device.
        return_total: also return s, which the next residual connection goes on from. It has a gradient.

    Returns:
        y, like x, or (y, s).

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit; the messages of torch where it has one.
        ValueError: `dropout_p` is no probability.

    Source: Ba, Kiros and Hinton 2016 (https://arxiv.org/abs/1607.06450).

    Example::

        >>> y, s = pykernels.functional.layer_norm(x, [512], w, b, residual=r, return_total=True)
    """
    if any_autocast() and input.is_cuda and torch.is_autocast_enabled("cuda"):  # as torch's: in float32 there
        input = _dispatch.cast(input, torch.float32)
        residual = None if residual is None else _dispatch.cast(residual, torch.float32)
    if residual is not None and residual.dtype != input.dtype:
        dtype = torch.promote_types(input.dtype, residual.dtype)
        input, residual = input.to(dtype), residual.to(dtype)
    tensors = input, residual, weight, bias, dropout_seed(dropout_p) if dropout_p else None
    out, total = _run(tensors, (normalized_shape, dropout_p, eps))
    return (out, total) if return_total else out


def _run(tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    input, residual, weight, bias, seed = tensors
    kernels = raw_kernels(input, input if residual is None else residual)
    if kernels is None or not is_eager(*(p for p in (weight, bias) if p is not None)):
        check_shapes(input, numbers[0], weight, bias, residual)
        _dispatch.check_devices("layer_norm", input, residual, weight, bias)
        out, total, _ = _layer_norm_ops.forward_op(*tensors, *numbers)
    elif wants_grad(input, residual, weight, bias):
        out, total = _apply(kernels, numbers, *tensors)
    else:
        out, total, _ = kernels.layer_norm_forward(*tensors, *numbers)
    return out, input if residual is None and seed is None else total
