"""What PyTorch has to know about the recurrent operators `torch.ops.pykernels.{lstm,gru,rnn}_{forward,backward}`.

Shapes without computing (fake), derivatives, and how vmap runs them: the same for each kind, from its description. The
arguments of every kind lie in this order (csrc/ops):

    forward   input, batch_sizes, *states, weights, *flags, save
              -> output, *final states, *kept
    backward  *grads of output and final states, input, batch_sizes, *states, weights, output, *kept, *flags,
              need_input, need_states, need_weights
              -> grad_input, *grads of states, grad_weights

where `kept` is what the forward leaves for the backward: rows [D, N, ...], or [0] where nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._dispatch import twin_vjp
from ._operators import Derivative, Twin, TwinGradient, fold, loop_over, register_derivative

Widths = Callable[[Sequence[Tensor], Sequence[bool]], "tuple[Sequence[int], Sequence[int]]"]


class Kind:
    """A kind of recurrent operator, registered with PyTorch when it is made.

    Args:
        name: the operators are `{name}_forward` and `{name}_backward`, the raw kernels of one step
            `{name}_cell_forward` and `{name}_cell_backward`.
        twin: of one layer, in plain PyTorch: (input, batch_sizes, *states, weights, *flags) -> output, *final states.
        states, kept, flags: how many there are of each; the last flag is `bidirectional`. A flag may also be a number,
            or a tensor without a gradient that belongs to this call alone (a mask).
        widths: (weights, flags) -> the width of each state, the first of which is put out (without states, of what is),
            and of the rows of everything kept, 0 for [0].
        layer_flags: the flags of which the raw kernels of one step, if there are any, have a choice -> all flags.
        cell_keeps: whether the raw forward of one step takes `save` and leaves something; or else its backward takes
            the new state.
        cell_promotes: whether a step under autocast is computed in the wider of the state's dtype and autocast's.
        layer_promotes: whether, on the CPU, a layer's results under autocast are put out in the wider of them.
    """

    def __init__(
        self,
        name: str,
        twin: Callable[..., tuple[Tensor, ...]],
        *,
        states: int,
        kept: int,
        flags: int,
        widths: Widths,
        layer_flags: Callable[..., tuple[bool, ...]] = lambda *flags: flags,
        cell_keeps: bool = True,
        cell_promotes: bool = True,
        layer_promotes: bool = False,
    ) -> None:
        self.name, self.twin, self.widths, self.layer_flags = name, twin, widths, layer_flags
        self.states, self.kept, self.flags, self.results = states, kept, flags, 1 + states
        self.cell_keeps, self.cell_promotes, self.layer_promotes = cell_keeps, cell_promotes, layer_promotes
        self.forward_name, self.backward_name = f"{name}_forward", f"{name}_backward"
        self.cell_forward_name, self.cell_backward_name = f"{name}_cell_forward", f"{name}_cell_backward"
        self.forward = getattr(torch.ops.pykernels, self.forward_name).default
        self.backward = getattr(torch.ops.pykernels, self.backward_name).default

        forward, backward = f"pykernels::{self.forward_name}", f"pykernels::{self.backward_name}"
        torch.library.register_fake(forward, self._forward_fake)
        torch.library.register_fake(backward, self._backward_fake)
        register_derivative(_Forward(self))
        register_derivative(_Backward(self))
        torch.library.register_vmap(forward, self._forward_vmap)
        torch.library.register_vmap(backward, self._backward_vmap)

    def split(self, args: Sequence[Any]) -> Arguments:
        """The arguments of the forward operator, by their names."""
        first = 2 + self.states
        return Arguments(args[0], args[1], tuple(args[2:first]), args[first], tuple(args[first + 1 :][: self.flags]))

    def split_backward(self, args: Sequence[Any]) -> tuple[Sequence[Any], Arguments, Any, Sequence[Any], Any]:
        """The backward operator's grads, the forward's arguments, output, kept, and what is needed."""
        given = self.results + 3 + self.states
        rest = given + 1 + self.kept
        arguments = self.split([*args[self.results : given], *args[rest:]])
        return args[: self.results], arguments, args[given], args[given + 1 : rest], args[rest + self.flags :]

    def split_saved(self, saved: Sequence[Any]) -> tuple[Sequence[Any], Tensor, Sequence[Tensor], list[Tensor]]:
        """input, batch_sizes and states; output; kept; weights: out of what a forward saves, in this order."""
        given = 2 + self.states
        kept = given + 1 + self.kept
        return saved[:given], saved[given], saved[given + 1 : kept], list(saved[kept:])

    def as_function(self, batch_sizes: Tensor | None, flags: Sequence[bool]) -> Twin:
        """The twin as a function of the list [input, *states, *weights]."""

        def function(tensors: list[Any]) -> tuple[Tensor, ...]:
            states, weights = tensors[1 : self.results], tensors[self.results :]
            return self.twin(tensors[0], batch_sizes, *states, weights, *flags)

        return function

    # --- shapes

    def _forward_fake(self, *args: Any) -> tuple[Tensor, ...]:
        input, batch_sizes, states, weights, flags = self.split(args)
        save, directions = args[-1], 2 if flags[-1] else 1
        widths, kept_widths = self.widths(weights, flags)
        rows: Any = input.shape[0]
        if batch_sizes is None:
            rows = rows * input.shape[1]
        batch = _batch(input, batch_sizes, states) if self.states else 0
        new = input.new_empty
        return (
            new(*input.shape[:-1], directions * widths[0]),
            *(new(directions, batch, width) for width in widths[: self.states]),
            *(new(directions, rows, width) if save and width else new(0) for width in kept_widths),
        )

    def _backward_fake(self, *args: Any) -> tuple[Any, ...]:
        grads, (input, batch_sizes, states, weights, flags), _, _, needs = self.split_backward(args)
        need_input, need_states, need_weights = needs
        widths, _ = self.widths(weights, flags)
        batch = _batch(input, batch_sizes, (*states, *grads[1:])) if need_states else 0
        new = input.new_empty
        return (
            new(input.shape) if need_input else new(0),
            *(new(2 if flags[-1] else 1, batch, width) if need_states else new(0) for width in widths[: self.states]),
            [new(w.shape) if need_weights else new(0) for w in weights],
        )

    # --- vmap

    def _forward_vmap(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        input, batch_sizes, states, weights, flags = self.split(args)
        dims = self.split(in_dims)
        if batch_sizes is not None or any(d is not None for d in dims.weights) or _has_mask(flags):
            return loop_over(self.forward, info, in_dims, args)

        # only the data is batched: one call over a larger batch
        size = info.batch_size
        x = fold(input, dims.input, size, 1)
        assert x is not None
        folded = [fold(state, d, size, 1) for state, d in zip(states, dims.states, strict=True)]
        results = self.forward(x, None, *folded, weights, *flags, args[-1])
        split = (size, x.shape[1] // size)
        kept = [_unfold_rows(t, x.shape[0], size) if t.dim() == 3 else t for t in results[self.results :]]
        return (
            (*(t.unflatten(1, split) for t in results[: self.results]), *kept),
            (*[1] * self.results, *(0 if t.dim() == 4 else None for t in kept)),
        )

    def _backward_vmap(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        grads, (input, batch_sizes, states, weights, flags), output, kept, needs = self.split_backward(args)
        grad_dims, dims, output_dim, kept_dims, _ = self.split_backward(in_dims)
        need_input, need_states, need_weights = needs
        whole = output_dim is not None and all(
            d is not None or t.dim() == 1 for t, d in zip(kept, kept_dims, strict=True)
        )
        looped = batch_sizes is not None or any(d is not None for d in dims.weights) or _has_mask(flags)
        if looped or not whole or need_weights:
            return loop_over(self.backward, info, in_dims, args)

        # gradients of the data only: again one call over a larger batch
        size = info.batch_size
        steps = output.select(output_dim, 0).shape[0]
        x, y = fold(input, dims.input, size, 1), fold(output, output_dim, size, 1)
        folded = [fold(t, d, size, 1) for t, d in zip((*grads, *states), (*grad_dims, *dims.states), strict=True)]
        grad_input, *grad_states, grad_weights = self.backward(
            *folded[: self.results], x, None, *folded[self.results :], weights, y,
            *(_fold_rows(t, d, steps) for t, d in zip(kept, kept_dims, strict=True)), *flags,
            need_input, need_states, False,
        )  # fmt: skip
        if need_input:
            grad_input = grad_input.unflatten(1, (size, grad_input.shape[1] // size))
        if need_states:
            grad_states = [t.unflatten(1, (size, t.shape[1] // size)) for t in grad_states]
        state_dim = 1 if need_states else None
        return (
            (grad_input, *grad_states, list(grad_weights)),
            (1 if need_input else None, *[state_dim] * self.states, [None] * len(weights)),
        )


class Arguments(NamedTuple):
    """What forward and backward have in common."""

    input: Any
    batch_sizes: Any
    states: tuple[Any, ...]
    weights: Any
    flags: tuple[Any, ...]


def _has_mask(flags: Sequence[Any]) -> bool:
    return any(isinstance(flag, Tensor) for flag in flags)


def _batch(input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor | None]) -> Any:
    """The size of the batch. Of packed input only the values of batch_sizes tell it, or a state."""
    if batch_sizes is None:
        return input.shape[1]
    for state in states:
        if state is not None:
            return state.shape[1]
    return torch.library.get_ctx().new_dynamic_size()


def _unfold_rows(rows: Tensor, steps: int, size: int) -> Tensor:
    """[D, T*(V*B), F] -> [V, D, T*B, F]"""
    return rows.unflatten(1, (steps, size, -1)).movedim(2, 0).flatten(2, 3)


def _fold_rows(rows: Tensor, dim: int | None, steps: int) -> Tensor:
    """[.. V .. D, T*B, F] -> [D, T*(V*B), F]; [0] stays [0]."""
    if dim is None:
        return rows
    rows = rows.movedim(dim, 0)
    return rows[0] if rows.dim() == 2 else rows.unflatten(2, (steps, -1)).movedim(0, 2).flatten(1, 3)


# --- derivatives: the forward's by the backward, and the backward's by the twin


class _Forward(Derivative):
    def __init__(self, kind: Kind) -> None:
        self.kind, self.op = kind, kind.forward

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        input, batch_sizes, states, weights, ctx.flags = self.kind.split(args)
        ctx.saved = args[-1]
        kept = results[self.kind.results :]
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(input, batch_sizes, *states, results[0], *kept, *weights)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        kind = self.kind
        given, output, kept, weights = kind.split_saved(ctx.saved_tensors)
        if not ctx.saved:
            output, *rest = kind.forward(*given, weights, *ctx.flags, True)
            kept = rest[kind.states :]
        need = kind.split(needed)
        grad_input, *grad_states, grad_weights = kind.backward(
            *grads[: kind.results], *given, weights, output, *kept, *ctx.flags,
            need.input, any(need.states), any(need.weights),
        )  # fmt: skip
        return (
            grad_input if need.input else None,
            None,
            *(g if n else None for g, n in zip(grad_states, need.states, strict=True)),
            [g if n else None for g, n in zip(grad_weights, need.weights, strict=True)],
            *[None] * (kind.flags + 1),
        )

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        return (*self.kind.twin(*args[:-1]), *results()[self.kind.results :])


class _Backward(Derivative):
    def __init__(self, kind: Kind) -> None:
        self.kind, self.op = kind, kind.backward

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        # What the forward has kept is a function of its arguments, and the twin computes it again.
        grads, (input, batch_sizes, states, weights, ctx.flags), _, _, ctx.needs = self.kind.split_backward(args)
        ctx.save_for_backward(input, batch_sizes, *grads, *states, *weights)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        kind = self.kind
        input, batch_sizes, *rest = ctx.saved_tensors
        first, operands = rest[: kind.results], rest[kind.results :]
        to_input, *to_states, to_weights = grads
        need_input, need_states, need_weights = ctx.needs
        cotangents = (
            to_input if need_input else None,
            *(to_states if need_states else [None] * kind.states),
            *(to_weights if need_weights else [None] * (len(operands) - kind.states)),
        )
        gradient = TwinGradient(kind.as_function(batch_sizes, ctx.flags), (input, *operands), first)
        (for_input, *rest), for_grads = gradient.second(cotangents)
        for_states, for_weights = rest[: kind.states], rest[kind.states :]
        unused = [None] * (1 + kind.kept + kind.flags + 3)
        return *for_grads, for_input, None, *for_states, for_weights, *unused

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        kind = self.kind
        grads, (input, batch_sizes, states, weights, flags), _, _, needs = kind.split_backward(args)
        need_input, need_states, need_weights = needs
        needed = (need_input, *[need_states] * len(states), *[need_weights] * len(weights))
        function = kind.as_function(batch_sizes, flags)
        for_input, *rest = twin_vjp(function, (input, *states, *weights), needed, grads)
        plain_input, *plain_states, plain_weights = results()
        return (
            for_input if need_input else plain_input,
            *(p if g is None else g for g, p in zip(rest[: kind.states], plain_states, strict=True)),
            rest[kind.states :] if need_weights else plain_weights,
        )
