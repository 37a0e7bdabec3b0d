"""The units of a codebook that are nearest to each sample: the public function, and the autograd Function around the
raw kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _bmu_ops, _dispatch
from ._dispatch import raw_kernels, wants_grad

__all__ = ["bmu"]


class _Bmu(torch.autograd.Function):
    """The raw kernel. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, input: Tensor, codebook: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
        distance, index = kernels.bmu(input, codebook, k, metric)
        ctx.metric = metric
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(input, codebook, distance, index)
        return distance, index

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 5
        input, codebook, distance, index = ctx.saved_tensors
        found = _bmu_ops.vjp(input, codebook, distance, index, ctx.metric, ctx.needs_input_grad[1:3], grad)
        return None, *found, None, None


_apply = _dispatch.direct_apply(_Bmu)


def bmu(input: Tensor, codebook: Tensor, k: int = 1, metric: str = "euclidean") -> tuple[Tensor, Tensor]:
    r"""Best matching units: the units of a codebook that are nearest to each sample, and how far they are.

    .. math::
        b(x) = \operatorname*{arg\,min}_i \; d(x, w_i)

    with the distance d(x, w) = :math:`\lVert x - w \rVert_2` ("euclidean"),
    :math:`1 - x \cdot w / (\lVert x \rVert \lVert w \rVert)` ("cosine"; 1 where either is zero) or
    :math:`\lVert x - w \rVert_1` ("manhattan"). The matrix of all distances is never stored: products with a few units
    turn into scores and the best of these are kept while they are in registers.

    The units are those that float64 arithmetic finds: scores are taken from the codebook's mean, and where the best two
    are within what rounding can do to them, the distances are computed again in double precision. Of units equally far
    away the lowest comes first, on every device. A distance that is not a number is larger than all others: a unit with
    a NaN never wins against one without, and a sample with a NaN has NaN distances.

    Args:
        input: x, [N, D]; float32, float64, bfloat16 or float16.
        codebook: w, [K, D]. Dtypes are promoted.
        k: how many units, 1 ... min(8, K), nearest first.
        metric: "euclidean", "cosine" or "manhattan".

    Returns:
        distance and index (int64), both [N] for one unit and [N, k] for more. Distances are differentiable in both
        arguments (0 where a distance is zero), any number of times; which units win is not.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit.
        ValueError: `k` or `metric` is none of those above.

    Source: Kohonen 1982 (https://doi.org/10.1007/BF00337288).

    Example::

        >>> distance, index = pykernels.functional.bmu(torch.randn(1000, 64), torch.randn(144, 64))
    """
    if input.dtype != codebook.dtype and input.is_floating_point() and codebook.is_floating_point():
        dtype = torch.promote_types(input.dtype, codebook.dtype)
        input, codebook = input.to(dtype), codebook.to(dtype)
    kernels = raw_kernels(input, codebook)
    if kernels is None:
        _dispatch.check_devices("bmu", input, codebook)
        distance, index = _bmu_ops.bmu_op(input, codebook, k, metric)
    elif wants_grad(input, codebook):
        distance, index = _apply(kernels, input, codebook, k, metric)
    else:
        distance, index = kernels.bmu(input, codebook, k, metric)
    return (distance[:, 0], index[:, 0]) if k == 1 else (distance, index)
