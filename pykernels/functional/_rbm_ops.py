"""What PyTorch has to know about `torch.ops.pykernels.rbm_*` (csrc/ops/rbm.h): shapes without computing (fake), the
derivative of the means, and how vmap runs them. Draws and statistics have no derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.rbm import sample_operator
from ._operators import Derivative, loop_over, register_derivative

sample_op = torch.ops.pykernels.rbm_sample.default
statistics_op = torch.ops.pykernels.rbm_contrastive_divergence.default
train_op = torch.ops.pykernels.rbm_train_.default


def mean_gradients(
    grad: Tensor,
    mean: Tensor,
    input: Tensor,
    weight: Tensor,
    numbers: tuple[bool, bool, float],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Of input, weight and bias where needed, from that of the means; by operators that have derivatives themselves.

    Args:
        numbers: transposed, gaussian, temperature.
    """
    transposed, gaussian, temperature = numbers
    if not gaussian:
        grad = grad * (mean * (1 - mean) / temperature)
    count = math.prod(input.shape[:-1])
    rows, given = grad.reshape(count, grad.shape[-1]), input.reshape(count, input.shape[-1])
    of_input = grad @ (weight.t() if transposed else weight) if needed[0] else None
    of_weight = (given.t() @ rows if transposed else rows.t() @ given) if needed[1] else None
    return [of_input, of_weight, rows.sum(0) if needed[2] else None]


def _sample_fake(
    input: Tensor, weight: Tensor, _bias: Any, seed: Tensor | None, _stream: Any, transposed: bool, *_: Any
) -> tuple[Tensor, Tensor]:
    shape = (*input.shape[:-1], weight.shape[1 if transposed else 0])
    return input.new_empty(shape), input.new_empty(0 if seed is None else shape)


def _statistics_fake(
    data: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, chain: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    parameters = (t.new_empty(t.shape) for t in (weight, visible_bias, hidden_bias))
    return *parameters, data.new_empty(0 if chain is None else chain.shape)


def _train_fake(*_: Any) -> None:
    return None


def _sample_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """Examples that share their weights and draw nothing are rows more; others are computed one by one, each as if it
    were alone."""
    if args[3] is not None or in_dims[1:] != (None,) * 7:
        return loop_over(sample_op, info, in_dims, args)
    mean, sample = sample_op(args[0].movedim(in_dims[0], 0), *args[1:])
    return (mean, sample.expand(info.batch_size, 0)), (0, 0)


def _statistics_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    return loop_over(statistics_op, info, in_dims, args)


class _Sample(Derivative):
    op = sample_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.numbers = tuple(args[5:])
        ctx.save_for_backward(args[0], args[1], results[0])
        ctx.mark_non_differentiable(results[1])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        input, weight, mean = ctx.saved_tensors
        found: list[Any] = [None] * 3
        if grads[0] is not None:
            found = mean_gradients(grads[0], mean, input, weight, ctx.numbers, needed[:3])
        return [*found, *[None] * 5]

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        return sample_operator(*args)


torch.library.register_fake("pykernels::rbm_sample", _sample_fake)
torch.library.register_fake("pykernels::rbm_contrastive_divergence", _statistics_fake)
torch.library.register_fake("pykernels::rbm_train_", _train_fake)
register_derivative(_Sample())
torch.library.register_vmap("pykernels::rbm_sample", _sample_vmap)
torch.library.register_vmap("pykernels::rbm_contrastive_divergence", _statistics_vmap)
