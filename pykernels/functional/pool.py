"""Pooling: the public functions, and the autograd Functions around the raw kernels.

Whatever the operators do not take is torch's: integers, which it pools too, and what it says of arguments that fit
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from ..reference.pool import adaptive_window, fixed_window, unpooled_size
from . import _dispatch, _pool_ops
from ._dispatch import any_autocast, needs_twin, raw_kernels, wants_grad

__all__ = [
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "max_unpool1d", "max_unpool2d", "max_unpool3d",
]  # fmt: skip


class _MaxPool(torch.autograd.Function):
    """The raw kernels. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, window: tuple[Any, ...], indices: bool, input: Tensor) -> Any:
        out, places = kernels.max_pool_forward(input, *window, True)
        ctx.kernels, ctx.window, ctx.size = kernels, window, input.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(places)
        if not indices:
            return out
        found = kernels.max_pool_indices(places, input.shape, *window)
        ctx.mark_non_differentiable(found)
        return out, found

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any = None) -> tuple[Any, ...]:
        if grad is None:
            return None, None, None, None
        call = _pool_ops.max_backward if needs_twin(grad) else ctx.kernels.max_pool_backward
        return None, None, None, call(grad, ctx.saved_tensors[0], ctx.size, *ctx.window)


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Any, numbers: tuple[Any, ...], dims: int, input: Tensor) -> Tensor:
        ctx.kernels, ctx.numbers, ctx.size = kernels, numbers, input.shape
        ctx.last = not input.is_contiguous() and _pool_ops.is_channels_last(input, dims)
        return kernels.avg_pool_forward(input, *numbers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        call = _pool_ops.avg_backward if needs_twin(grad) else ctx.kernels.avg_pool_backward
        return None, None, None, call(grad, ctx.size, ctx.last, *ctx.numbers)


class _Unpool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Any, size: tuple[int, ...], input: Tensor, indices: Tensor) -> Tensor:
        ctx.dims = len(size)
        ctx.save_for_backward(indices)
        return kernels.max_unpool(input, indices, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _pool_ops.unpool_gradient(grad, ctx.saved_tensors[0], ctx.dims), None


_apply_max = _dispatch.direct_apply(_MaxPool)
_apply_avg = _dispatch.direct_apply(_AvgPool)
_apply_unpool = _dispatch.direct_apply(_Unpool)


def _or_torchs(ours: Callable[..., Any], theirs: Callable[..., Any], dims: int, input: Tensor, *args: Any) -> Any:
    """`ours(dims, input, *args)`; torch's result of numbers that are not floating, and its errors where it has one."""
    if is_compiling():
        return ours(dims, input, *args)
    try:
        return ours(dims, input, *args)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        result = theirs(input, *args)
        if not input.is_floating_point():
            return result
        raise


def _for_autocast(dims: int, input: Tensor) -> Tensor:
    """As torch's: three dimensions in float32 on processors."""
    if dims == 3 and any_autocast() and input.is_cpu and torch.is_autocast_enabled("cpu"):
        return _dispatch.cast(input, torch.float32)
    return input


def _max(dims: int, input: Tensor, window: tuple[Any, ...], return_indices: bool) -> Any:
    input = _for_autocast(dims, input)
    kernels = raw_kernels(input, input)
    if kernels is not None:
        if wants_grad(input):
            return _apply_max(kernels, window, return_indices, input)
        out, places = kernels.max_pool_forward(input, *window, return_indices)
        return (out, kernels.max_pool_indices(places, input.shape, *window)) if return_indices else out
    _dispatch.check_devices("max_pool", input)
    out, places = _pool_ops.max_forward(input, *window, return_indices or _dispatch.should_save(input))
    return (out, _pool_ops.max_indices(places, input.shape, *window)) if return_indices else out


def _avg(dims: int, input: Tensor, window: tuple[Any, ...], padded: bool, divisor: int) -> Tensor:
    input = _for_autocast(dims, input)
    numbers = *window[:3], window[4], window[5], padded, divisor
    kernels = raw_kernels(input, input)
    if kernels is not None:
        if wants_grad(input):
            return _apply_avg(kernels, numbers, dims, input)
        return kernels.avg_pool_forward(input, *numbers)
    _dispatch.check_devices("avg_pool", input)
    return _pool_ops.avg_forward(input, *numbers)


def _max_pool(dims: int, input: Tensor, size: Any, stride: Any, padding: Any, dilation: Any, *flags: Any) -> Any:
    ceil_mode, return_indices = flags
    return _max(dims, input, fixed_window(dims, size, stride, padding, dilation, ceil_mode), return_indices)


def _adaptive_max_pool(dims: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    return _max(dims, input, adaptive_window(dims, input.shape, output_size), return_indices)


def _avg_pool(
    dims: int, input: Tensor, size: Any, stride: Any, padding: Any, ceil_mode: bool, padded: bool, divisor: Any = None
) -> Tensor:
    if divisor == 0:
        raise ValueError("[avg_pool] expected divisor_override other than zero")
    return _avg(dims, input, fixed_window(dims, size, stride, padding, 1, ceil_mode), padded, divisor or 0)


def _adaptive_avg_pool(dims: int, input: Tensor, output_size: Any) -> Tensor:
    return _avg(dims, input, adaptive_window(dims, input.shape, output_size), False, 0)


def _max_unpool(dims: int, input: Tensor, indices: Tensor, *window: Any) -> Tensor:
    size = unpooled_size(dims, input, *window)
    kernels = raw_kernels(input, indices)
    if kernels is not None:
        return (
            _apply_unpool(kernels, size, input, indices)
            if wants_grad(input)
            else kernels.max_unpool(input, indices, size)
        )
    _dispatch.check_devices("max_unpool", input, indices)
    return _pool_ops.unpool(input, indices, size)


# fmt: off
def max_pool1d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    """The largest element of each window of [N, C, L] or [C, L]: see :func:`max_pool2d`."""
    args = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return _or_torchs(_max_pool, F.max_pool1d, 1, input, *args)


def max_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    r"""The largest element of each window; takes what :func:`torch.nn.functional.max_pool2d` takes.

    .. math::
        y_{nc,ij} = \max_{k < K_h,\, l < K_w} x_{nc,\; s_h i - p_h + d_h k,\; s_w j - p_w + d_w l}

    over the elements that exist. The first of the largest counts; what is not a number is larger than everything. For
    the backward one byte is kept of each window of up to 256 elements (torch keeps 8), and no indices; the gradients
    have the same bits for any number of threads.

    Args:
        input: x, [N, C, H, W] or [C, H, W], contiguous or channels last; y is in the same format.
        kernel_size, stride, padding, dilation: K, s, p and d, one number or two; s is K by default, p at most K / 2.
        ceil_mode: windows may reach beyond the padding behind.
        return_indices: also the indices into the planes of x, int64.

    Returns:
        y, [N, C, H', W'] with :math:`H' = \lfloor (H + 2 p_h - d_h (K_h - 1) - 1) / s_h \rfloor + 1` (with
        `ceil_mode` rounded up), or (y, indices).

    Raises:
        RuntimeError: shapes and windows do not fit; the messages are torch's.

    Example::

        >>> y = pykernels.functional.max_pool2d(x, 3, 2, 1)
    """
    args = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return _or_torchs(_max_pool, F.max_pool2d, 2, input, *args)


def max_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    """The largest element of each window of [N, C, D, H, W] or [C, D, H, W]: see :func:`max_pool2d`."""
    args = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return _or_torchs(_max_pool, F.max_pool3d, 3, input, *args)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """`output_size` windows of [N, C, L] or [C, L]: see :func:`adaptive_max_pool2d`."""
    return _or_torchs(_adaptive_max_pool, F.adaptive_max_pool1d, 1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    r"""The largest element of so many windows; takes what :func:`torch.nn.functional.adaptive_max_pool2d` takes.

    Along a dimension of n elements, window o of m has those from :math:`\lfloor o n / m \rfloor` to before
    :math:`\lceil (o + 1) n / m \rceil`. Else as :func:`max_pool2d`.

    Args:
        input: [N, C, H, W] or [C, H, W].
        output_size: m, one number or two; None for the input's.
        return_indices: also the indices into the planes of the input, int64.
    """
    return _or_torchs(_adaptive_max_pool, F.adaptive_max_pool2d, 2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """`output_size` windows of [N, C, D, H, W] or [C, D, H, W]: see :func:`adaptive_max_pool2d`."""
    return _or_torchs(_adaptive_max_pool, F.adaptive_max_pool3d, 3, input, output_size, return_indices)


def avg_pool1d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True) -> Tensor:
    """The mean of each window of [N, C, L] or [C, L]: see :func:`avg_pool2d`."""
    args = kernel_size, stride, padding, ceil_mode, count_include_pad
    return _or_torchs(_avg_pool, F.avg_pool1d, 1, input, *args)


def avg_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:
    r"""The mean of each window; takes what :func:`torch.nn.functional.avg_pool2d` takes.

    .. math::
        y_{nc,ij} = \frac{1}{c_{ij}} \sum_{k < K_h,\, l < K_w} x_{nc,\; s_h i - p_h + k,\; s_w j - p_w + l}

    over the elements that exist, summed in float32 for low precision.

    Args:
        input: x, [N, C, H, W] or [C, H, W], contiguous or channels last; y is in the same format.
        kernel_size, stride, padding: K, s and p, one number or two; s is K by default, p at most K / 2.
        ceil_mode: windows may reach beyond the padding behind.
        count_include_pad: c is the number of elements with those of the padding, or without.
        divisor_override: c.

    Raises:
        RuntimeError: shapes and windows do not fit; the messages are torch's.

    Example::

        >>> y = pykernels.functional.avg_pool2d(x, 2)
    """
    args = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _or_torchs(_avg_pool, F.avg_pool2d, 2, input, *args)


def avg_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:
    """The mean of each window of [N, C, D, H, W] or [C, D, H, W]: see :func:`avg_pool2d`."""
    args = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _or_torchs(_avg_pool, F.avg_pool3d, 3, input, *args)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, L] or [C, L]; see :func:`adaptive_max_pool2d` for where they lie."""
    return _or_torchs(_adaptive_avg_pool, F.adaptive_avg_pool1d, 1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, H, W] or [C, H, W]; see :func:`adaptive_max_pool2d`."""
    return _or_torchs(_adaptive_avg_pool, F.adaptive_avg_pool2d, 2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, D, H, W] or [C, D, H, W]; see :func:`adaptive_max_pool2d`."""
    return _or_torchs(_adaptive_avg_pool, F.adaptive_avg_pool3d, 3, input, output_size)


def max_unpool1d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    """Zeros, and the input where the indices say, [N, C, L] or [C, L]: see :func:`max_unpool2d`."""
    return _or_torchs(_max_unpool, F.max_unpool1d, 1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    """Zeros, and the input where the indices of :func:`max_pool2d` say; takes what
    :func:`torch.nn.functional.max_unpool2d` takes. Where two indices are the same the last one counts.

    Args:
        input: [N, C, H', W'] or [C, H', W'].
        indices: like the input, int64: into planes of the output.
        kernel_size, stride, padding: of the pooling.
        output_size: where several sizes are pooled to the input's.
    """
    return _or_torchs(_max_unpool, F.max_unpool2d, 2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    """Zeros, and the input where the indices say, [N, C, D, H, W] or [C, D, H, W]: see :func:`max_unpool2d`."""
    return _or_torchs(_max_unpool, F.max_unpool3d, 3, input, indices, kernel_size, stride, padding, output_size)
# fmt: on
