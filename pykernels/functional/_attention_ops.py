"""What PyTorch has to know about `torch.ops.pykernels.attention_{forward,backward,weights}` (csrc/ops/attention.h):
shapes without computing (fake), derivatives, and how vmap runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.attention import attention, attention_weights
from ._dispatch import twin_vjp
from ._operators import Derivative, TwinGradient, fold, loop_over, register_derivative

forward_op = torch.ops.pykernels.attention_forward.default
backward_op = torch.ops.pykernels.attention_backward.default
weights_op = torch.ops.pykernels.attention_weights.default

OPERANDS = 4
"""query, key, value and mask: what has a gradient. Then row_lengths, key_lengths and seed, then numbers."""
TENSORS = 7


def split_mask(operands: Sequence[Any], given: Sequence[Any]) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The operands that can have a gradient, None for a mask of bool, and the twin as a function of them."""
    *rest, mask = operands
    fixed = None if mask is None or mask.is_floating_point() else mask

    def function(tensors: list[Any]) -> tuple[Tensor, ...]:
        added = tensors[3] if fixed is None else fixed
        return attention(tensors[0], tensors[1], tensors[2], added, *given)

    return [*rest, mask if fixed is None else None], function


# --- shapes


def _heads(like: Tensor, columns: Any) -> Tensor:
    batch, heads, rows, _ = like.shape
    if like.stride(1) < like.stride(2):
        if like.stride(0) < like.stride(2):
            return like.new_empty(rows, batch, heads, columns).permute(1, 2, 0, 3)
        return like.new_empty(batch, rows, heads, columns).transpose(1, 2)
    return like.new_empty(batch, heads, rows, columns)


def _forward_fake(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return _heads(query, value.shape[3]), query.new_empty(query.shape[:3], dtype=dtype)


def _backward_fake(_grad_out: Any, _grad_lse: Any, *args: Any) -> tuple[Tensor, ...]:
    *operands, mask = args[:OPERANDS]
    *needs, need_mask = args[-OPERANDS:]
    grads = [_heads(t, t.shape[3]) if need else t.new_empty(0) for t, need in zip(operands, needs, strict=True)]
    wanted = need_mask and mask is not None and mask.dtype != torch.bool
    return *grads, mask.new_empty(mask.shape) if wanted else operands[0].new_empty(0)


def _weights_fake(query: Tensor, key: Tensor, *args: Any) -> Tensor:
    batch, heads, rows, _ = query.shape
    shape = (batch, rows, key.shape[2]) if args[-1] else (batch, heads, rows, key.shape[2])
    return query.new_empty(shape)


# --- vmap: a larger batch, but where examples have to share their random numbers


def _fold_mask(mask: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    if mask is None:
        return None
    if dim is None:
        if mask.dim() < 4 or mask.shape[0] == 1:
            return mask
        return mask.expand(size, *mask.shape).flatten(0, 1)
    mask = mask.movedim(dim, 0)
    mask = mask.reshape(size, *[1] * (5 - mask.dim()), *mask.shape[1:])
    return mask.expand(-1, batch, -1, -1, -1).flatten(0, 1)


def _folded(info: Any, dims: Sequence[Any], tensors: Sequence[Any]) -> list[Any]:
    size = info.batch_size
    folded = [fold(t, d, size, 0) for t, d in zip(tensors[:3], dims[:3], strict=True)]
    batch = folded[0].shape[0] // size  # type: ignore[union-attr]
    lengths = [fold(t, d, size, 0) for t, d in zip(tensors[4:6], dims[4:6], strict=True)]
    return [*folded, _fold_mask(tensors[3], dims[3], size, batch), *lengths, None]


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    if args[6] is not None:
        return loop_over(forward_op, info, in_dims, args)
    results = forward_op(*_folded(info, in_dims, args), *args[TENSORS:])
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in results), (0, 0)


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    tensors, dims, (out, lse), needs = args[2:9], in_dims[2:9], args[9:11], args[-OPERANDS:]
    if tensors[6] is not None or needs[3]:
        return loop_over(backward_op, info, in_dims, args)
    size = info.batch_size
    given = [fold(t, d, size, 0) for t, d in zip((*args[:2], out, lse), (*in_dims[:2], *in_dims[9:11]), strict=True)]
    grads = backward_op(*given[:2], *_folded(info, dims, tensors), *given[2:], *args[11:])
    found = [t.unflatten(0, (size, -1)) if need else t for t, need in zip(grads, needs, strict=True)]
    return tuple(found), tuple(0 if need else None for need in needs)


def _weights_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    def op(*args: Any) -> tuple[Tensor]:
        return (weights_op(*args),)

    (weights,), (dim,) = loop_over(op, info, in_dims, args)
    return weights, dim


# --- derivatives: the forward's by the backward, and the backward's by the twin


class _Forward(Derivative):
    op = forward_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.numbers = args[TENSORS:]
        ctx.save_for_backward(*args[:TENSORS], *results)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        need = needed[:OPERANDS]
        found = backward_op(*grads, *ctx.saved_tensors, *ctx.numbers, *need)
        gradients = (grad if n else None for grad, n in zip(found, need, strict=True))
        return *gradients, *[None] * (TENSORS - OPERANDS + len(ctx.numbers))

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        return attention(*args)


class _Backward(Derivative):
    op = backward_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        # out and lse are functions of the other arguments, and the twin computes them again
        ctx.numbers, ctx.needs = args[11:-OPERANDS], args[-OPERANDS:]
        ctx.save_for_backward(*args[:9])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        saved = ctx.saved_tensors
        operands, function = split_mask(saved[2:6], (*saved[6:], *ctx.numbers))
        cotangents = [g if n else None for g, n in zip(grads, ctx.needs, strict=True)]
        for_operands, for_grads = TwinGradient(function, operands, saved[:2]).second(cotangents)
        return *for_grads, *for_operands, *[None] * (5 + len(ctx.numbers) + OPERANDS)

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        needs = args[-OPERANDS:]
        operands, function = split_mask(args[2:6], (*args[6:9], *args[11:-OPERANDS]))
        found = twin_vjp(function, operands, needs, args[:2])
        return tuple(p if g is None else g for g, p in zip(found, results(), strict=True))


class _Weights(Derivative):
    """Weights are there already when their gradient comes (those of the single heads, where the mean was wanted, are
    found again): dS = dW W, and what S is made of follows. Through a softcap the way back is by the twin."""

    op = weights_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.numbers = args[7:]
        ctx.by_twin, ctx.average = bool(args[8]), args[-1]
        ctx.save_for_backward(*args[:7], None if ctx.by_twin or ctx.average else results[0])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        *given, weights = ctx.saved_tensors
        found: list[Any] = [None] * (len(given) + len(ctx.numbers))
        if grads[0] is None:
            return found
        grad = grads[0]
        if ctx.average and not ctx.by_twin:
            heads = given[0].shape[1]
            weights = weights_op(*given, *ctx.numbers[:-1], False)
            grad = (grad / max(heads, 1)).unsqueeze(1).expand(-1, heads, -1, -1)
        by = self._by_twin if ctx.by_twin else self._by_weights
        for i, gradient in by(ctx, [i for i in (0, 1, 2, 6) if needed[i]], given, weights, grad):
            found[i] = gradient
        return found

    @staticmethod
    def _by_weights(
        ctx: Any, places: list[int], given: list[Any], weights: Tensor, grad: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        query, key, mask, *_, lse = given
        scale = 1 / math.sqrt(max(query.shape[3], 1)) if ctx.numbers[0] is None else ctx.numbers[0]
        slopes = grad.to(lse.dtype) * weights.to(lse.dtype)
        batch, heads, rows, depth = query.shape
        groups, keys = key.shape[1], key.shape[2]
        # a group's heads, one below another
        together = slopes.reshape(batch, groups, heads // max(groups, 1) * rows, keys)
        if 0 in places:
            yield 0, (scale * (together @ key.to(lse.dtype))).reshape(query.shape).to(query.dtype)
        if 1 in places:
            of_group = query.to(lse.dtype).reshape(batch, groups, heads // max(groups, 1) * rows, depth)
            yield 1, (scale * (together.transpose(2, 3) @ of_group)).to(key.dtype)
        if 2 in places:
            yield 2, slopes.sum_to_size(mask.shape).to(mask.dtype)
        if 6 in places:
            yield 6, -slopes.sum(-1)

    @staticmethod
    def _by_twin(
        ctx: Any, places: list[int], given: list[Any], _weights: Tensor, grad: Tensor
    ) -> Iterator[tuple[int, Any]]:
        def function(operands: list[Any]) -> tuple[Tensor, ...]:
            args = list(given)
            for i, operand in zip(places, operands, strict=True):
                args[i] = operand
            return (attention_weights(*args, *ctx.numbers),)

        return zip(places, TwinGradient(function, [given[i] for i in places], [grad]).first(), strict=True)

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return attention_weights(*args)


torch.library.register_fake("pykernels::attention_forward", _forward_fake)
torch.library.register_fake("pykernels::attention_backward", _backward_fake)
torch.library.register_fake("pykernels::attention_weights", _weights_fake)
register_derivative(_Forward())
register_derivative(_Backward())
register_derivative(_Weights())
torch.library.register_vmap("pykernels::attention_forward", _forward_vmap)
torch.library.register_vmap("pykernels::attention_backward", _backward_vmap)
torch.library.register_vmap("pykernels::attention_weights", _weights_vmap)
