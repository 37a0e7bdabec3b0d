"""Sliding blocks of an image as columns, and back: the public functions, and the autograd Functions around the raw
kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..reference.unfold import Blocks, blocks_of, check_fold, check_unfold, places_of, two
from . import _dispatch, _unfold_ops
from ._dispatch import is_eager, needs_twin, wants_grad
from ._drop_in import DropIn, known, plain

__all__ = ["fold", "unfold"]


def _kernels(ctx: Any, grad: Tensor) -> Any:
    return ctx.kernels if is_eager(grad) and not needs_twin(grad) else torch.ops.pykernels


class _Unfold(torch.autograd.Function):
    """The raw kernels. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, numbers: tuple[Any, ...], input: Tensor) -> Tensor:
        ctx.kernels, ctx.numbers, ctx.size = kernels, numbers, input.shape[2:]
        return kernels.unfold(input, *numbers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, _kernels(ctx, grads[0]).fold(grads[0], ctx.size, *ctx.numbers)


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Any, numbers: tuple[Any, ...], columns: Tensor) -> Tensor:
        ctx.kernels, ctx.numbers = kernels, numbers
        return kernels.fold(columns, *numbers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, _kernels(ctx, grads[0]).unfold(grads[0], *ctx.numbers[1:])


_apply_unfold = _dispatch.direct_apply(_Unfold)
_apply_fold = _dispatch.direct_apply(_Fold)
_cached_blocks = functools.lru_cache(maxsize=4096)(blocks_of)


def _blocks(*given: Any, make: Callable[..., Blocks] = blocks_of) -> Blocks | None:
    """The operators' numbers, None where torch is to judge them."""
    kernel_size, dilation, padding, stride = given
    if not (type(kernel_size) is int and type(dilation) is int and type(padding) is int and type(stride) is int):
        given = tuple(plain(number) for number in given)
        if any(number is None for number in given):
            return None
    return make(*given)


def _traced_blocks(*given: Any) -> Blocks | None:
    try:
        return _blocks(*given)
    except RuntimeError:
        return None


class _UnfoldIn(DropIn):
    def eager(self, kernels: Any, input: Tensor, *given: Any) -> Any:
        blocks = _blocks(*given, make=_cached_blocks)
        if blocks is None:
            return None
        check_unfold(input, blocks)
        batch = input if input.dim() == 4 else input.unsqueeze(0)
        out = _apply_unfold(kernels, blocks, batch) if wants_grad(batch) else kernels.unfold(batch, *blocks)
        return out if input.dim() == 4 else out.squeeze(0)

    def recorded(self, input: Tensor, *given: Any) -> Any:
        blocks = _traced_blocks(*given)
        if blocks is None or input.dim() not in (3, 4) or any(known(n == 0) for n in input.shape[-3:]):
            return None
        if any(known(n < 1) for n in places_of(input.shape[-2:], blocks)):
            return None
        out = _unfold_ops.unfold_op(input if input.dim() == 4 else input.unsqueeze(0), *blocks)
        return out if input.dim() == 4 else out.squeeze(0)


class _FoldIn(DropIn):
    def eager(self, kernels: Any, input: Tensor, output_size: Any, *given: Any) -> Any:
        size, blocks = plain(output_size), _blocks(*given, make=_cached_blocks)
        if size is None or blocks is None:
            return None
        size = two("output_size", size)
        check_fold(input, size, blocks)
        numbers, batch = (size, *blocks), input if input.dim() == 3 else input.unsqueeze(0)
        out = _apply_fold(kernels, numbers, batch) if wants_grad(batch) else kernels.fold(batch, *numbers)
        return out if input.dim() == 3 else out.squeeze(0)

    def recorded(self, input: Tensor, output_size: Any, *given: Any) -> Any:
        size, blocks = plain(output_size), _traced_blocks(*given)
        if size is None or blocks is None or input.dim() not in (2, 3) or any(known(n == 0) for n in input.shape[-2:]):
            return None
        size = size if isinstance(size, tuple) else (size, size)
        if len(size) != 2 or known(input.shape[-2] % math.prod(blocks[0]) != 0):
            return None
        places = places_of(size, blocks)
        if known(input.shape[-1] != math.prod(places)) or any(known(n < 1) for n in (*places, *size)):
            return None
        out = _unfold_ops.fold_op(input if input.dim() == 3 else input.unsqueeze(0), size, *blocks)
        return out if input.dim() == 3 else out.squeeze(0)


_unfold, _fold = _UnfoldIn("unfold").call, _FoldIn("fold").call


def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    r"""The sliding blocks of an image as columns; takes what :func:`torch.nn.functional.unfold` takes.

    .. math::
        y_{n,\,(c,t),\,o} = \hat x_{n,\,c,\,o s + t d}

    over channels c, taps t and places o, with stride s, dilation d, and :math:`\hat x` the image with its padding of
    zeros. Derivatives of any order, forward mode and `torch.func` run by the kernels of this and of :func:`fold`.

    Args:
        input: x, [N, C, height, width] or [C, height, width].
        kernel_size, dilation, padding, stride: a number, or one for each dimension.

    Returns:
        y, [N, C * taps, places] or [C * taps, places].

    Dtypes and devices without kernels, numbers that are no plain ints, and calls that torch.jit traces go to torch's
    own function.

    Raises:
        RuntimeError, TypeError: torch's.

    Source: Dumoulin and Visin 2016 (https://arxiv.org/abs/1603.07285); :class:`torch.nn.Unfold` for the arguments.

    Example::

        >>> y = pykernels.functional.unfold(x, 3, padding=1)         # [N, C, H, W] -> [N, 9 C, H W]
    """
    return _unfold(input, kernel_size, dilation, padding, stride)


def fold(
    input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    r"""The sum of sliding blocks into an image; takes what :func:`torch.nn.functional.fold` takes.

    .. math::
        x_{n,c,p} = \sum_{(t,o):\; o s + t d - b = p} y_{n,\,(c,t),\,o}

    over the taps t and places o that read pixel p, with b pixels of padding; sums are float32 for low precision. See
    :func:`unfold`, whose derivative this is.

    Args:
        input: y, [N, C * taps, places] or [C * taps, places].
        output_size: height and width, or a number for both.
        kernel_size, dilation, padding, stride: a number, or one for each dimension: those of the blocks.

    Returns:
        x, [N, C, height, width] or [C, height, width].

    Raises:
        RuntimeError, TypeError: torch's.

    Source: as of :func:`unfold`, and :class:`torch.nn.Fold` for the arguments.

    Example::

        >>> x = pykernels.functional.fold(y, (32, 32), 3, padding=1)  # [N, 9 C, 1024] -> [N, C, 32, 32]
    """
    return _fold(input, output_size, kernel_size, dilation, padding, stride)
