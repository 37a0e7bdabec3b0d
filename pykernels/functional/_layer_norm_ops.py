"""What PyTorch has to know about `torch.ops.pykernels.layer_norm_{forward,backward}` (csrc/ops/layer_norm.h): shapes
without computing (fake), derivatives, and how vmap runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.layer_norm import dropped, layer_norm_total, normalize, sum_dtype
from ._dispatch import twin_vjp
from ._operators import Derivative, TwinGradient, loop_over, register_derivative

forward_op = torch.ops.pykernels.layer_norm_forward.default
backward_op = torch.ops.pykernels.layer_norm_backward.default


def normalization(shape: Sequence[int], epsilon: float) -> Callable[[list[Any]], tuple[Tensor, ...]]:
    """The twin after the sum, of total, weight and bias."""
    return lambda operands: normalize(operands[0], operands[1], operands[2], len(shape), epsilon)[:1]


def input_gradient(grad_total: Tensor, seed: Tensor | None, shape: Sequence[int], dropout: float) -> Tensor:
    return dropped(grad_total, seed, len(shape), dropout).to(grad_total.dtype)


def gradients_by_twin(
    operands: Sequence[Any],
    seed: Tensor | None,
    shape: Sequence[int],
    dropout: float,
    epsilon: float,
    needs: Sequence[bool],
    grad_out: Tensor | None,
    grad_total: Tensor | None,
) -> list[Tensor | None]:
    """Of total, input, weight and bias (None where there is none), from those of what forward gave.

    Args:
        operands: total, weight and bias.
    """
    found: list[Tensor | None] = [None, None, None]
    if grad_out is not None:
        found = twin_vjp(normalization(shape, epsilon), operands, (True, *needs), (grad_out,))
    of_total = found[0] if grad_total is None else grad_total if found[0] is None else found[0] + grad_total
    of_input = None if of_total is None else input_gradient(of_total, seed, shape, dropout)
    return [of_total, of_input, *found[1:]]


# --- shapes


def _forward_fake(
    input: Tensor, residual: Tensor | None, _weight: Any, _bias: Any, seed: Tensor | None, shape: Any, *_: Any
) -> tuple[Tensor, ...]:
    adds = residual is not None or seed is not None
    total = input.new_empty(input.shape) if adds else input.new_empty(0)
    outer = input.shape[: input.dim() - len(shape)]
    return input.new_empty(input.shape), total, input.new_empty((*outer, 2), dtype=sum_dtype(input))


def _backward_fake(_out: Any, _total: Any, total: Tensor, _stats: Any, *args: Any) -> tuple[Tensor, ...]:
    weight, bias, seed, _shape, _dropout, _epsilon, *needs = args
    sums = sum_dtype(total)
    grads = [
        p.new_empty(p.shape) if p is not None and need else total.new_empty(0, dtype=sums)
        for p, need in zip((weight, bias), needs, strict=True)
    ]
    return total.new_empty(total.shape), total.new_empty(0 if seed is None else total.shape), *grads


# --- vmap: one dimension more in front, where examples share their weights and no random numbers


def _in_front(tensors: Sequence[Any], dims: Sequence[Any], size: int) -> list[Any]:
    def moved(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    return [moved(t, d) for t, d in zip(tensors, dims, strict=True)]


def _results(results: tuple[Tensor, ...], size: int) -> tuple[Any, Any]:
    empty = [t.dim() == 1 and t.numel() == 0 for t in results]
    found = tuple(t.expand(size, 0) if e else t for t, e in zip(results, empty, strict=True))
    return found, (0,) * len(found)


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    if args[4] is not None or in_dims[2:4] != (None, None):
        return loop_over(forward_op, info, in_dims, args)
    return _results(forward_op(*_in_front(args[:2], in_dims[:2], info.batch_size), *args[2:]), info.batch_size)


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    if args[6] is not None or in_dims[4:6] != (None, None) or any(args[-2:]):
        return loop_over(backward_op, info, in_dims, args)
    return _results(backward_op(*_in_front(args[:4], in_dims[:4], info.batch_size), *args[4:]), info.batch_size)


# --- derivatives: the forward's by the backward, and the backward's by the twin


class _Forward(Derivative):
    op = forward_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        input, residual, *rest = args[:5]
        _, total, stats = results
        ctx.numbers = args[5:]
        ctx.adds = residual is not None
        ctx.is_input = residual is None and rest[-1] is None
        ctx.save_for_backward(input if ctx.is_input else total, stats, *rest)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        total, stats, *rest = ctx.saved_tensors
        need, passed = needed[2:4], None if ctx.is_input else grads[1]
        grad_total, grad_input, *parameters = backward_op(grads[0], passed, total, stats, *rest, *ctx.numbers, *need)
        found = [g if n else None for g, n in zip(parameters, need, strict=True)]
        of_input = grad_total if rest[-1] is None else grad_input
        return of_input, grad_total if ctx.adds else None, *found, *[None] * 4

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        return layer_norm_total(*args)


class _Backward(Derivative):
    op = backward_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        grad_out, grad_total, total, _, weight, bias, seed, ctx.shape, ctx.dropout, ctx.epsilon, *ctx.needs = args
        ctx.passed = grad_total is not None
        ctx.save_for_backward(grad_out, total, weight, bias, seed)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        grad_out, total, weight, bias, seed = ctx.saved_tensors
        for_total, for_input, for_weight, for_bias = grads
        if seed is not None and for_input is not None:
            through = input_gradient(for_input, seed, ctx.shape, ctx.dropout)
            for_total = through if for_total is None else for_total + through
        for_grad_out: Tensor | None = None
        operands: list[Tensor | None] = [None, None, None]
        if grad_out is not None:
            cotangents = [for_total, for_weight if ctx.needs[0] else None, for_bias if ctx.needs[1] else None]
            gradient = TwinGradient(normalization(ctx.shape, ctx.epsilon), (total, weight, bias), [grad_out])
            operands, (for_grad_out,) = gradient.second(cotangents)
        grad_of_total, grad_of_weight, grad_of_bias = operands
        passed = for_total if ctx.passed else None
        return for_grad_out, passed, grad_of_total, None, grad_of_weight, grad_of_bias, *[None] * 6

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        grad_out, grad_total, total, _, weight, bias, seed, shape, dropout, epsilon, *needs = args
        operands, plain = (total, weight, bias), results()
        found = gradients_by_twin(operands, seed, shape, dropout, epsilon, needs, grad_out, grad_total)
        if seed is None:
            found[1] = None
        return tuple(p if g is None else g for g, p in zip(found, plain, strict=True))


torch.library.register_fake("pykernels::layer_norm_forward", _forward_fake)
torch.library.register_fake("pykernels::layer_norm_backward", _backward_fake)
register_derivative(_Forward())
register_derivative(_Backward())
torch.library.register_vmap("pykernels::layer_norm_forward", _forward_vmap)
torch.library.register_vmap("pykernels::layer_norm_backward", _backward_vmap)
