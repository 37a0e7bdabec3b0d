"""How a recurrent function runs, whatever its kind: one layer or one step, by the raw kernels or by the registered
operator, their gradients, and stacks of layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.recurrent import run_layers
from . import _dispatch
from ._dispatch import any_autocast, is_eager, needs_twin, raw_kernels, wants_grad
from ._recurrent_ops import Kind

Flags = tuple[bool, ...]
States = tuple["Tensor | None", ...]

RunLayer = Callable[[Kind, Tensor, "Tensor | None", States, Sequence[Tensor], Flags], "tuple[Tensor, ...]"]
"""`run_layer`, or what does more than it."""
Call = tuple[Kind, Any, Flags, "Tensor | None"]
"""What runs: kind, compiled module, flags and batch_sizes. (One argument of a Function costs less than four.)"""


class LayerFunction(torch.autograd.Function):
    """One layer by the raw kernels. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(ctx: Any, run: Call, input: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        kind, kernels, flags, batch_sizes = run
        states, weights = tensors[: kind.states], tensors[kind.states :]
        results = getattr(kernels, kind.forward_name)(input, batch_sizes, *states, weights, *flags, True)
        ctx.run = (kind, kernels, flags, None)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, batch_sizes, *states, results[0], *results[kind.results :], *weights)
        return results[: kind.results]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        kind, kernels, flags, _ = ctx.run
        given, output, kept, weights = kind.split_saved(ctx.saved_tensors)
        needed = ctx.needs_input_grad
        if needs_twin(*grads):
            inputs = (given[0], *given[2:], *weights)
            return None, *_dispatch.twin_vjp(kind.as_function(given[1], flags), inputs, needed[1:], grads)
        call = getattr(kernels, kind.backward_name) if is_eager(output) else kind.backward
        need_states, need_weights = True in needed[2 : 2 + kind.states], True in needed[2 + kind.states :]
        found = call(*grads, *given, weights, output, *kept, *flags, needed[1], need_states, need_weights)
        return _gradients(found, needed, need_states, need_weights)


class StepFunction(torch.autograd.Function):
    """One step by the raw kernels."""

    @staticmethod
    def forward(ctx: Any, run: Call, input: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        kind, kernels, flags, _ = ctx.run = run
        states, weights = tensors[: kind.states], tensors[kind.states :]
        call = getattr(kernels, kind.cell_forward_name)
        ctx.set_materialize_grads(False)
        if not kind.cell_keeps:
            new = call(input, *states, weights, *flags)
            ctx.save_for_backward(input, *states, new, *weights)
            return (new,)
        # not the new states, which may be changed in place (a state that is reset between two steps)
        results = call(input, *states, weights, *flags, True)
        ctx.save_for_backward(input, *states, *results[kind.states :], *weights)
        return results[: kind.states]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        kind, kernels, flags, _ = ctx.run
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad
        end = kind.results + (kind.kept if kind.cell_keeps else 1)
        given, kept, weights = saved[: kind.results], saved[kind.results : end], saved[end:]
        if needs_twin(*grads) or not is_eager(given[0]):

            def function(tensors: list[Any]) -> tuple[Tensor, ...]:
                states, weights = tuple(tensors[1 : kind.results]), tensors[kind.results :]
                return _as_layer(kind, kind.twin, tensors[0], states, weights, flags)

            return None, *_dispatch.twin_vjp(function, (*given, *weights), needed[1:], grads)
        call = getattr(kernels, kind.cell_backward_name)
        need_states, need_weights = True in needed[2 : 2 + kind.states], True in needed[2 + kind.states :]
        found = call(*grads, *given, weights, *kept, *flags, needed[1], need_states, need_weights)
        return _gradients(found, needed, need_states, need_weights)


def _gradients(
    found: Sequence[Any], needed: Sequence[bool], need_states: bool, need_weights: bool
) -> tuple[Tensor | None, ...]:
    """What a raw backward has found, for each argument of a Function: None where there is nothing."""
    states, weights = found[1:-1], found[-1]
    if need_states:
        states = [grad if need else None for grad, need in zip(states, needed[2:], strict=False)]
    else:
        states = _NONE[: len(states)]
    return None, found[0] if needed[1] else None, *states, *(weights if need_weights else _NONE * len(weights))


_NONE: tuple[None, ...] = (None, None)


def _as_layer(
    kind: Kind, layer: Any, input: Tensor, states: States, weights: Sequence[Tensor], flags: Flags
) -> tuple[Tensor, ...]:
    """One step as a sequence of one."""
    first = (None if s is None else s.unsqueeze(0) for s in states)
    _, *new = layer(input.unsqueeze(0), None, *first, weights, *kind.layer_flags(*flags))
    return tuple(s.squeeze(0) for s in new)


_apply_layer, _apply_step = _dispatch.direct_apply(LayerFunction), _dispatch.direct_apply(StepFunction)


def run_layer(
    kind: Kind, input: Tensor, batch_sizes: Tensor | None, states: States, weights: Sequence[Tensor], flags: Flags
) -> tuple[Tensor, ...]:
    """One layer over all steps: output and each final state."""
    kernels = raw_kernels(input, weights[0] if weights else input)
    if kernels is None:
        _dispatch.check_devices(kind.name, input, *states, *weights)
        save = _dispatch.should_save(input, *states, *weights)
        return kind.forward(input, batch_sizes, *states, list(weights), *flags, save)[: kind.results]
    if wants_grad(input, *states, *weights):
        return _apply_layer((kind, kernels, flags, batch_sizes), input, *states, *weights)
    call = getattr(kernels, kind.forward_name)
    return call(input, batch_sizes, *states, weights, *flags, False)[: kind.results]


def run_sequence(
    kind: Kind,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: States,
    weights: Sequence[Tensor],
    flags: Flags,
    num_layers: int,
    dropout: float,
    training: bool,
    batch_first: bool,
    run: RunLayer = run_layer,
) -> tuple[Tensor, ...]:
    """All layers, each by `run`, over all steps, under autocast in its dtype: output and each final state."""
    if any_autocast() and (dtype := _dispatch.autocast_dtype(input)) is not None:
        if kind.layer_promotes and input.device.type == "cpu":
            wide = torch.promote_types(dtype, (input if states[-1] is None else states[-1]).dtype)
            if wide != dtype:
                with torch.autocast("cpu", enabled=False):
                    input, weights = _dispatch.cast(input, dtype), [_dispatch.cast(w, dtype) for w in weights]
                    states = tuple(None if s is None else _dispatch.cast(s, dtype) for s in states)
                    rest = (num_layers, dropout, training, batch_first, run)
                    results = run_sequence(kind, input, batch_sizes, states, weights, flags, *rest)
                return tuple(result.to(wide) for result in results)
        input, weights = _dispatch.cast(input, dtype), [_dispatch.cast(w, dtype) for w in weights]
        states = tuple(None if s is None else _dispatch.cast(s, dtype) for s in states)

    if num_layers != 1:

        def layer(input: Tensor, batch_sizes: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
            states, weights = rest[: kind.states], rest[kind.states]
            return run(kind, input, batch_sizes, states, weights, flags)

        return run_layers(
            layer, input, batch_sizes, states, weights, flags, num_layers, flags[-1], dropout, training, batch_first
        )
    if batch_sizes is not None or not batch_first:
        return run(kind, input, batch_sizes, states, weights, flags)
    output, *finals = run(kind, input.transpose(0, 1), None, states, weights, flags)
    return output.transpose(0, 1), *finals


def run_step(
    kind: Kind, input: Tensor, states: States, weights: tuple[Tensor, ...], flags: Flags
) -> tuple[Tensor, ...]:
    """One step, [B, I] -> each new state; `flags` are those of the raw kernels of one step."""
    if any_autocast() and (dtype := _dispatch.autocast_dtype(input)) is not None:
        if kind.cell_promotes:
            dtype = torch.promote_types(dtype, (input if states[-1] is None else states[-1]).dtype)
        input, weights = _dispatch.cast(input, dtype), tuple(_dispatch.cast(w, dtype) for w in weights)
        states = tuple(None if s is None else _dispatch.cast(s, dtype) for s in states)

    kernels = raw_kernels(input, weights[0])
    call = getattr(kernels, kind.cell_forward_name, None)
    if call is None:
        # traced, or a backend without kernels for one step
        def layer(input: Tensor, batch_sizes: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
            return run_layer(kind, input, batch_sizes, rest[: kind.states], rest[kind.states], rest[kind.results :])

        return _as_layer(kind, layer, input, states, weights, flags)
    if wants_grad(weights[0], input, *states, *weights):
        return _apply_step((kind, kernels, flags, None), input, *states, *weights)
    if not kind.cell_keeps:
        return (call(input, *states, weights, *flags),)
    return call(input, *states, weights, *flags, False)[: kind.states]


def without_autocast(input: Tensor) -> Any:
    """The context in which what is given is computed in the dtype that it has."""
    if any_autocast():
        return torch.autocast(input.device.type, enabled=False)
    return contextlib.nullcontext()


def step_weights(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, ...]:
    """The weights of one step as the kernels take them: both biases or none."""
    if bias_ih is not None and bias_hh is not None:
        return weight_ih, weight_hh, bias_ih, bias_hh
    if bias_ih is None and bias_hh is None:
        return weight_ih, weight_hh
    if bias_ih is None:
        return weight_ih, weight_hh, torch.zeros_like(bias_hh), bias_hh  # type: ignore[arg-type, return-value]
    return weight_ih, weight_hh, bias_ih, torch.zeros_like(bias_ih)
