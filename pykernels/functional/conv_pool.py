"""Convolution, ReLU and max-pooling in one kernel, to infer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function

from ..reference.conv_arguments import numbers, output_size
from ..reference.pool import fixed_window
from . import _conv_pool_ops
from ._dispatch import _tracing_state, any_autocast, is_eager, raw_kernels, wants_grad
from ._drop_in import has_kernels
from ._pool_calls import cached_window, fits, max_window
from .conv import conv2d
from .pool import max_pool2d

__all__ = ["conv2d_relu_max_pool2d"]

SMALL = 1 << 18
"""Elements of what the convolution of an image gives that fit into a core's cache; pooled from there. (On a GPU what is
larger is no image for the fused kernel either.)"""


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

    Calls that torch.jit traces go to torch's own functions.

    Raises:
        RuntimeError, TypeError: what the two functions raise.

    Example::

        >>> y = pykernels.functional.conv2d_relu_max_pool2d(x, w, b, pool_kernel_size=2)
    """
    options = stride, padding, dilation, groups, padding_mode
    pool = pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode
    if not is_compiling() and has_torch_function((input, weight, bias)):
        return handle_torch_function(
            conv2d_relu_max_pool2d, (input, weight, bias), input, weight, bias, *options[:4],
            padding_mode=padding_mode, pool_kernel_size=pool_kernel_size, pool_stride=pool_stride,
            pool_padding=pool_padding, pool_dilation=pool_dilation, ceil_mode=ceil_mode,
        )  # fmt: skip
    args = _arguments(input, weight, bias, options, pool)
    if args is None:
        return _apart(input, weight, bias, options, pool)
    kernels = raw_kernels(input, weight) if bias is None or is_eager(bias) else None
    if is_compiling():
        return _one_image(input, _conv_pool_ops.forward_op(*args))
    try:
        return _one_image(input, (_conv_pool_ops.forward_op if kernels is None else kernels.conv_relu_max_pool)(*args))
    except Exception:
        pass
    return _apart(input, weight, bias, options, pool)  # says what is wrong in torch's words


def _one_image(input: Tensor, out: Tensor) -> Tensor:
    return out.squeeze(0) if input.dim() == 3 else out


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], pool: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """The kernel's, None where this is for the two functions."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        return None
    if wants_grad(input, weight, bias) or any_autocast() or torch._C._are_functorch_transforms_active():
        return None
    *given, groups, mode = options
    window = max_window(2, *pool, fixed_window if is_compiling() else cached_window)
    if window is None or type(groups) is not int or _tracing_state() is not None:
        return None
    if not _has_a_kernel(input, weight, groups):
        return None
    try:
        found = *numbers(2, weight.shape[2:], *given), groups, mode
    except (RuntimeError, TypeError, ValueError):
        return None
    batch = input.unsqueeze(0) if input.dim() == 3 else input
    sizes: Sequence[int] = output_size(batch.shape, weight.shape, found)
    if sizes[1] * sizes[2] * sizes[3] > SMALL * found[3]:
        return None
    # (of what cannot be, torch's functions say more than an operator in a trace)
    if is_compiling() and not fits(sizes, window, 2):
        return None
    return batch, weight, bias, *found, *window[:5]


def _apart(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], pool: tuple[Any, ...]
) -> Tensor:
    *numbers, mode = options
    found: Tensor = max_pool2d(conv2d(input, weight, bias, *numbers, padding_mode=mode, activation="relu"), *pool)
    return found


def _has_a_kernel(input: Tensor, weight: Tensor, groups: int) -> bool:
    """Planes are pooled, so channels lie apart; depthwise convolutions and those without channels are no products."""
    if not has_kernels(input) or input.dim() not in (3, 4) or weight.dim() != 4 or weight.layout != torch.strided:
        return False
    if weight.shape[1] == 0 or (weight.shape[1] == 1 and groups > 1):
        return False
    return not _is_channels_last(input) and not _is_channels_last(weight)


def _is_channels_last(tensor: Tensor) -> bool:
    channels, width = tensor.stride(-3), tensor.stride(-1)
    return channels == 1 and width >= tensor.shape[-3]
