"""What PyTorch has to know about the pooling operators (csrc/ops/pool.h): shapes without computing (fake), derivatives,
and how vmap runs them. Each is linear but for the choice of maxima, so they are each other's derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from ..reference.pool import Window
from ._operators import Derivative, register_derivative

_ops = torch.ops.pykernels
max_forward, max_backward = _ops.max_pool_forward.default, _ops.max_pool_backward.default
max_gather, max_indices = _ops.max_pool_gather.default, _ops.max_pool_indices.default
avg_forward, avg_backward = _ops.avg_pool_forward.default, _ops.avg_pool_backward.default
unpool = _ops.max_unpool.default

BYTE_PLACES = 256
"""Places of a window that are kept in a byte (csrc/core/pool_window.h)."""


def window_of_mean(kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, output_size: Any) -> Window:
    return Window(kernel_size, stride, padding, [1] * len(kernel_size), ceil_mode, output_size)  # type: ignore[arg-type]


# --- shapes


def _format(tensor: Tensor, dims: int) -> torch.memory_format:
    return suggest_memory_format(tensor) if dims > 1 and tensor.dim() == dims + 2 else torch.contiguous_format


def is_channels_last(tensor: Tensor, dims: int) -> bool:
    return _format(tensor, dims) != torch.contiguous_format


def _pooled(size: Sequence[int], window: Window) -> list[int]:
    lead = len(size) - window.dims
    torch._check(lead in (1, 2), lambda: f"[pool] expected input of {window.dims + 1} or {window.dims + 2} dimensions")
    found = window.pooled(size[lead:])
    for out in found:
        torch._check(out >= (1 if window.kernel_size else 0), lambda: "[pool] expected windows that fit into the input")
    return [*size[:lead], *found]


def _max_forward_fake(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *numbers, keep = rest
    window = Window(*numbers)
    size, form = _pooled(input.shape, window), _format(input, window.dims)
    places = math.prod(window.longest(input.shape[input.dim() - window.dims :]))
    dtype = torch.uint8 if places <= BYTE_PLACES else torch.int64
    kept = input.new_empty(size if keep else [0], dtype=dtype)
    return _in(input.new_empty(size), form), _in(kept, form) if keep else kept


def _in(tensor: Tensor, form: torch.memory_format) -> Tensor:
    return torch.empty_like(tensor, memory_format=form)


def _max_backward_fake(grad: Tensor, places: Tensor, size: Sequence[int], *numbers: Any) -> Tensor:
    return _in(grad.new_empty(size), _format(places, Window(*numbers).dims))


def _max_gather_fake(input: Tensor, places: Tensor, *numbers: Any) -> Tensor:
    return _in(input.new_empty(places.shape), _format(places, Window(*numbers).dims))


def _max_indices_fake(places: Tensor, size: Sequence[int], *numbers: Any) -> Tensor:
    return _in(places.new_empty(places.shape, dtype=torch.int64), _format(places, Window(*numbers).dims))


def _avg_forward_fake(input: Tensor, *numbers: Any) -> Tensor:
    window = window_of_mean(*numbers[:5])
    return _in(input.new_empty(_pooled(input.shape, window)), _format(input, window.dims))


def _avg_backward_fake(grad: Tensor, size: Sequence[int], channels_last: bool, *numbers: Any) -> Tensor:
    dims = window_of_mean(*numbers[:5]).dims
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims) if len(size) == dims + 2 else None
    return _in(grad.new_empty(size), last if channels_last and last is not None else torch.contiguous_format)


def _unpool_fake(input: Tensor, _indices: Tensor, output_size: Sequence[int]) -> Tensor:
    dims = len(output_size)
    return _in(input.new_empty([*input.shape[: input.dim() - dims], *output_size]), _format(input, dims))


# --- vmap: one batch more, or examples as a batch


def _vmap(op: Any, tensors: int, dims_of: Callable[[list[Any]], int], has_size: bool = False) -> Callable[..., Any]:
    """The rule of an operator whose first arguments are `tensors`, followed by a size with the batch in it or not."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch, rest = info.batch_size, list(args[tensors:])
        given = [
            t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(args[:tensors], in_dims[:tensors], strict=True)
        ]
        single = given[0].dim() == dims_of(rest) + 2  # an example has no batch of its own
        if not single:
            given = [t.flatten(0, 1) for t in given]
        if has_size:
            rest[0] = [batch, *rest[0]] if single else [batch * rest[0][0], *rest[0][1:]]
        found = op(*given, *rest)

        def split(tensor: Tensor) -> Tensor:
            return tensor if single else tensor.unflatten(0, (batch, -1))

        if isinstance(found, Tensor):
            return split(found), 0
        out, places = found
        keep = rest[-1]
        return (split(out), split(places) if keep else places.expand(batch, 0)), (0, 0)

    return rule


# --- derivatives


def _in_both(op: Any, input: Tensor, *rest: Any) -> Tensor:
    """A linear operator of an input with a tangent."""
    value, tangent = torch._VF._unpack_dual(input, level=0)
    return torch._VF._make_dual(op(value, *rest), op(tangent, *rest), level=0)


def _or_none(grads: Sequence[Any], gradient: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if grads[0] is None else gradient(grads[0])


class _MaxForward(Derivative):
    op = max_forward

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        input, *ctx.window, ctx.kept = args
        ctx.size = input.shape
        ctx.mark_non_differentiable(results[1])
        ctx.save_for_backward(results[1] if ctx.kept else input)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        (places,) = ctx.saved_tensors
        if not ctx.kept:
            places = max_forward(places.detach(), *ctx.window, True)[1]
        return _or_none(grads, lambda grad: max_backward(grad, places, ctx.size, *ctx.window)), *[None] * 7

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        input, *window, keep = args
        value, tangent = torch._VF._unpack_dual(input, level=0)
        out, places = max_forward(value, *window, True)
        out = torch._VF._make_dual(out, max_gather(tangent, places, *window), level=0)
        return out, places if keep else places.new_empty(0)


class _MaxBackward(Derivative):
    op = max_backward

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.window = args[3:]
        ctx.save_for_backward(args[1])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        return _or_none(grads, lambda grad: max_gather(grad, ctx.saved_tensors[0], *ctx.window)), *[None] * 8

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return _in_both(max_backward, *args)


class _MaxGather(Derivative):
    op = max_gather

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.size, ctx.window = args[0].shape, args[2:]
        ctx.save_for_backward(args[1])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        return _or_none(grads, lambda grad: max_backward(grad, ctx.saved_tensors[0], ctx.size, *ctx.window)), *[
            None
        ] * 7

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return _in_both(max_gather, *args)


class _AvgForward(Derivative):
    op = avg_forward

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        input, *ctx.numbers = args
        ctx.size, ctx.last = input.shape, is_channels_last(input, window_of_mean(*ctx.numbers[:5]).dims)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        return _or_none(grads, lambda grad: avg_backward(grad, ctx.size, ctx.last, *ctx.numbers)), *[None] * 7

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return _in_both(avg_forward, *args)


class _AvgBackward(Derivative):
    op = avg_backward

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.numbers = args[3:]

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        return _or_none(grads, lambda grad: avg_forward(grad, *ctx.numbers)), *[None] * 9

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return _in_both(avg_backward, *args)


class _Unpool(Derivative):
    op = unpool

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.save_for_backward(args[1])
        ctx.dims = len(args[2])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        return _or_none(grads, lambda grad: unpool_gradient(grad, ctx.saved_tensors[0], ctx.dims)), *[None] * 2

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return _in_both(unpool, *args)


def unpool_gradient(grad: Tensor, indices: Tensor, dims: int) -> Tensor:
    """What the indices say, as torch has it: also where another index says the same."""
    lead = grad.shape[: grad.dim() - dims]
    # (the vmap inside torch.autograd has no rule for flatten)
    planes = [t.reshape(*lead, math.prod(t.shape[len(lead) :])) for t in (grad, indices)]
    return planes[0].gather(-1, planes[1]).reshape(indices.shape)


for rule, fake, tensors, dims_of, has_size in (
    (_MaxForward(), _max_forward_fake, 1, lambda rest: Window(*rest[:6]).dims, False),
    (_MaxBackward(), _max_backward_fake, 2, lambda rest: Window(*rest[1:]).dims, True),
    (_MaxGather(), _max_gather_fake, 2, lambda rest: Window(*rest).dims, False),
    (_AvgForward(), _avg_forward_fake, 1, lambda rest: window_of_mean(*rest[:5]).dims, False),
    (_AvgBackward(), _avg_backward_fake, 1, lambda rest: window_of_mean(*rest[2:7]).dims, True),
    (_Unpool(), _unpool_fake, 2, lambda rest: len(rest[0]), False),
):
    name = rule.op.name()
    torch.library.register_fake(name, fake)
    torch.library.register_vmap(name, _vmap(rule.op, tensors, dims_of, has_size))
    register_derivative(rule)
torch.library.register_fake("pykernels::max_pool_indices", _max_indices_fake)
torch.library.register_vmap(
    "pykernels::max_pool_indices", _vmap(max_indices, 1, lambda rest: Window(*rest[1:]).dims, True)
)
