"""Pooling: the public functions.

Whatever the operators do not take is torch's: integers and mkldnn tensors, which it pools too, numbers that are no
plain ints, what torch.jit traces, and what torch says of arguments that fit nothing (`_drop_in.py`).
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
        return_indices: also the indices into the planes of x, int64, which a second pass makes of the bytes.

    Returns:
        y, [N, C, H', W'] with :math:`H' = \lfloor (H + 2 p_h - d_h (K_h - 1) - 1) / s_h \rfloor + 1` (with
        `ceil_mode` rounded up), or (y, indices).

    Integers, mkldnn tensors, numbers that are no plain ints (numpy's, tensors) and calls that torch.jit traces go to
    torch's own function.

    Raises:
        RuntimeError, TypeError, ValueError: shapes and windows do not fit; type and message are torch's.

    Source: :class:`torch.nn.MaxPool2d`; of windows Dumoulin and Visin 2016 (https://arxiv.org/abs/1603.07285).

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
        output_size: m, one number or two; None in a pair for the input's.
        return_indices: also the indices into the planes of the input, int64, which a second pass makes.

    Returns:
        [N, C, m_h, m_w] or [C, m_h, m_w], or (that, indices).

    Raises:
        RuntimeError, TypeError, ValueError: torch's.

    Source: :class:`torch.nn.AdaptiveMaxPool2d`.

    Example::

        >>> y = pykernels.functional.adaptive_max_pool2d(x, (7, 7))
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

    Returns:
        y, [N, C, H', W'] or [C, H', W'], of the size that :func:`max_pool2d` has with a dilation of one.

    What there are no kernels for goes to torch's own function, as of :func:`max_pool2d`.

    Raises:
        RuntimeError, TypeError, ValueError: shapes and windows do not fit; type and message are torch's.

    Source: :class:`torch.nn.AvgPool2d`; of windows Dumoulin and Visin 2016 (https://arxiv.org/abs/1603.07285).

    Example::

        >>> y = pykernels.functional.avg_pool2d(x, 2)
    """
    return _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:
    """The mean of each window of [N, C, D, H, W] or [C, D, H, W]: see :func:`avg_pool2d`."""
    return _avg_pool3d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, L] or [C, L]: see :func:`adaptive_avg_pool2d`."""
    return _adaptive_avg_pool1d(input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    r"""The mean of each of so many windows; takes what :func:`torch.nn.functional.adaptive_avg_pool2d` takes.

    .. math::
        y_{nc,ij} = \frac{1}{|R_i| |S_j|} \sum_{r \in R_i,\, s \in S_j} x_{nc,rs}, \qquad
        R_i = \{\lfloor i H / m_h \rfloor, \dots, \lceil (i + 1) H / m_h \rceil - 1\}

    and :math:`S_j` likewise of the columns, summed in float32 for low precision.

    Args:
        input: x, [N, C, H, W] or [C, H, W], contiguous or channels last; y is in the same format.
        output_size: m, one number or two; None in a pair for the input's.

    Returns:
        y, [N, C, m_h, m_w] or [C, m_h, m_w]. Of inputs without channels it is torch's own function's, as of all that
        :func:`max_pool2d` names.

    Raises:
        RuntimeError, TypeError, ValueError: torch's.

    Source: :class:`torch.nn.AdaptiveAvgPool2d`.

    Example::

        >>> y = pykernels.functional.adaptive_avg_pool2d(x, 1)
    """
    return _adaptive_avg_pool2d(input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """The means of `output_size` windows of [N, C, D, H, W] or [C, D, H, W]: see :func:`adaptive_avg_pool2d`."""
    return _adaptive_avg_pool3d(input, output_size)


def max_unpool1d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    """Zeros, and the input where the indices say, [N, C, L] or [C, L]: see :func:`max_unpool2d`."""
    return _max_unpool1d(input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    r"""Zeros, and the input where the indices of :func:`max_pool2d` say; takes what
    :func:`torch.nn.functional.max_unpool2d` takes.

    .. math::
        x_{nc,p} = y_{nc,o} \text{ where } a_{nc,o} = p, \text{ of the last such } o; \text{ else } 0

    with places o of the input's planes and p of the output's. The gradient of y is what lies at a, also where the same
    place is named twice.

    Args:
        input: y, [N, C, H', W'] or [C, H', W'].
        indices: a, like the input, int64: into planes of the output.
        kernel_size, stride, padding: K, s and p of the pooling, one number or two; s is K by default.
        output_size: where several sizes are pooled to the input's: (H, W), or all of the sizes of x.

    Returns:
        x, [N, C, H, W] or [C, H, W] with :math:`H = (H' - 1) s_h - 2 p_h + K_h` (W likewise), or `output_size`, which
        may be off by less than a stride. What :func:`max_pool2d` leaves to torch, and autocast's dtypes, are torch's.

    Raises:
        ValueError: an `output_size` that is off by more.
        RuntimeError, TypeError: shapes do not fit, or an index lies outside; type and message are torch's.

    Source: Zeiler and Fergus 2014 (https://arxiv.org/abs/1311.2901); :class:`torch.nn.MaxUnpool2d`.

    Example::

        >>> y, at = pykernels.functional.max_pool2d(x, 2, return_indices=True)
        >>> x = pykernels.functional.max_unpool2d(y, at, 2, output_size=x.shape)
    """
    return _max_unpool2d(input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    """Zeros, and the input where the indices say, [N, C, D, H, W] or [C, D, H, W]: see :func:`max_unpool2d`."""
    return _max_unpool3d(input, indices, kernel_size, stride, padding, output_size)
# fmt: on
