"""The radial basis layer: the public function, what PyTorch has to know about its operator, and the autograd Function
around the raw kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _dispatch
from ._dispatch import is_eager, raw_kernels, twin_vjp, wants_grad
from ._operators import Derivative, fold, loop_over, register_derivative

__all__ = ["radial_basis"]

_op = torch.ops.pykernels.radial_basis.default


def _vjp(
    input: Tensor, centers: Tensor, out: Tensor, gamma: float, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    r"""With :math:`u = -2 \gamma \, g \odot \phi`: rows of u summed times x, less u t; and the same the other way."""
    if torch.is_grad_enabled() or not is_eager(input, centers, grad):
        return twin_vjp(lambda t: (reference.radial_basis(t[0], t[1], gamma),), (input, centers), needed, (grad,))
    sums = torch.float64 if input.dtype == torch.float64 else torch.float32
    x, t = input.to(sums), centers.to(sums)
    middle = t.mean(0)
    x, t = x - middle, t - middle
    u = grad.to(sums) * out.to(sums) * (-2 * gamma)
    for_input = (u.sum(1)[:, None] * x).addmm_(u, t, alpha=-1).to(input.dtype) if needed[0] else None
    for_centers = (u.sum(0)[:, None] * t).addmm_(u.mT, x, alpha=-1).to(centers.dtype) if needed[1] else None
    return [for_input, for_centers]


class _RadialBasis(torch.autograd.Function):
    """The raw kernel. The old style, with `ctx` in forward, is the one that costs least."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, input: Tensor, centers: Tensor, gamma: float) -> Tensor:
        out = kernels.radial_basis(input, centers, gamma)
        ctx.gamma = gamma
        ctx.save_for_backward(input, centers, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        input, centers, out = ctx.saved_tensors
        return None, *_vjp(input, centers, out, ctx.gamma, ctx.needs_input_grad[1:3], grads[0]), None


class _Derivative(Derivative):
    op = _op

    def setup(self, ctx: Any, args: list[Any], results: tuple[Any, ...]) -> None:
        ctx.gamma = args[2]
        ctx.save_for_backward(*args[:2], *results)

    def backward(self, ctx: Any, needed: list[Any], *grads: Any) -> Sequence[Any]:
        input, centers, out = ctx.saved_tensors
        if grads[0] is None:
            return None, None, None
        return *_vjp(input, centers, out, ctx.gamma, needed[:2], grads[0]), None

    def twin(self, results: Callable[[], tuple[Any, ...]], *args: Any) -> Any:
        return reference.radial_basis(*args)


def _fake(input: Tensor, centers: Tensor, gamma: float) -> Tensor:
    return input.new_empty(input.shape[0], centers.shape[0])


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    if in_dims[1] is not None:
        (out,), _ = loop_over(lambda *given: (_op(*given),), info, in_dims, args)
        return out, 0
    return _op(fold(args[0], in_dims[0], info.batch_size, 0), *args[1:]).unflatten(0, (info.batch_size, -1)), 0


_apply = _dispatch.direct_apply(_RadialBasis)
torch.library.register_fake("pykernels::radial_basis", _fake)
torch.library.register_vmap("pykernels::radial_basis", _vmap)
register_derivative(_Derivative())


def radial_basis(input: Tensor, centers: Tensor, gamma: float | Tensor | None = None) -> Tensor:
    r"""The radial basis layer: how near each sample is to each centre.

    .. math::
        \phi_i(x) = e^{-\gamma \lVert x - t_i \rVert^2}, \qquad
        \gamma = \frac{m}{d_{\max}^2} \text{ by default}

    with m centres, the two farthest of which are :math:`d_{\max}` apart (a width :math:`\sigma = d_{\max} / \sqrt{2 m}`
    of the gaussian). The exponential is the ending of the product of samples and centres, both taken from the centres'
    mean; distances are not stored.

    Args:
        input: x, [N, D]; float32, float64, bfloat16 or float16.
        centers: t, [m, D]. Dtypes are promoted.
        gamma: :math:`\gamma`, 0 or more: a number, or a tensor of one, which may want a gradient.

    Returns:
        [N, m]. Differentiable any number of times.

    Raises:
        RuntimeError: dtypes, devices or shapes do not fit.
        ValueError: gamma is negative.

    Source: Broomhead and Lowe 1988 (Complex Systems 2, 321).

    Example::

        >>> phi = pykernels.functional.radial_basis(torch.randn(100, 8), torch.randn(20, 8), 0.5)  # [100, 20]
    """
    if input.dtype != centers.dtype and input.is_floating_point() and centers.is_floating_point():
        dtype = torch.promote_types(input.dtype, centers.dtype)
        input, centers = input.to(dtype), centers.to(dtype)
    if gamma is None:
        gamma = reference.default_gamma(centers)
    if isinstance(gamma, Tensor):  # a scale of all coordinates
        root = gamma.to(input.dtype).sqrt()
        input, centers, gamma = input * root, centers * root, 1.0
    kernels = raw_kernels(input, centers)
    if kernels is None:
        _dispatch.check_devices("radial_basis", input, centers)
        return _op(input, centers, gamma)
    if wants_grad(input, centers):
        return _apply(kernels, input, centers, gamma)
    return kernels.radial_basis(input, centers, gamma)
