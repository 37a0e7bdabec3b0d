"""Which way a call goes: raw kernel, registered operator, or the twin in plain PyTorch.

eager       the raw kernel by pybind11, inside an old-style `autograd.Function` where a gradient is wanted. This is
            the cheapest call that there is, and nothing but the kernel sees the tensors.
operator    `torch.ops.pykernels.*`, whenever something wants to see or change the call: torch.compile, export,
            vmap, grad, forward mode, fake tensors, dispatch modes, tensor subclasses. The rules: `_operators.py`.
twin        second derivatives and forward mode, which the kernels do not have, in both of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .. import _native

_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_functorch_is_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_tracing_state = torch._C._get_tracing_state
any_autocast = torch._C._is_any_autocast_enabled


def is_eager(*tensors: Tensor) -> bool:
    """Whether the raw kernels may be called: nothing but they needs to see these tensors, and none is a view that torch
    negates where it is read (the imaginary part of a conjugate), of which an operator is given a copy."""
    if is_compiling() or _functorch_is_active() or _dispatch_modes() or forward_ad._current_level >= 0:
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN or tensor.is_neg():
            return False
    return _tracing_state() is None


def raw_kernels(input: Tensor, weight: Tensor) -> Any:
    """The compiled module to call for these, or None if the call has to go through the registered operator."""
    # is_eager(input, weight), written out: a fiftieth of a small call
    if is_compiling() or _functorch_is_active() or _dispatch_modes() or forward_ad._current_level >= 0:
        return None
    if type(input) not in _PLAIN or type(weight) not in _PLAIN or _tracing_state() is not None:
        return None
    if input.is_neg() or (weight is not input and weight.is_neg()):
        return None
    if input.is_cpu:
        return _native.kernels
    return _native.cuda_kernels if input.is_cuda else None


def direct_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without its preparations for functional transforms, which `is_eager` rules out: 2 us less."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def check_devices(op: str, input: Tensor, *others: Tensor | None) -> None:
    """Raise where no kernel is there for a device ("meta" has shapes only, and needs none) or devices are mixed."""
    kind = input.device.type
    if kind not in ("cpu", "meta") and (kind != "cuda" or _native.cuda_kernels is None):
        where = "cpu" if _native.cuda_kernels is None else "cpu or cuda"
        raise RuntimeError(f"[{op}] expected tensors on {where}, for which there are kernels here, got {input.device}")
    for other in others:
        if other is not None and other.device != input.device:
            raise RuntimeError(f"[{op}] expected all tensors on {input.device} like the input, got {other.device}")


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a gradient is to be recorded for any of these."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def should_save(*tensors: Tensor | None) -> bool:
    """Whether a traced forward is to keep what its backward needs. (If not, the backward computes it again.)"""
    if is_compiling():
        # an exported program is mostly there to infer
        return not torch.compiler.is_exporting() and wants_grad(*tensors)
    # a functional transform may hide what requires a gradient
    return wants_grad(*tensors) or (torch.is_grad_enabled() and _functorch_is_active())


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants on this tensor's device, or None where it is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, where autocast would convert it: floating point, but not float64."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def needs_twin(*grads: Tensor | None) -> bool:
    """Whether a backward cannot be left to the kernels: it is recorded in order to be differentiated, or batched by the
    vmap inside torch.autograd (`is_grads_batched`), which knows no lists of tensors, or of a negated view."""
    return torch.is_grad_enabled() or any(g is not None and (_is_legacy_batched(g) or g.is_neg()) for g in grads)


def twin_vjp(
    function: Callable[[list[Any]], tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of `function(inputs)` where `needed`, recorded if this backward is.

    Args:
        function: the twin, from a list like `inputs` to its outputs.
        grads: the gradient of each output, None for zero.
    """
    record = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(_device_type(inputs), enabled=False):
        # a view of each, so that one tensor given twice has a gradient for each place
        views = [t.view_as(t) if t is not None and want else t for t, want in zip(inputs, needed, strict=True)]
        wanted = [v for v, want in zip(views, needed, strict=True) if v is not None and want]
        for view in wanted:
            if not view.requires_grad:
                view.requires_grad = True  # (functorch forbids requires_grad_())
        pairs = [(o, g) for o, g in zip(function(views), grads, strict=True) if g is not None]
        outputs, cotangents = [o for o, _ in pairs], [g for _, g in pairs]
        found = iter(torch.autograd.grad(outputs, wanted, cotangents, create_graph=record, allow_unused=True))
    return [next(found) if t is not None and want else None for t, want in zip(inputs, needed, strict=True)]


def _device_type(tensors: Sequence[Tensor | None]) -> str:
    return next(t.device.type for t in tensors if t is not None)
