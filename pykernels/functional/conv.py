"""Convolution: the public functions, and the autograd Function around the raw kernels."""

from __future__ import annotations

import functools
import marshal
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function

from ..reference.conv_arguments import Options, check, ending, flat_padding, integer, is_torchs_padding, numbers
from . import _conv_ops, _dispatch
from ._dispatch import any_autocast, is_eager, needs_twin, raw_kernels, wants_grad

__all__ = ["conv1d", "conv2d", "conv3d"]

_PLAIN = _dispatch._PLAIN
_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


class _Conv(torch.autograd.Function):
    """The raw kernels. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, options: Options, activation: str, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        out = kernels.conv_forward(input, weight, bias, *options, activation)
        ctx.call = kernels, options, (input.shape, weight.shape)
        _, _, _, for_input, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            input if for_weight else None, weight if for_input else None, out if activation == "relu" else None
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        input, weight, out = ctx.saved_tensors
        kernels, options, sizes = ctx.call
        if not is_eager(grads[0]) or needs_twin(grads[0]):
            kernels = torch.ops.pykernels
        grad = _conv_ops.masked(grads[0], out)
        found = _conv_ops.gradients(kernels, grad, input, weight, sizes, options, ctx.needs_input_grad[3:])
        return None, None, None, *found


_apply = _dispatch.direct_apply(_Conv)


@functools.lru_cache(maxsize=4096)
def _cached_options(spatial: int, weight: torch.Size, steps: bytes, padding: bytes, mode: str) -> Options | None:
    """`_options` of what marshal wrote: it does not change, and tells (1, 2) from (1, 2.0), (True, 2) and [1, 2]."""
    stride, dilation, groups = marshal.loads(steps)
    return _options(spatial, weight, stride, marshal.loads(padding), dilation, groups, mode)


def _options(
    spatial: int, weight: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int, mode: str
) -> Options | None:
    """The options in numbers; None for a weight without channels."""
    if len(weight) != spatial + 2:
        raise RuntimeError(f"[conv{spatial}d] expected a weight of {spatial + 2} dimensions, got {list(weight)}")
    if weight[1] == 0:
        return None
    found = numbers(spatial, weight[2:], stride, padding, dilation)
    if isinstance(padding, str) and mode == "zeros" and found[1][::2] != found[1][1::2]:
        _warn_as_torch_does()
    return *found, integer(groups), mode


def _warn_as_torch_does() -> None:
    """Of "same" with more behind than before, by a call that computes nothing: once, and in torch's words."""
    nothing = torch.empty(1, 1, 2, device="meta")
    torch.conv1d(nothing, nothing, padding="same")


def _convolve(
    spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    groups: int, mode: str, activation: str | None,
) -> Tensor:  # fmt: skip
    given = stride, padding, dilation, groups, mode, activation
    if is_compiling():
        return _recorded(spatial, *_autocast(input, weight, bias), *given)
    try:
        if any_autocast():
            input, weight, bias = _autocast(input, weight, bias)
        kernels = raw_kernels(input, weight)
        plain = bias is None or (type(bias) in _PLAIN and not bias.is_neg())
        if kernels is None or input.dtype not in _DTYPES or not plain:
            return _overridden(spatial, input, weight, bias, *given)
        try:  # (in two parts, neither of which is longer than the 50 bytes that marshal begins with)
            steps = marshal.dumps((stride, dilation, groups), 2)
            options = _cached_options(spatial, weight.shape, steps, marshal.dumps(padding, 2), mode)
        except (TypeError, ValueError):  # marshal knows no numbers of other types, such as tensors
            options = _options(spatial, weight.shape, stride, padding, dilation, groups, mode)
        if options is None:
            return _by_torch(spatial, input, weight, bias, *given)
        unbatched = input.dim() == spatial + 1
        batch = input.unsqueeze(0) if unbatched else input
        last = "none" if activation is None else ending(activation)
        if wants_grad(batch, weight, bias):
            out = _apply(kernels, options, last, batch, weight, bias)
        else:
            out = kernels.conv_forward(batch, weight, bias, *options, last)
        return out.squeeze(0) if unbatched else out
    except Exception as error:
        if isinstance(input, Tensor) and input.layout != torch.strided:
            return _by_torch(spatial, input, weight, bias, *given)
        raise _in_torchs_words(error, spatial, input, weight, bias, *given) from None


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = _dispatch.autocast_dtype(input)
    if dtype is None:
        return input, weight, bias
    bias = None if bias is None else _dispatch.cast(bias, dtype)
    return _dispatch.cast(input, dtype), _dispatch.cast(weight, dtype), bias


def _overridden(spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, *given: Any) -> Tensor:
    """By `__torch_function__` of what is like a tensor (torch.fx traces with such), or as an operator."""
    if not has_torch_function((input, weight, bias)):
        return _recorded(spatial, input, weight, bias, *given)
    function = (conv1d, conv2d, conv3d)[spatial - 1]
    *torchs, mode, activation = given
    return handle_torch_function(
        function, (input, weight, bias), input, weight, bias, *torchs, padding_mode=mode, activation=activation
    )


def _recorded(
    spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    groups: int, mode: str, activation: str | None,
) -> Tensor:  # fmt: skip
    """By the registered operator, which others may see and change. (torch.jit's traces know no lists of its kind.)"""
    given = stride, padding, dilation, groups, mode, activation
    if input.dtype not in _DTYPES or input.layout != torch.strided or _dispatch._tracing_state() is not None:
        return _by_torch(spatial, input, weight, bias, *given)
    if input.is_meta:
        weight, bias = weight.to("meta"), None if bias is None else bias.to("meta")
    found = check(spatial, input, weight, bias, *given)
    if weight.shape[1] == 0:
        return _by_torch(spatial, input, weight, bias, *given)
    _dispatch.check_devices("conv", input, weight, bias)
    unbatched = input.dim() == spatial + 1
    batch = input.unsqueeze(0) if unbatched else input
    out = _conv_ops.forward_op(batch, weight, bias, *found, groups, mode, activation or "none")
    return out.squeeze(0) if unbatched else out


def _by_torch(
    spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    groups: int, mode: str, activation: str | None,
) -> Tensor:  # fmt: skip
    """By torch's own function: for what there are no kernels for, and for its errors."""
    function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    if mode != "zeros" or not is_torchs_padding(padding):
        _, pads, _ = numbers(spatial, weight.shape[2:], stride, padding, dilation)
        input = F.pad(input, flat_padding(pads), mode="constant" if mode == "zeros" else mode)
        padding = 0
    out = function(input, weight, bias, stride, padding, dilation, groups)
    return torch.relu(out) if ending(activation) == "relu" else out


def _in_torchs_words(error: Exception, *given: Any) -> Exception:
    """torch's error for the same arguments (its words depend on which of its backends would have run); `error` where
    torch has none."""
    try:
        with torch.no_grad():
            _by_torch(*given)
    except Exception as theirs:
        return theirs.with_traceback(None)
    return error


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Convolution over one dimension; takes what :func:`torch.nn.functional.conv1d` takes. See :func:`conv2d`."""
    return _convolve(1, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", activation: str | None = None,
) -> Tensor:  # fmt: skip
    r"""Convolution; takes what :func:`torch.nn.functional.conv2d` takes.

    .. math::
        y_{n,k,o} = f\Big(b_k + \sum_{c,t} w_{k,c,t}\; \hat x_{n,\,c,\,o s + t d}\Big)

    over the channels c of k's group and the taps t, with stride s, dilation d, and :math:`\hat x` the input with what
    padding puts around it. Patches are gathered, and padded, while they are laid down for the product: no matrix of
    all of them is stored, and no padded input. Sums are float32 for low precision. Results and gradients have the same
    bits for any number of threads. Derivatives of any order, forward mode and `torch.func` run by the same kernels.

    Kernels of 3x3 with stride 1 in float32 are computed on a CPU by minimal filtering where that takes less time:
    four results from 16 products a channel instead of 36, with rounding errors of the size of the plain sum's. An
    infinity, NaN or overflow among its sums has the call computed once more by the plain sum, so that these reach the
    results that they should.

    Args:
        input: x, [N, C, height, width] or [C, height, width]; contiguous or channels-last is read as it lies.
        weight: w, [K, C / groups, kernel height, kernel width].
        bias: b, [K].
        stride: s, a number or one for each dimension.
        padding: how many pixels are put before and behind: a number, one for each dimension, or a pair
            (before, behind) for each dimension; "valid" is none, "same" what gives the input's size (where it is odd
            the larger part goes behind) and "full" d (kernel - 1) on both sides, so that the kernel touches every pixel
            with every tap.
        dilation: d, like `stride`.
        groups: in how many groups the channels convolve apart.
        padding_mode: which pixels: "zeros", "reflect", "replicate" or "circular", as :func:`torch.nn.functional.pad`
            has them.
        activation: f, None or "relu".

    Returns:
        y, [N, K, *places] or [K, *places], places = (pixels + padding - d (kernel - 1) - 1) / s + 1; channels-last
        where input or weight is.

    Integers, bool, complex numbers and inputs without channels, for which there are no kernels, go to torch's own
    function; so do calls that torch.jit traces.

    Raises:
        RuntimeError, TypeError: torch's, where it has an error for the call.
        ValueError: `activation` is neither None nor "relu".

    Source: Dumoulin and Visin 2016 (https://arxiv.org/abs/1603.07285); of minimal filtering Lavin and Gray 2016
    (https://arxiv.org/abs/1509.09308).

    Example::

        >>> y = pykernels.functional.conv2d(x, w, b, padding=((0, 1), (0, 1)), padding_mode="reflect", activation="relu")
    """  # noqa: E501
    return _convolve(2, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Convolution over three dimensions; takes what :func:`torch.nn.functional.conv3d` takes. See :func:`conv2d`."""
    return _convolve(3, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)
