"""Pooling written as its definition, in plain PyTorch: every window is laid out, then its maximum or mean is taken.

This is what `pykernels.functional`'s pooling functions are held against. `fixed_window` and `adaptive_window` say what
their arguments mean, for the functions and their twins alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "max_unpool1d", "max_unpool2d", "max_unpool3d",
]  # fmt: skip


class Window(NamedTuple):
    """The windows of a pooling operator, as it takes them: fixed ones of `kernel_size`; where that is empty, adaptive
    ones, `output_size` of them. One entry for each spatial dimension."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    output_size: tuple[int, ...]

    @property
    def dims(self) -> int:
        return len(self.kernel_size or self.output_size)

    def pooled(self, size: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes of what comes out, from those of what goes in."""
        if not self.kernel_size:
            return self.output_size
        one = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple(_pooled(*sizes, self.ceil_mode) for sizes in one)

    def longest(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many places the longest window has along each dimension."""
        if self.kernel_size:
            return self.kernel_size
        return tuple(_longest(n, out) for n, out in zip(size, self.output_size, strict=True))


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    whole = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return whole // stride + 1
    count = (whole + stride - 1) // stride + 1
    # the last window starts inside the input or its padding in front
    return count - 1 if (count - 1) * stride >= size + padding else count


def _longest(size: int, out: int) -> int:
    """Windows start at floor(o size / out) and end before ceil((o + 1) size / out)."""
    if size % out == 0:
        return size // out
    rest = size % out
    # a window of one more than the others' size // out + 1 starts and ends within an element
    return size // out + (2 if out % rest and rest > 1 else 1)


def fixed_window(
    dims: int, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Window:
    kernel = spread(kernel_size, dims)
    steps = kernel if stride is None else spread(stride, dims) or kernel
    return Window(kernel, steps, spread(padding, dims), spread(dilation, dims), ceil_mode, ())


def adaptive_window(dims: int, size: Sequence[int], output_size: Any) -> Window:
    """None in `output_size` keeps the size."""
    single = output_size is None or isinstance(output_size, int)
    wanted: tuple[Any, ...] = (output_size,) * dims if single else tuple(output_size)
    if len(wanted) != dims:
        raise RuntimeError(f"[pool] expected output_size of {dims} numbers, got {list(wanted)}")
    if None in wanted:
        wanted = tuple(n if out is None else out for n, out in zip(size[-dims:], wanted, strict=True))
    return Window((), (), (), (), False, wanted)


def spread(value: Any, dims: int) -> tuple[int, ...]:
    """One number for every dimension, or one for each."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(value)
    return values * dims if len(values) == 1 else values


def places(window: Window, size: Sequence[int], device: Any = None) -> list[tuple[Tensor, Tensor]]:
    """For each dimension where the elements of each window lie, [out, longest], and which of them there are."""
    found = []
    longest, pooled = window.longest(size), window.pooled(size)
    for d, (n, out) in enumerate(zip(size, pooled, strict=True)):
        o, k = torch.arange(out, device=device)[:, None], torch.arange(longest[d], device=device)
        if window.kernel_size:
            at = o * window.stride[d] - window.padding[d] + k * window.dilation[d]
            there = (at >= 0) & (at < n)
        else:
            at = o * n // max(out, 1) + k
            there = at < -(-(o + 1) * n // max(out, 1))
        found.append((at.clamp(0, n - 1), there))
    return found


def unfold(input: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Every window's elements, [*, *pooled, places of a window], and which of them there are, [*pooled, places]."""
    dims = window.dims
    found = places(window, input.shape[input.dim() - dims :], input.device)
    lead = input.dim() - dims
    there = torch.ones((), dtype=torch.bool, device=input.device)
    for d, (at, inside) in enumerate(found):
        input = input.index_select(lead + 2 * d, at.flatten()).unflatten(lead + 2 * d, at.shape)
        there = there[..., None, None] & inside
    order = [2 * d for d in range(dims)], [2 * d + 1 for d in range(dims)]
    there = there.reshape([n for at, _ in found for n in at.shape]).permute(*order[0], *order[1]).flatten(dims)
    input = input.permute(*range(lead), *(lead + i for part in order for i in part)).flatten(lead + dims)
    return input, there


def max_pool(input: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The maxima and where each window has its own: the first of the largest, or the last that is not a number."""
    values, there = unfold(input, window)
    values = values.masked_fill(~there, -math.inf)
    count = values.shape[-1]
    missing = values.isnan()
    last_missing = count - 1 - missing.flip(-1).byte().argmax(-1)
    largest = (values == values.amax(-1, keepdim=True)) & there
    at = torch.where(missing.any(-1), last_missing, largest.byte().argmax(-1))
    return values.gather(-1, at[..., None]).squeeze(-1), at


def plane_indices(at: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """From places in a window to places in a plane."""
    index = torch.zeros_like(at)
    longest, found = window.longest(size), places(window, size, at.device)
    for d, (where, _) in enumerate(found):
        inner = math.prod(longest[d + 1 :])
        k = at // inner % longest[d]
        o = torch.arange(where.shape[0], device=at.device).reshape(-1, *[1] * (window.dims - 1 - d))
        index = index * size[d] + where[o, k]
    return index


def avg_pool(
    input: Tensor, window: Window, count_include_pad: bool = True, divisor_override: int | None = None
) -> Tensor:
    """Means over what is there, over the padded windows, or sums over a divisor; in float32 for low precision."""
    values, there = unfold(input if input.dtype == torch.float64 else input.float(), window)
    sums = values.masked_fill(~there, 0).sum(-1)
    if divisor_override is not None:
        return (sums / divisor_override).to(input.dtype)
    if not window.kernel_size or not count_include_pad:
        return (sums / there.sum(-1)).to(input.dtype)
    size = input.shape[input.dim() - window.dims :]
    divisor = torch.ones((), dtype=torch.int64, device=input.device)
    for d, (n, out) in enumerate(zip(size, window.pooled(size), strict=True)):
        start = torch.arange(out, device=input.device) * window.stride[d] - window.padding[d]
        divisor = divisor[..., None] * ((start + window.kernel_size[d]).clamp(max=n + window.padding[d]) - start)
    return (sums / divisor).to(input.dtype)


def max_unpool(input: Tensor, indices: Tensor, output_size: Sequence[int]) -> Tensor:
    """Zeros, and each element where its index says, in planes of `output_size`."""
    dims = len(output_size)
    lead = input.shape[: input.dim() - dims]
    flat = input.new_zeros(*lead, math.prod(output_size))
    return flat.scatter(-1, indices.flatten(len(lead)), input.flatten(len(lead))).unflatten(-1, tuple(output_size))


def unpooled_size(
    dims: int, size: Sequence[int], kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
    output_size: Sequence[int] | None,
) -> tuple[int, ...] | None:  # fmt: skip
    """The sizes that would be pooled to the last `dims` of `size`, or `output_size`, which may be off by less than a
    stride; None where it is off by more, or anything else makes no size."""
    if not len(kernel) == len(stride) == len(padding) == dims:
        return None
    each = zip(size[-dims:], kernel, stride, padding, strict=True)
    usual = tuple((n - 1) * s + k - 2 * p for n, k, s, p in each)
    found = usual
    if output_size is not None:
        found = tuple(output_size[2:] if len(output_size) == dims + 2 else output_size)
        if len(found) != dims or any(not u - s < n < u + s for n, u, s in zip(found, usual, stride, strict=True)):
            return None
    return None if any(n < 0 for n in found) else found


def _max_unpool(
    dims: int, input: Tensor, indices: Tensor, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> Tensor:
    kernel = spread(kernel_size, dims)
    numbers = kernel, kernel if stride is None else spread(stride, dims), spread(padding, dims)
    size = unpooled_size(dims, input.shape, *numbers, output_size)
    if size is None:
        F._unpool_output_size(input, *numbers, output_size)  # type: ignore[attr-defined]  # raises what torch raises
        raise ValueError(f"[max_unpool] expected windows of {dims} dimensions, got {numbers}")
    return max_unpool(input, indices, size)


def _max_pool(dims: int, input: Tensor, *window: Any, return_indices: bool) -> Any:
    return _with_indices(input, fixed_window(dims, *window), return_indices)


def _adaptive_max_pool(dims: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    return _with_indices(input, adaptive_window(dims, input.shape, output_size), return_indices)


def _with_indices(input: Tensor, window: Window, return_indices: bool) -> Any:
    out, at = max_pool(input, window)
    return (out, plane_indices(at, window, input.shape[input.dim() - window.dims :])) if return_indices else out


def _avg_pool(dims: int, input: Tensor, size: Any, stride: Any, padding: Any, ceil_mode: bool, *rest: Any) -> Tensor:
    return avg_pool(input, fixed_window(dims, size, stride, padding, 1, ceil_mode), *rest)


def _adaptive_avg_pool(dims: int, input: Tensor, output_size: Any) -> Tensor:
    return avg_pool(input, adaptive_window(dims, input.shape, output_size))


# fmt: off
def max_pool1d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    """The twin of `pykernels.functional.max_pool1d`: the same arguments. (So are all of these.)"""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices)


def max_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices)


def max_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    return _adaptive_max_pool(3, input, output_size, return_indices)


def avg_pool1d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True) -> Tensor:
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None) -> Tensor:
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    return _adaptive_avg_pool(3, input, output_size)


def max_unpool1d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Tensor:
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)
# fmt: on
