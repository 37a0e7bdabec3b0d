"""Sliding blocks of an image as columns, and back: the public functions, and the autograd Functions around the raw
kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from ..reference.unfold import check_fold, check_unfold
from . import _dispatch, _unfold_ops
from ._dispatch import is_eager, needs_twin, raw_kernels, wants_grad

__all__ = ["fold", "unfold"]

_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def _is_torchs(input: Tensor) -> bool:
    """What there are no kernels for."""
    return input.dtype not in _DTYPES or input.layout != torch.strided


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


class _Way:
    """One of the two functions: its operator, its check and torch's own."""

    def __init__(
        self, name: str, dims: int, function: type[torch.autograd.Function], op: Any, check: Callable, theirs: Callable
    ) -> None:
        self.name, self.dims, self.op, self.check, self.theirs = name, dims, op, check, theirs
        self.apply = _dispatch.direct_apply(function)

    def __call__(self, input: Tensor, *given: Any) -> Tensor:
        if is_compiling():
            return self.recorded(input, *given)
        try:
            kernels = raw_kernels(input, input)
            if kernels is None or _is_torchs(input):
                return self.recorded(input, *given)
            numbers = self.check(input, *given)
            unbatched = input.dim() == self.dims - 1
            batch = input.unsqueeze(0) if unbatched else input
            if wants_grad(batch):
                out = self.apply(kernels, numbers, batch)
            else:
                out = getattr(kernels, self.name)(batch, *numbers)
            return out.squeeze(0) if unbatched else out
        except Exception as error:
            raise self.in_torchs_words(error, input, *given) from None

    def recorded(self, input: Tensor, *given: Any) -> Tensor:
        """By the registered operator, which others may see and change; torch's own where there is no kernel."""
        if _is_torchs(input):
            return self.theirs(input, *given)
        numbers = self.check(input, *given)
        _dispatch.check_devices(self.name, input)
        unbatched = input.dim() == self.dims - 1
        out = self.op(input.unsqueeze(0) if unbatched else input, *numbers)
        return out.squeeze(0) if unbatched else out

    def in_torchs_words(self, error: Exception, *given: Any) -> Exception:
        try:
            with torch.no_grad():
                self.theirs(*given)
        except Exception as theirs:
            return theirs.with_traceback(None)
        return error


_unfold = _Way("unfold", 4, _Unfold, _unfold_ops.unfold_op, check_unfold, F.unfold)
_fold = _Way("fold", 3, _Fold, _unfold_ops.fold_op, check_fold, F.fold)


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

    Integers, bool and complex numbers go to torch's own function.

    Raises:
        RuntimeError, TypeError: torch's, where it has an error for the call.
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
        output_size: height and width.

    Returns:
        x, [N, C, height, width] or [C, height, width].
    """
    return _fold(input, output_size, kernel_size, dilation, padding, stride)
