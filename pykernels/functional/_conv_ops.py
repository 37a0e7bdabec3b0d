"""What PyTorch has to know about `torch.ops.pykernels.conv_{forward,input_gradient,weight_gradient}` (csrc/ops/conv.h):
shapes without computing (fake), derivatives, how vmap runs them, and the operations that they count as.

Each is linear in its two operands, and the three are each other's derivatives, of any order and in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from ..reference.conv_arguments import output_size
from ._dispatch import wants_grad
from ._operators import Derivative, fold, register_derivative

forward_op = torch.ops.pykernels.conv_forward.default
input_gradient_op = torch.ops.pykernels.conv_input_gradient.default
weight_gradient_op = torch.ops.pykernels.conv_weight_gradient.default


def masked(grad: Tensor, out: Tensor | None) -> Tensor:
    """The gradient before ReLU, from that behind it and what it gave; None where there was none."""
    return grad if out is None else torch.ops.aten.threshold_backward(grad, out, 0)


def channel_sums(grad: Tensor) -> Tensor:
    """The gradient of a bias."""
    if grad.shape[1] == 1:  # torch splits a sum to one number among its threads, where it rounds as they are many
        return grad.expand(-1, 2, *grad.shape[2:]).sum((0, *range(2, grad.dim())))[:1]
    return grad.sum((0, *range(2, grad.dim())))


def gradients(
    kernels: Any,
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    sizes: tuple[Any, Any],
    options: Sequence[Any],
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of input, weight and bias where `needed`.

    Args:
        kernels: the compiled module, or torch.ops.pykernels to record it.
        grad: before the activation.
        input: not needed but for weight's; `weight` not but for input's.
        sizes: of both.
    """
    of_input = of_weight = of_bias = None
    if needed[0]:
        of_input = kernels.conv_input_gradient(grad, weight, sizes[0], *options)
    if needed[1]:
        of_weight, of_bias = kernels.conv_weight_gradient(input, grad, sizes[1], *options, needed[2])
    elif needed[2]:
        of_bias = channel_sums(grad)
    return of_input, of_weight, of_bias if needed[2] else None


# --- shapes


def _empty(first: Tensor, second: Tensor, size: Sequence[Any]) -> Tensor:
    """Channels-last where one of the two is."""
    formats = [suggest_memory_format(t) for t in (first, second)]
    found = next((f for f in formats if f != torch.contiguous_format), torch.contiguous_format)
    return torch.empty(size, dtype=first.dtype, device=first.device, memory_format=found)


def _forward_fake(input: Tensor, weight: Tensor, _bias: Any, *args: Any) -> Tensor:
    return _empty(input, weight, output_size(input.shape, weight.shape, args[:-1]))


def _input_gradient_fake(grad: Tensor, weight: Tensor, size: Sequence[Any], *_: Any) -> Tensor:
    return _empty(grad, weight, size)


def _weight_gradient_fake(input: Tensor, grad: Tensor, size: Sequence[Any], *args: Any) -> tuple[Tensor, Tensor]:
    return _empty(input, grad, size), input.new_empty(size[0] if args[-1] else 0)


# --- operations, as torch counts those of its own


@register_flop_formula(torch.ops.pykernels.conv_forward)
def _forward_flops(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(input, weight, out_shape)


@register_flop_formula(torch.ops.pykernels.conv_input_gradient)
def _input_gradient_flops(grad: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(grad, weight, out_shape, transposed=True)


@register_flop_formula(torch.ops.pykernels.conv_weight_gradient)
def _weight_gradient_flops(input: Any, grad: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    images, grads, weights = ([shape[1], shape[0], *shape[2:]] for shape in (input, grad, out_shape[0]))
    return conv_flop_count(images, grads, weights)


# --- vmap: of images alone a larger batch; of images and weights more groups; where examples share what is read or
# what is given, more channels in each group of the other


def _images(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """[N, C, *] of every example -> [N, groups * examples * C / groups, *]."""
    return tensor.movedim(dim, 0).unflatten(2, (groups, -1)).movedim(0, 2).flatten(1, 3)


def _examples_of_images(tensor: Tensor, groups: int, size: int) -> Tensor:
    """The way back, with the examples in front."""
    return tensor.unflatten(1, (groups, size, -1)).movedim(2, 0).flatten(2, 3)


def _out_channels(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """[K, *] of every example -> [groups * examples * K / groups, *]."""
    return tensor.movedim(dim, 0).unflatten(1, (groups, -1)).movedim(0, 1).flatten(0, 2)


def _examples_of_out_channels(tensor: Tensor, groups: int, size: int) -> Tensor:
    return tensor.unflatten(0, (groups, size, -1)).movedim(1, 0).flatten(1, 2)


def _in_channels(tensor: Tensor, dim: int) -> Tensor:
    """[K, C, *] of every example -> [K, examples * C, *]."""
    return tensor.movedim(dim, 1).flatten(1, 2)


def _more_groups(options: Sequence[Any], size: int) -> tuple[Any, ...]:
    stride, padding, dilation, groups, mode, *rest = options
    return stride, padding, dilation, groups * size, mode, *rest


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    (input, weight, bias, *options), (of_input, of_weight, of_bias) = args, in_dims[:3]
    size, groups = info.batch_size, options[3]
    if of_weight is None and of_bias is None:
        out = forward_op(fold(input, of_input, size, 0), weight, bias, *options)
        return out.unflatten(0, (size, -1)), 0
    weight, of_weight = _batched(weight, of_weight, size)
    if bias is not None:
        bias, of_bias = _batched(bias, of_bias, size)
    if of_input is None:
        biases = None if bias is None else _out_channels(bias, of_bias, groups)
        out = forward_op(input, _out_channels(weight, of_weight, groups), biases, *options)
        return _examples_of_images(out, groups, size), 0
    folded = fold(input, of_input, size, 1), fold(weight, of_weight, size, 0), fold(bias, of_bias, size, 0)
    return forward_op(*folded, *_more_groups(options, size)).unflatten(1, (size, -1)), 1


def _batched(tensor: Tensor, dim: int | None, size: int) -> tuple[Tensor, int]:
    return (tensor.expand(size, *tensor.shape), 0) if dim is None else (tensor, dim)


def _input_gradient_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    (grad, weight, sizes, *options), (of_grad, of_weight) = args, in_dims[:2]
    size, groups = info.batch_size, options[3]
    batch, channels, *pixels = sizes
    if of_weight is None:
        found = input_gradient_op(fold(grad, of_grad, size, 0), weight, [size * batch, channels, *pixels], *options)
        return found.unflatten(0, (size, -1)), 0
    sizes = [batch, size * channels, *pixels]
    if of_grad is None:
        found = input_gradient_op(grad, _in_channels(weight, of_weight), sizes, *options)
        return _examples_of_images(found, groups, size), 0
    folded = fold(grad, of_grad, size, 1), fold(weight, of_weight, size, 0)
    return input_gradient_op(*folded, sizes, *_more_groups(options, size)).unflatten(1, (size, -1)), 1


def _weight_gradient_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    (input, grad, sizes, *options), (of_input, of_grad) = args, in_dims[:2]
    size, groups, need_bias = info.batch_size, options[3], options[-1]
    out_channels, in_channels, *kernel = sizes
    if of_grad is None:
        sizes = [out_channels, size * in_channels, *kernel]
        weight, bias = weight_gradient_op(_images(input, of_input, groups), grad, sizes, *options)
        return (weight.unflatten(1, (size, -1)), bias), (1, None)
    sizes = [size * out_channels, in_channels, *kernel]
    if of_input is None:
        weight, bias = weight_gradient_op(input, _images(grad, of_grad, groups), sizes, *options)
        weight = _examples_of_out_channels(weight, groups, size)
        bias = _examples_of_out_channels(bias, groups, size) if need_bias else bias
    else:
        folded = fold(input, of_input, size, 1), fold(grad, of_grad, size, 1)
        weight, bias = weight_gradient_op(*folded, sizes, *_more_groups(options, size))
        weight, bias = weight.unflatten(0, (size, -1)), bias.unflatten(0, (size, -1)) if need_bias else bias
    return (weight, bias), (0, 0 if need_bias else None)


# --- derivatives


def _tangents(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else torch._VF._unpack_dual(t, level=0)[1] for t in tensors]


def _dual(primal: Tensor, tangents: Sequence[Tensor | None]) -> Tensor:
    """A tensor that carries the sum of the tangents, in as far as there are any."""
    given = [t for t in tangents if t is not None]
    if not given:
        return primal
    return torch._VF._make_dual(primal, sum(given[1:], given[0]), level=0)


def _plain(op: Any, *args: Any) -> Any:
    """The operator, which sees no tangents of this level, and yet keeps operands that carry theirs for a backward."""
    if wants_grad(*args[:2], *(t for t in args[2:3] if isinstance(t, Tensor))):
        with forward_ad._set_fwd_grad_enabled(False):
            return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


# The `twin` of each is the operator itself, with the tangents by the product rule.


class _Forward(Derivative):
    op = forward_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        input, weight, _, *ctx.options, activation = args
        ctx.sizes = input.shape, weight.shape
        ctx.save_for_backward(input, weight, results[0] if activation == "relu" else None)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        input, weight, out = ctx.saved_tensors
        if grads[0] is None:
            return [None] * 9
        grad = masked(grads[0], out)
        return *gradients(torch.ops.pykernels, grad, input, weight, ctx.sizes, ctx.options, needed[:3]), *[None] * 6

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        input, weight, bias, *options, activation = args
        d_input, d_weight, d_bias = _tangents(input, weight, bias)
        out = _plain(forward_op, *args)
        tangents = []
        if d_input is not None:
            tangents.append(_plain(forward_op, d_input, weight, None, *options, "none"))
        if d_weight is not None:
            tangents.append(_plain(forward_op, input, d_weight, d_bias, *options, "none"))
        elif d_bias is not None:
            tangents.append(d_bias.reshape(-1, *[1] * (out.dim() - 2)).expand(out.shape))
        return _dual(out, [masked(t, out if activation == "relu" else None) for t in tangents])


class _InputGradient(Derivative):
    op = input_gradient_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.options = args[3:]
        ctx.save_for_backward(args[0], args[1])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        found: list[Any] = [None] * 8
        grad, weight = ctx.saved_tensors
        if grads[0] is not None and needed[0]:
            found[0] = forward_op(grads[0], weight, None, *ctx.options, "none")
        if grads[0] is not None and needed[1]:
            found[1] = weight_gradient_op(grads[0], grad, weight.shape, *ctx.options, False)[0]
        return found

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        grad, weight, *rest = args
        d_grad, d_weight = _tangents(grad, weight)
        tangents = [
            None if d_grad is None else _plain(input_gradient_op, d_grad, weight, *rest),
            None if d_weight is None else _plain(input_gradient_op, grad, d_weight, *rest),
        ]
        return _dual(_plain(input_gradient_op, *args), tangents)


class _WeightGradient(Derivative):
    op = weight_gradient_op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        *ctx.options, ctx.need_bias = args[3:]
        ctx.save_for_backward(args[0], args[1])

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        found: list[Any] = [None] * 9
        input, grad = ctx.saved_tensors
        for_weight, for_bias = grads[0], grads[1] if ctx.need_bias else None
        if for_weight is not None and needed[0]:
            found[0] = input_gradient_op(grad, for_weight, input.shape, *ctx.options)
        if for_weight is not None and needed[1]:
            found[1] = forward_op(input, for_weight, for_bias, *ctx.options, "none")
        elif for_bias is not None and needed[1]:
            found[1] = for_bias.reshape(-1, *[1] * (grad.dim() - 2)).expand(grad.shape)
        return found

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> tuple[Any, ...]:
        input, grad, *rest, need_bias = args
        d_input, d_grad = _tangents(input, grad)
        weight, bias = _plain(weight_gradient_op, *args)
        tangents, of_bias = [], None
        if d_input is not None:
            tangents.append(_plain(weight_gradient_op, d_input, grad, *rest, False)[0])
        if d_grad is not None:
            tangent, of_bias = _plain(weight_gradient_op, input, d_grad, *rest, need_bias)
            tangents.append(tangent)
        return _dual(weight, tangents), _dual(bias, [of_bias])


for _name, _fake, _vmap in (
    ("conv_forward", _forward_fake, _forward_vmap),
    ("conv_input_gradient", _input_gradient_fake, _input_gradient_vmap),
    ("conv_weight_gradient", _weight_gradient_fake, _weight_gradient_vmap),
):
    torch.library.register_fake(f"pykernels::{_name}", _fake)
    torch.library.register_vmap(f"pykernels::{_name}", _vmap)
register_derivative(_Forward())
register_derivative(_InputGradient())
register_derivative(_WeightGradient())
