"""Pooling: the public functions, and the autograd Functions around the raw kernels.

Whatever the operators do not take is torch's: integers, which it pools too, and what it says of arguments that fit
nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._pool_calls import AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, MaxPool, MaxUnpool

__all__ = [
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "max_unpool1d", "max_unpool2d", "max_unpool3d",
]  # fmt: skip


_max_pool1d, _max_pool2d, _max_pool3d = (MaxPool(f"max_pool{d}d").call for d in (1, 2, 3))
_adaptive_max_pool1d, _adaptive_max_pool2d, _adaptive_max_pool3d = (
    AdaptiveMaxPool(f"adaptive_max_pool{d}d").call for d in (1, 2, 3)
)
_avg_pool1d, _avg_pool2d, _avg_pool3d = (AvgPool(f"avg_pool{d}d").call for d in (1, 2, 3))
_adaptive_avg_pool1d, _adaptive_avg_pool2d, _adaptive_avg_pool3d = (
    AdaptiveAvgPool(f"adaptive_avg_pool{d}d").call for d in (1, 2, 3)
)
_max_unpool1d, _max_unpool2d, _max_unpool3d = (MaxUnpool(f"max_unpool{d}d").call for d in (1, 2, 3))


# fmt: off
def max_pool1d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    """The largest element of each window of [N, C, L] or [C, L]: see :func:`max_pool2d`."""
    return _max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


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
    return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    """The largest element of each window of [N, C, D, H, W] or [C, D, H, W]: see :func:`max_pool2d`."""
    return _max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """`output_size` windows of [N, C, L] or [C, L]: see :func:`adaptive_max_pool2d`."""
    return _adaptive_max_pool1d(input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    r"""The largest element of so many windows; takes what :func:`torch.nn.functional.adaptive_max_pool2d` takes.

    Along a dimension of n elements, window o of m has those from :math:`\lfloor o n / m \rfloor` to before
    :math:`\lceil (o + 1) n / m \rceil`. Else as :func:`max_pool2d`.

    Args:
        input: [N, C, H, W] or [C, H, W].
        output_size: m, one number or two; None for the input's.
        return_indices: also the indices into the planes of the input, int64.
    """
    return _adaptive_max_pool2d(input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """`output_size` windows of [N, C, D, H, W] or [C, D, H, W]: see :func:`adaptive_max_pool2d`."""
    return _adaptive_max_pool3d(input, output_size, return_indices)


def avg_pool1d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True) -> Tensor:
    """The mean of each window of [N, C, L] or [C, L]: see :func:`avg_pool2d`."""
    return _avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)


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
    return _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:
    """The mean of each window of [N, C, D, H, W] or [C, D, H, W]: see :func:`avg_pool2d`."""
    return _avg_pool3d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, L] or [C, L]; see :func:`adaptive_max_pool2d` for where they lie."""
    return _adaptive_avg_pool1d(input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, H, W] or [C, H, W]; see :func:`adaptive_max_pool2d`."""
    return _adaptive_avg_pool2d(input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, D, H, W] or [C, D, H, W]; see :func:`adaptive_max_pool2d`."""
    return _adaptive_avg_pool3d(input, output_size)


def max_unpool1d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    """Zeros, and the input where the indices say, [N, C, L] or [C, L]: see :func:`max_unpool2d`."""
    return _max_unpool1d(input, indices, kernel_size, stride, padding, output_size)


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
    return _max_unpool2d(input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    """Zeros, and the input where the indices say, [N, C, D, H, W] or [C, D, H, W]: see :func:`max_unpool2d`."""
    return _max_unpool3d(input, indices, kernel_size, stride, padding, output_size)
# fmt: on
