"""What PyTorch has to know about `torch.ops.pykernels.conv_relu_max_pool` (csrc/ops/conv_pool.h): shapes without
computing (fake), and its derivatives and vmap rule, which are those of the two operators that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _pool_ops
from ._conv_ops import forward_op as conv_op
from ._dispatch import twin_vjp
from ._operators import Derivative, loop_over, register_derivative

forward_op = torch.ops.pykernels.conv_relu_max_pool.default


def apart(input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    """By the two operators."""
    options, window = args[:5], args[5:]
    return _pool_ops.max_forward(conv_op(input, weight, bias, *options, "relu"), *window, [], True)[0]


class _Forward(Derivative):
    op = forward_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.args = args[3:]
        ctx.save_for_backward(*args[:3])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        given, args = ctx.saved_tensors, ctx.args
        return *twin_vjp(lambda operands: (apart(*operands, *args),), given, needed[:3], grads), *[None] * len(args)

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return apart(*args)


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    (out,), _ = loop_over(lambda *given: (forward_op(*given),), info, in_dims, args)
    return out, 0


torch.library.register_fake("pykernels::conv_relu_max_pool", apart)
torch.library.register_vmap("pykernels::conv_relu_max_pool", _vmap)
register_derivative(_Forward())
