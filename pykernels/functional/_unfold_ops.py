"""What PyTorch has to know about `torch.ops.pykernels.{unfold,fold}`: shapes without computing (fake), derivatives, and
how vmap runs them. Each is linear, and the other's derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..reference.unfold import places_of
from ._dispatch import wants_grad
from ._operators import Derivative, fold, register_derivative

unfold_op = torch.ops.pykernels.unfold.default
fold_op = torch.ops.pykernels.fold.default


def _unfold_fake(input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    places = places_of(input.shape[2:], (kernel, stride, padding, dilation))
    return input.new_empty(input.shape[0], input.shape[1] * math.prod(kernel), math.prod(places))


def _fold_fake(columns: Tensor, size: Any, kernel: Any, *_: Any) -> Tensor:
    return columns.new_empty(columns.shape[0], columns.shape[1] // math.prod(kernel), *size)


def _larger_batch(op: Any) -> Callable[..., tuple[Tensor, int]]:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        found = op(fold(args[0], in_dims[0], info.batch_size, 0), *args[1:])
        return found.unflatten(0, (info.batch_size, -1)), 0

    return rule


class _Linear(Derivative):
    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        """The operator itself: of the operand, which may be recorded, and of its tangent."""
        tangent = torch._VF._unpack_dual(args[0], level=0)[1]
        if wants_grad(args[0]):
            with forward_ad._set_fwd_grad_enabled(False):
                primal = self.op(*args)
        else:
            primal = results()
        return torch._VF._make_dual(primal, self.op(tangent, *args[1:]), level=0)


class _Unfold(_Linear):
    op = unfold_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.size, ctx.blocks = args[0].shape[2:], args[1:]

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        return None if grads[0] is None else fold_op(grads[0], ctx.size, *ctx.blocks), *[None] * 4


class _Fold(_Linear):
    op = fold_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.blocks = args[2:]

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        return None if grads[0] is None else unfold_op(grads[0], *ctx.blocks), *[None] * 5


for _op, _fake in ((unfold_op, _unfold_fake), (fold_op, _fold_fake)):
    torch.library.register_fake(_op.name(), _fake)
    torch.library.register_vmap(_op.name(), _larger_batch(_op))
register_derivative(_Unfold())
register_derivative(_Fold())
