"""What PyTorch has to know about `torch.ops.pykernels.{bmu,unit_sums,som_learn_}` (csrc/ops/bmu.h, som.h): shapes
without computing (fake), derivatives, and how vmap runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._dispatch import is_eager, needs_twin, raw_kernels, twin_vjp
from ._operators import Derivative, fold, loop_over, register_derivative

bmu_op = torch.ops.pykernels.bmu.default
sums_op = torch.ops.pykernels.unit_sums.default
_LOW = (torch.bfloat16, torch.float16)  # whose derivatives are computed in float32


def distances_to(input: Tensor, codebook: Tensor, index: Tensor, metric: str) -> Tensor:
    """Of each sample [N, D] from its units, index [N, k]: [N, k], by operators that can be differentiated."""
    if input.dtype in _LOW:
        return distances_to(input.float(), codebook.float(), index, metric).to(input.dtype)
    units = codebook[index]
    if metric != "cosine":
        return _norm(input[:, None] - units, 1 if metric == "manhattan" else 2)[0]
    (size, none), (of_unit, nor_unit) = _norm(input), _norm(units)
    zero = none[:, None] | nor_unit
    dots = (units @ input[:, :, None])[..., 0]
    return 1 - torch.where(zero, 0, dots / torch.where(zero, 1, of_unit * size[:, None]))


def _norm(rows: Tensor, order: int = 2) -> tuple[Tensor, Tensor]:
    """The norm, of which all derivatives are zero where it is, and where that is."""
    zero = (rows == 0).all(-1)
    return torch.where(zero, 0, torch.linalg.vector_norm(torch.where(zero[..., None], 1, rows), order, -1)), zero


def gradients(
    input: Tensor, codebook: Tensor, distance: Tensor, index: Tensor, metric: str, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Of input and codebook, first derivatives only: with e = (x - w) / d, e and its negative."""
    if metric == "cosine":
        return twin_vjp(lambda t: (distances_to(t[0], t[1], index, metric),), (input, codebook), needed, (grad,))
    apart = input[:, None] - codebook[index] if input.dtype not in _LOW else input.float()[:, None] - codebook[index]
    if metric == "euclidean":
        scale = torch.where(distance == 0, 0, grad / distance)
        apart *= scale[..., None]
    else:
        apart = apart.sign_().mul_(grad[..., None])
    for_input = apart.sum(1).to(input.dtype) if needed[0] else None
    for_codebook = None
    if needed[1]:
        flat = apart.flatten(0, 1)
        kernels = raw_kernels(flat, flat) or torch.ops.pykernels
        sums, _ = kernels.unit_sums(flat, index.reshape(-1), codebook.shape[0])
        for_codebook = sums.neg_().to(codebook.dtype)
    return [for_input, for_codebook]


# --- shapes


def _bmu_fake(input: Tensor, codebook: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape[0], k), input.new_empty(input.shape[0], k, dtype=torch.int64)


def _sums_fake(input: Tensor, index: Tensor, units: int) -> tuple[Tensor, Tensor]:
    return input.new_empty(units, input.shape[1], dtype=torch.float64), index.new_empty(units)


def _learn_fake(codebook: Tensor, input: Tensor, *others: Any) -> Tensor:
    return input.new_empty(input.shape[0])


# --- vmap: examples that share a codebook are more samples


def _bmu_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    if in_dims[1] is not None:
        return loop_over(bmu_op, info, in_dims, args)
    found = bmu_op(fold(args[0], in_dims[0], info.batch_size, 0), *args[1:])
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in found), (0, 0)


def _sums_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return loop_over(sums_op, info, in_dims, args)


# --- derivatives: which units win is not differentiated


class _Bmu(Derivative):
    op = bmu_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.metric = args[3]
        ctx.mark_non_differentiable(results[1])
        ctx.save_for_backward(*args[:2], *results)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        if grads[0] is None:
            return [None] * 4
        input, codebook, distance, index = ctx.saved_tensors
        return *vjp(input, codebook, distance, index, ctx.metric, needed[:2], grads[0]), None, None

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        index = results()[1]
        return distances_to(args[0], args[1], index, args[3]), index


def vjp(
    input: Tensor, codebook: Tensor, distance: Tensor, index: Tensor, metric: str, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients, recorded where this backward is."""
    if needs_twin(grad) or not is_eager(input, codebook, grad):
        return twin_vjp(lambda t: (distances_to(t[0], t[1], index, metric),), (input, codebook), needed, (grad,))
    return gradients(input, codebook, distance, index, metric, needed, grad)


class _Sums(Derivative):
    op = sums_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.dtype = args[0].dtype
        ctx.mark_non_differentiable(results[1])
        ctx.save_for_backward(args[1])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        (index,) = ctx.saved_tensors
        return None if grads[0] is None else grads[0][index].to(ctx.dtype), None, None

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        input, index, units = args
        sums = input.new_zeros(units, input.shape[1], dtype=torch.float64).index_add(0, index, input.double())
        return sums, results()[1]


torch.library.register_fake("pykernels::bmu", _bmu_fake)
torch.library.register_fake("pykernels::unit_sums", _sums_fake)
torch.library.register_fake("pykernels::som_learn_", _learn_fake)
torch.library.register_vmap("pykernels::bmu", _bmu_vmap)
torch.library.register_vmap("pykernels::unit_sums", _sums_vmap)
register_derivative(_Bmu())
register_derivative(_Sums())
