"""Convolution, ReLU and max-pooling in one kernel, to infer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..reference.conv_arguments import Options, numbers, output_size
from ..reference.pool import fixed_window
from . import _conv_pool_ops
from ._dispatch import any_autocast, is_eager, raw_kernels, wants_grad
from .conv import conv2d
from .pool import max_pool2d

__all__ = ["conv2d_relu_max_pool2d"]

SMALL = 1 << 18
"""Elements of what the convolution of an image gives that fit into a core's cache; pooled from there. (On a GPU what is
larger is no image for the fused kernel either.)"""

_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def conv2d_relu_max_pool2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", pool_kernel_size: Any, pool_stride: Any = None,
    pool_padding: Any = 0, pool_dilation: Any = 1, ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    r"""The largest of each window of a convolution's ReLU.

    .. math::
        y = \mathrm{maxpool}(\max(0, \mathrm{conv}(x)))

    that is, `max_pool2d(conv2d(input, ..., activation="relu"), pool_kernel_size, ...)`. Where no gradient is wanted,
    images are contiguous and what the convolution gives is small (2^18 elements an image), that never leaves the
    caches, and bias and ReLU are computed of the largest elements only: to the bit what the two functions give, where
    :func:`conv2d` has no minimal filtering, and else to rounding. Else it is these two functions, with their
    derivatives.

    On a GPU small ones are computed in the multiprocessors' own memory, where a filter has at most 256 values (channels
    of a group times taps) and there is room for a row of windows; else the two kernels run one after the other. Sums go
    over channels and taps one after the other there, so the two functions' results differ by the order of summation.

    Args:
        input, weight, bias, stride, padding, dilation, groups, padding_mode: of :func:`conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: of :func:`max_pool2d`.

    Returns:
        [N, K, H', W'] or [K, H', W'].

    Raises:
        RuntimeError, TypeError: what the two functions raise.

    Example::

        >>> y = pykernels.functional.conv2d_relu_max_pool2d(x, w, b, pool_kernel_size=2)
    """
    options = stride, padding, dilation, groups, padding_mode
    pool = pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode
    if (
        wants_grad(input, weight, bias)
        or any_autocast()
        or torch._C._are_functorch_transforms_active()
        or not _has_a_kernel(input, weight, groups)
    ):
        return _apart(input, weight, bias, options, pool)
    try:
        found = *numbers(2, weight.shape[2:], stride, padding, dilation), groups, padding_mode
        batch = input.unsqueeze(0) if input.dim() == 3 else input
        if not _is_small(batch, weight, found):
            return _apart(input, weight, bias, options, pool)
        args = batch, weight, bias, *found, *fixed_window(2, *pool)[:5]
        kernels = raw_kernels(input, weight) if bias is None or is_eager(bias) else None
        out: Tensor = (_conv_pool_ops.forward_op if kernels is None else kernels.conv_relu_max_pool)(*args)
    except (RuntimeError, TypeError, ValueError):
        if not is_compiling():
            _apart(input, weight, bias, options, pool)  # says what is wrong in torch's words
        raise
    return out.squeeze(0) if input.dim() == 3 else out


def _apart(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], pool: tuple[Any, ...]
) -> Tensor:
    *numbers, mode = options
    found: Tensor = max_pool2d(conv2d(input, weight, bias, *numbers, padding_mode=mode, activation="relu"), *pool)
    return found


def _has_a_kernel(input: Tensor, weight: Tensor, groups: int) -> bool:
    """Planes are pooled, so channels lie apart; depthwise convolutions and those without channels are no products."""
    if input.dim() not in (3, 4) or weight.dim() != 4 or input.dtype not in _DTYPES or input.layout != torch.strided:
        return False
    if not (input.is_cpu or input.is_cuda or input.is_meta):
        return False
    if weight.shape[1] == 0 or (weight.shape[1] == 1 and groups > 1):
        return False
    return not _is_channels_last(input) and not _is_channels_last(weight)


def _is_channels_last(tensor: Tensor) -> bool:
    channels, width = tensor.stride(-3), tensor.stride(-1)
    return channels == 1 and width >= tensor.shape[-3]


def _is_small(input: Tensor, weight: Tensor, options: Options) -> bool:
    sizes: Sequence[int] = output_size(input.shape, weight.shape, options)
    return bool(sizes[1] * sizes[2] * sizes[3] <= SMALL * options[3])
