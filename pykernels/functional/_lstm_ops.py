"""What PyTorch has to know about `torch.ops.pykernels.lstm_forward` and `lstm_backward` (csrc/ops/lstm.cpp).

Shapes without computing (fake), derivatives, and how vmap runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import lstm_layer as twin
from ._dispatch import twin_vjp
from ._operators import Derivative, Twin, TwinGradient, fold, loop_over, register_derivative

forward = torch.ops.pykernels.lstm_forward.default
backward = torch.ops.pykernels.lstm_backward.default


# --- shapes


@torch.library.register_fake("pykernels::lstm_forward")
def _forward_fake(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    projection: bool,
    peephole: bool,
    bidirectional: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    directions = 2 if bidirectional else 1
    gate_size = weights[0].shape[0]
    hidden_size = gate_size // 4
    state_size = weights[1].shape[1]
    rows: Any = input.shape[0]
    batch: Any
    if batch_sizes is None:
        batch = input.shape[1]
        rows = rows * batch
    elif h0 is not None or c0 is not None:
        batch = (h0 if h0 is not None else c0).shape[1]  # type: ignore[union-attr]
    else:
        batch = torch.library.get_ctx().new_dynamic_size()
    new = input.new_empty
    return (
        new(*input.shape[:-1], directions * state_size),
        new(directions, batch, state_size),
        new(directions, batch, hidden_size),
        new(directions, rows, gate_size) if save else new(0),
        new(directions, rows, hidden_size) if save else new(0),
    )


@torch.library.register_fake("pykernels::lstm_backward")
def _backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    bias: bool,
    projection: bool,
    peephole: bool,
    bidirectional: bool,
    need_input: bool,
    need_states: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    directions = 2 if bidirectional else 1
    state_size = weights[1].shape[1]
    new = input.new_empty
    batch: Any = 0
    if need_states:
        known = [t for t in (h0, c0, grad_h_n, grad_c_n) if t is not None]
        if batch_sizes is None:
            batch = input.shape[1]
        else:
            batch = known[0].shape[1] if known else torch.library.get_ctx().new_dynamic_size()
    return (
        new(input.shape) if need_input else new(0),
        new(directions, batch, state_size) if need_states else new(0),
        new(directions, batch, weights[0].shape[0] // 4) if need_states else new(0),
        [new(w.shape) if need_weights else new(0) for w in weights],
    )


# --- derivatives: lstm_forward's by lstm_backward, and lstm_backward's by the twin


class _Forward(Derivative):
    op = forward

    @staticmethod
    def setup(ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        input, batch_sizes, h0, c0, weights, *ctx.flags, ctx.saved = args
        output, _, _, gates, cells = results
        ctx.mark_non_differentiable(gates, cells)
        ctx.save_for_backward(input, batch_sizes, h0, c0, output, gates, cells, *weights)

    @staticmethod
    def backward(ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        input, batch_sizes, h0, c0, output, gates, cells, *weights = ctx.saved_tensors
        need_input, _, need_h0, need_c0, need_weights, *_ = needed
        if not ctx.saved:
            output, _, _, gates, cells = forward(input, batch_sizes, h0, c0, weights, *ctx.flags, True)
        grad_input, grad_h0, grad_c0, grad_weights = backward(
            *grads[:3], input, batch_sizes, h0, c0, weights, output, gates, cells, *ctx.flags,
            need_input, need_h0 or need_c0, any(need_weights),
        )  # fmt: skip
        return (
            grad_input if need_input else None,
            None,
            grad_h0 if need_h0 else None,
            grad_c0 if need_c0 else None,
            [g if need else None for g, need in zip(grad_weights, need_weights, strict=True)],
            *[None] * 5,
        )

    @staticmethod
    def twin(results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        return (*twin(*args[:9]), *results()[3:])


class _Backward(Derivative):
    op = backward

    @staticmethod
    def function(args: Sequence[Any]) -> tuple[Twin, Sequence[Tensor | None]]:
        """The twin of the forward, and its differentiable inputs, for the arguments of `lstm_backward`.

        What the forward has kept is not among them: it is a function of them, and the twin computes it again.
        """
        input, batch_sizes, h0, c0, weights = args[3:8]
        flags = args[11:15]

        def function(tensors: list[Any]) -> tuple[Tensor, ...]:
            x, h, c, *w = tensors
            return twin(x, batch_sizes, h, c, w, *flags)

        return function, (input, h0, c0, *weights)

    @staticmethod
    def setup(ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.rest = args[11:]
        ctx.save_for_backward(*args[:7], *args[7])

    @staticmethod
    def backward(ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        weights = ctx.saved_tensors[7:]
        need_input, need_states, need_weights = ctx.rest[4:]
        to_input, to_h0, to_c0, to_weights = grads
        cotangents = (
            to_input if need_input else None,
            *((to_h0, to_c0) if need_states else (None, None)),
            *(to_weights if need_weights else [None] * len(weights)),
        )
        function, inputs = _Backward.function((*ctx.saved_tensors[:7], weights, None, None, None, *ctx.rest))
        gradient = TwinGradient(function, inputs, ctx.saved_tensors[:3])
        (for_input, for_h0, for_c0, *for_weights), for_grads = gradient.second(cotangents)
        return *for_grads, for_input, None, for_h0, for_c0, for_weights, *[None] * 10

    @staticmethod
    def twin(results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        need_input, need_states, need_weights = args[15:]
        function, inputs = _Backward.function(args)
        needed = (need_input, need_states, need_states, *[need_weights] * len(args[7]))
        input, h0, c0, *weights = twin_vjp(function, inputs, needed, args[:3])
        plain = results()
        return (
            input if need_input else plain[0],
            plain[1] if h0 is None else h0,
            plain[2] if c0 is None else c0,
            weights if need_weights else plain[3],
        )


register_derivative(_Forward)
register_derivative(_Backward)


# --- vmap


@torch.library.register_vmap("pykernels::lstm_forward")
def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    input, batch_sizes, h0, c0, weights, *flags, save = args
    if batch_sizes is not None or any(d is not None for d in in_dims[4]):
        return loop_over(forward, info, in_dims, args)

    # only the data is batched: one call over a larger batch
    size = info.batch_size
    x = fold(input, in_dims[0], size, 1)
    h, c = fold(h0, in_dims[2], size, 1), fold(c0, in_dims[3], size, 1)
    assert x is not None
    output, h_n, c_n, gates, cells = forward(x, None, h, c, weights, *flags, save)
    if save:
        gates, cells = (_unfold_rows(t, x.shape[0], size) for t in (gates, cells))
    split = (size, x.shape[1] // size)
    kept = 0 if save else None
    return tuple(t.unflatten(1, split) for t in (output, h_n, c_n)) + (gates, cells), (1, 1, 1, kept, kept)


@torch.library.register_vmap("pykernels::lstm_backward")
def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    grads, (input, batch_sizes, h0, c0, weights, output, gates, cells) = args[:3], args[3:11]
    flags, (need_input, need_states, need_weights) = args[11:15], args[15:]
    alone = batch_sizes is not None or any(d is not None for d in in_dims[7]) or any(d is None for d in in_dims[8:11])
    if alone or need_weights:
        return loop_over(backward, info, in_dims, args)

    # gradients of the data only: again one call over a larger batch
    size = info.batch_size
    steps = output.select(in_dims[8], 0).shape[0]
    folded = [fold(t, d, size, 1) for t, d in zip((*grads, input), in_dims[:4], strict=True)]
    states = [fold(t, d, size, 1) for t, d in zip((h0, c0, output), (*in_dims[5:7], in_dims[8]), strict=True)]
    rows = [_fold_rows(t, d, steps) for t, d in zip((gates, cells), in_dims[9:11], strict=True)]
    grad_input, grad_h0, grad_c0, grad_weights = backward(
        *folded, None, *states[:2], weights, states[2], *rows, *flags, need_input, need_states, False
    )
    if need_input:
        grad_input = grad_input.unflatten(1, (size, grad_input.shape[1] // size))
    if need_states:
        grad_h0, grad_c0 = (t.unflatten(1, (size, t.shape[1] // size)) for t in (grad_h0, grad_c0))
    dims = (1 if need_input else None, *[1 if need_states else None] * 2, [None] * len(weights))
    return (grad_input, grad_h0, grad_c0, list(grad_weights)), dims


def _unfold_rows(rows: Tensor, steps: int, size: int) -> Tensor:
    """[D, T*(V*B), F] -> [V, D, T*B, F]"""
    return rows.unflatten(1, (steps, size, -1)).movedim(2, 0).flatten(2, 3)


def _fold_rows(rows: Tensor, dim: int, steps: int) -> Tensor:
    """[.. V .. D, T*B, F] -> [D, T*(V*B), F]"""
    return rows.movedim(dim, 0).unflatten(2, (steps, -1)).movedim(0, 2).flatten(1, 3)
