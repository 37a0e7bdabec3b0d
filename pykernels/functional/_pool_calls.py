"""How the pooling functions are called: the autograd Functions around the raw kernels, the registered operators, and
what the arguments mean to both. None stands for what only torch can judge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor

from ..reference.pool import Window, adaptive_window, fixed_window, unpooled_size
from . import _dispatch, _pool_ops
from ._dispatch import any_autocast, is_eager, needs_twin, wants_grad
from ._drop_in import DropIn, known, plain

__all__ = [
    "AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool", "MaxUnpool",
    "cached_window", "fits", "max_window",
]  # fmt: skip

_SEQUENCE = frozenset((tuple, list, torch.Size))


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


# --- what the arguments mean

cached_window = functools.lru_cache(maxsize=4096)(fixed_window)
_cached_unpooled = functools.lru_cache(maxsize=4096)(unpooled_size)


def max_window(
    dims: int, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any,
    make: Callable[..., Any] = fixed_window, *more: Any,
) -> Any:  # fmt: skip
    """What `make` makes of the numbers, and of `more`."""
    if type(ceil_mode) is not bool:
        return None
    if type(size) is not int and (size := plain(size)) is None:
        return None
    if stride is not None and type(stride) is not int and (stride := plain(stride)) is None:
        return None
    if type(padding) is not int and (padding := plain(padding)) is None:
        return None
    if type(dilation) is not int and (dilation := plain(dilation)) is None:
        return None
    return make(dims, size, stride, padding, dilation, ceil_mode, *more)


def _mean_numbers(window: Window, padded: bool, divisor: int | None = None) -> tuple[Any, ...]:
    """As the operators of means take them."""
    return *window[:3], window.ceil_mode, window.output_size, padded, divisor or 0


@functools.lru_cache(maxsize=4096)
def _cached_numbers(*given: Any) -> tuple[Any, ...]:
    return _mean_numbers(fixed_window(*given[:6]), *given[6:])


def _mean_flags(padded: Any, divisor: Any = None) -> bool:
    if divisor is not None and ((type(divisor) is not int and type(divisor) is not SymInt) or divisor == 0):
        return False
    return type(padded) is bool


def _adaptive(dims: int, size: Sequence[Any], output_size: Any, make: Callable = adaptive_window) -> Any:
    kind = type(output_size)
    if kind is int:
        return make(dims, (), output_size)
    if kind in _SEQUENCE:
        if len(output_size) != dims or len(size) < dims:
            return None
        if dims > 1 and any(out is None for out in output_size):  # keeps the input's
            output_size = tuple(n if out is None else out for n, out in zip(size[-dims:], output_size, strict=True))
    found = plain(output_size)
    return None if found is None else make(dims, (), found)


_cached_adaptive = functools.lru_cache(maxsize=4096)(adaptive_window)
_cached_means = functools.lru_cache(maxsize=4096)(lambda *given: _mean_numbers(adaptive_window(*given), False))


def fits(size: Sequence[int], window: Window, dims: int) -> bool:
    """Whether the operators take these windows of an input of this size, in as far as a trace knows."""
    lead = len(size) - dims
    if lead not in (1, 2) or any(known(n == 0) for n in size[lead - 1 :]):
        return False
    if not window.kernel_size:
        return not any(known(n < 0) for n in window.output_size)
    if any(len(column) != dims for column in window[:4]):
        return False
    for kernel, stride, padding, dilation in zip(*window[:4], strict=True):
        if kernel < 1 or stride < 1 or dilation < 1 or not 0 <= padding <= (dilation * (kernel - 1) + 1) // 2:
            return False
    return not any(known(n < 1) for n in window.pooled(size[lead:]))


def _in_float32(input: Tensor) -> Tensor:
    """What torch's autocast does of some of these functions, on processors."""
    if input.is_cpu and torch.is_autocast_enabled("cpu"):
        return _dispatch.cast(input, torch.float32)
    return input


# --- the functions


class _Pool(DropIn):
    def __init__(self, name: str, tensors: int = 1) -> None:
        super().__init__(name, tensors)
        self.dims = int(name[-2])


class MaxPool(_Pool):
    def eager(self, kernels: Any, input: Tensor, *given: Any) -> Any:
        *window, indices = given
        return self._by_kernels(kernels, input, max_window(self.dims, *window, cached_window), indices)

    def recorded(self, input: Tensor, *given: Any) -> Any:
        *window, indices = given
        return self._by_operators(input, max_window(self.dims, *window), indices)

    def _cast(self, input: Tensor, indices: bool) -> Tensor:
        return _in_float32(input) if self.dims == 3 and not indices else input

    def _by_kernels(self, kernels: Any, input: Tensor, window: Window | None, indices: Any) -> Any:
        if window is None or type(indices) is not bool:
            return None
        if any_autocast():
            input = self._cast(input, indices)
        if wants_grad(input):
            return _apply_max(kernels, window, indices, input)
        out, places = kernels.max_pool_forward(input, *window, indices)
        return (out, kernels.max_pool_indices(places, input.shape, *window)) if indices else out

    def _by_operators(self, input: Tensor, window: Window | None, indices: Any) -> Any:
        if window is None or type(indices) is not bool or not fits(input.shape, window, self.dims):
            return None
        if any_autocast():
            input = self._cast(input, indices)
        out, places = _pool_ops.max_forward(input, *window, indices or _dispatch.should_save(input))
        return (out, _pool_ops.max_indices(places, input.shape, *window)) if indices else out


class AdaptiveMaxPool(MaxPool):
    def eager(self, kernels: Any, input: Tensor, *given: Any) -> Any:
        size, indices = given
        return self._by_kernels(kernels, input, _adaptive(self.dims, input.shape, size, _cached_adaptive), indices)

    def recorded(self, input: Tensor, *given: Any) -> Any:
        size, indices = given
        return self._by_operators(input, _adaptive(self.dims, input.shape, size), indices)

    def _cast(self, input: Tensor, indices: bool) -> Tensor:
        return super()._cast(input, False)


class AvgPool(_Pool):
    def eager(self, kernels: Any, input: Tensor, *given: Any) -> Any:
        size, stride, padding, ceil_mode, *mean = given
        if not _mean_flags(*mean):
            return None
        numbers = max_window(self.dims, size, stride, padding, 1, ceil_mode, _cached_numbers, *mean)
        return self._by_kernels(kernels, input, numbers)

    def recorded(self, input: Tensor, *given: Any) -> Any:
        size, stride, padding, ceil_mode, *mean = given
        window = max_window(self.dims, size, stride, padding, 1, ceil_mode)
        if window is None or not _mean_flags(*mean) or not fits(input.shape, window, self.dims):
            return None
        # (torch's avg_pool3d looks at the input without its padding)
        if self.dims == 3 and any(known(n < k) for n, k in zip(input.shape[-3:], window.kernel_size, strict=True)):
            return None
        return self._by_operators(input, _mean_numbers(window, *mean))

    def _cast(self, input: Tensor) -> Tensor:
        return _in_float32(input) if self.dims == 3 else input

    def _by_kernels(self, kernels: Any, input: Tensor, numbers: tuple[Any, ...] | None) -> Any:
        if numbers is None:
            return None
        if any_autocast():
            input = self._cast(input)
        if wants_grad(input):
            return _apply_avg(kernels, numbers, self.dims, input)
        return kernels.avg_pool_forward(input, *numbers)

    def _by_operators(self, input: Tensor, numbers: tuple[Any, ...]) -> Any:
        return _pool_ops.avg_forward(self._cast(input) if any_autocast() else input, *numbers)


class AdaptiveAvgPool(AvgPool):
    def eager(self, kernels: Any, input: Tensor, *given: Any) -> Any:
        (size,) = given
        return self._by_kernels(kernels, input, _adaptive(self.dims, input.shape, size, _cached_means))

    def recorded(self, input: Tensor, *given: Any) -> Any:
        (size,) = given
        window = _adaptive(self.dims, input.shape, size)
        if window is None or not fits(input.shape, window, self.dims):
            return None
        return self._by_operators(input, _mean_numbers(window, False))


class MaxUnpool(_Pool):
    def __init__(self, name: str) -> None:
        super().__init__(name, 2)

    def eager(self, kernels: Any, input: Tensor, *given: Any) -> Any:
        indices, *window = given
        if not is_eager(indices):
            return self.seen(input, *given)
        size = self._size(_cached_unpooled, input, *window)
        if size is None:
            return None
        input = _in_float32(input) if any_autocast() else input
        if wants_grad(input):
            return _apply_unpool(kernels, size, input, indices)
        return kernels.max_unpool(input, indices, size)

    def recorded(self, input: Tensor, *given: Any) -> Any:
        indices, *window = given
        size = self._size(unpooled_size, input, *window)
        if size is None or not isinstance(indices, Tensor) or indices.dtype != torch.int64:
            return None
        lead = input.dim() - self.dims
        if lead not in (1, 2) or indices.dim() != input.dim() or any(known(n == 0) for n in input.shape[lead - 1 :]):
            return None
        if any(known(n != m) for n, m in zip(input.shape, indices.shape, strict=True)):
            return None
        _dispatch.check_devices("max_unpool", input, indices)
        return _pool_ops.unpool(_in_float32(input) if any_autocast() else input, indices, size)

    def _size(self, make: Callable, input: Tensor, size: Any, stride: Any, padding: Any, output_size: Any) -> Any:
        size, padding = self._each(size), self._each(padding)
        stride = size if stride is None else self._each(stride)
        if size is None or stride is None or padding is None:
            return None
        if output_size is not None:
            output_size = plain(output_size)
            if type(output_size) is not tuple:
                return None
        return make(self.dims, input.shape, size, stride, padding, output_size)

    def _each(self, value: Any) -> Any:
        value = plain(value)
        return value if value is None or type(value) is tuple else (value,) * self.dims
