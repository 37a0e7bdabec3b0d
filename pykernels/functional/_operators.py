"""How a registered operator is differentiated and vmapped, whatever transform it is under.

`register_derivative` puts an operator's derivative on its autograd key. (torch.library.register_autograd does the same,
but what it makes cannot be called under `torch.func` transforms.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ._dispatch import wants_grad

Twin = Callable[[list[Any]], "tuple[Tensor, ...]"]
Form = list[int]
"""For each value of a sequence the length of the list that it is, or -1 for a value that is no list."""

_library = torch.library.Library("pykernels", "FRAGMENT")


class _Node(_SingleLevelFunction):
    """The operator as one node of the graph, which knows no lists of tensors: they are spread and gathered again."""

    @staticmethod
    def forward(ctx: Any, rule: Derivative, keyset: Any, forms: list[Form], *flat: Any) -> tuple[Tensor, ...]:
        args = _gather(flat, forms[0])
        # a Function's forward turns recording off; an outer transform may want it on
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            results = _below_autograd(rule.op, keyset, args)
        results = (results,) if isinstance(results, Tensor) else results
        flat_results, form = _flatten(results)
        forms.append(form)
        ctx.rule, ctx.forms = rule, forms
        ctx.set_materialize_grads(False)
        rule.setup(ctx, args, results)
        return tuple(flat_results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needed = _gather(ctx.needs_input_grad[3:], ctx.forms[0])
        found, _ = _flatten(ctx.rule.backward(ctx, needed, *_gather(grads, ctx.forms[1])))
        return None, None, None, *found


class Derivative:
    """What `register_derivative` needs to know of an operator."""

    op: Any

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        """Keep what the backward needs."""
        raise NotImplementedError

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        """The gradient of each argument, in the form of the arguments; `needed` has that form too."""
        raise NotImplementedError

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        """The operator's results by operators that carry tangents; results() gives those without tangents."""
        raise NotImplementedError


def register_derivative(rule: Derivative) -> None:
    """Make the operator differentiable, in reverse and in forward mode."""

    def kernel(keyset: Any, *args: Any) -> Any:
        flat, form = _flatten(args)
        if _in_forward_mode() and any(_has_tangent(t) for t in flat):
            return rule.twin(lambda: _below_autograd(rule.op, keyset, args), *args)
        if wants_grad(*(t for t in flat if isinstance(t, Tensor))):
            forms = [form]
            with enable_single_level_autograd_function():
                results = _Node.apply(rule, keyset, forms, *flat)  # type: ignore[attr-defined]
            gathered = _gather(results, forms[1])
            return gathered[0] if single else tuple(gathered)
        return _below_autograd(rule.op, keyset, args)

    single = len(rule.op._schema.returns) == 1  # then the operator returns it, and not a tuple
    _library.impl(rule.op.name().split("::")[1], kernel, "Autograd", with_keyset=True)


def _below_autograd(op: Any, keyset: Any, args: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _in_forward_mode() -> bool:
    """Whether there can be tangents at all. (To ask a tensor runs an operator, which would show in a traced graph.)"""
    if forward_ad._current_level >= 0:
        return True
    levels = torch._C._functorch.get_interpreter_stack()
    return levels is not None and any(level.key() == torch._C._functorch.TransformType.Jvp for level in levels)


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and torch._VF._unpack_dual(value, level=0)[1] is not None


def _flatten(values: Sequence[Any]) -> tuple[list[Any], Form]:
    """The values with those of lists of tensors spread among them, and what `_gather` needs to undo it."""
    flat: list[Any] = []
    form: Form = []
    for value in values:
        is_list = isinstance(value, list) and not (value and isinstance(value[0], (int, torch.SymInt)))
        form.append(len(value) if is_list else -1)
        flat.extend(value if is_list else [value])
    return flat, form


def _gather(flat: Sequence[Any], form: Form) -> list[Any]:
    values: list[Any] = []
    at = 0
    for length in form:
        values.append(flat[at] if length < 0 else list(flat[at : at + length]))
        at += abs(length)
    return values


class TwinGradient:
    """The gradients of a twin as a function of inputs and grads, which `torch.func` transforms can differentiate.

    Args:
        function: the twin, from a list like `inputs` to its outputs.
        inputs: where; None stays None.
        grads: the gradient of each output, None for zero.
    """

    def __init__(self, function: Twin, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> None:
        self.function, self.inputs, self.grads = function, inputs, grads
        self.at = [i for i, t in enumerate(inputs) if t is not None]
        self.given = [i for i, g in enumerate(grads) if g is not None]
        self.point = tuple(t for t in inputs if t is not None)
        self.direction = tuple(g for g in grads if g is not None)
        self.quiet = torch.autocast(self.point[0].device.type, enabled=False)

    def _primal(self, *point: Tensor) -> tuple[Tensor, ...]:
        outputs = self.function(_spread(point, self.at, len(self.inputs)))
        return tuple(outputs[i] for i in self.given)

    def _gradient(self, point: tuple[Tensor, ...], direction: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.func.vjp(self._primal, *point)[1](direction)

    def first(self) -> list[Tensor | None]:
        """The gradients, None where an input is None."""
        with self.quiet:
            return _spread(self._gradient(self.point, self.direction), self.at, len(self.inputs))

    def second(self, cotangents: Sequence[Tensor | None]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """What cotangents of the inputs' gradients, None for zero, give for the inputs and for the grads."""
        with self.quiet:
            pairs = zip((cotangents[i] for i in self.at), self.point, strict=True)
            seeds = tuple(torch.zeros_like(t) if c is None else c for c, t in pairs)
            inputs, grads = torch.func.vjp(self._gradient, self.point, self.direction)[1](seeds)
            return _spread(inputs, self.at, len(self.inputs)), _spread(grads, self.given, len(self.grads))


def _spread(values: Sequence[Tensor], at: Sequence[int], length: int) -> list[Any]:
    """A list of None with `values` at the places `at`."""
    spread: list[Any] = [None] * length
    for i, value in zip(at, values, strict=True):
        spread[i] = value
    return spread


def take(tree: Any, dims: Any, index: int) -> Any:
    """One example of vmapped arguments: `tree` with dimension `dims` of each batched tensor at `index`."""
    if isinstance(tree, (list, tuple)):
        return [take(t, d, index) for t, d in zip(tree, dims, strict=True)]
    return tree if dims is None else tree.select(dims, index)


def loop_over(op: Callable[..., tuple[Any, ...]], info: Any, dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """The vmap rule that calls `op` once for each example and stacks the results along a new first dimension."""
    results = [op(*take(args, dims, i)) for i in range(info.batch_size)]

    def stack(parts: tuple[Any, ...]) -> Any:
        return [stack(p) for p in zip(*parts, strict=True)] if isinstance(parts[0], list) else torch.stack(parts)

    stacked = tuple(stack(column) for column in zip(*results, strict=True))
    return stacked, tuple([0] * len(s) if isinstance(s, list) else 0 for s in stacked)


def fold(tensor: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """A vmapped tensor with its vmapped dimension laid in front of dimension `batch` and merged with it."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(batch).expand(*tensor.shape[:batch], size, *tensor.shape[batch:])
    else:
        tensor = tensor.movedim(dim, batch)
    return tensor.flatten(batch, batch + 1)
