"""Functions in the place of torch's: what the kernels take they compute, the rest is torch's own function's.

That is what there are no kernels for (integers, mkldnn tensors, other devices), what torch.jit traces (its traces would
not load without this package), arguments that are no plain numbers, and whatever the kernels refuse: torch's result, or
torch's error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function

from .. import _native
from ._dispatch import _tracing_state, raw_kernels

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_INTS = frozenset((int,) * count for count in (1, 2, 3))


def has_kernels(input: Any) -> bool:
    """Whether this is a tensor of a dtype, layout and device that there are kernels for. (Of a meta tensor: shapes.)"""
    if not isinstance(input, Tensor) or input.dtype not in DTYPES or input.layout != torch.strided:
        return False
    return input.is_cpu or input.is_meta or (input.is_cuda and _native.cuda_kernels is not None)


def plain(value: Any) -> Any:
    """An int, or a tuple of the ints of a tuple or list; None for what only torch can judge.

    Exact types: torch takes some that are nearly ints in some places (numpy's, tensors, bool), and others nowhere.
    """
    kind = type(value)
    if kind is int or kind is SymInt:
        return value
    if kind is tuple and tuple(map(type, value)) in _INTS:  # the loop, in less time
        return value
    if kind is tuple or kind is list or kind is torch.Size:
        for one in value:
            if type(one) is not int and type(one) is not SymInt:
                return None
        return tuple(value)
    return None


def known(condition: Any) -> bool:
    """The condition; False where it hangs on a size that a trace does not know."""
    if not is_compiling() and isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # (loads sympy)

    return bool(guard_or_false(condition))


class DropIn:
    """One function, called with all of torch's arguments in their order.

    Args:
        name: of the function here and of torch's.
        tensors: how many of the arguments are tensors.
    """

    def __init__(self, name: str, tensors: int = 1) -> None:
        self.name, self.tensors = name, tensors
        self.theirs: Callable[..., Any] = getattr(F, name)

    def eager(self, kernels: Any, input: Tensor, *given: Any) -> Any:
        """By the raw kernels; None, or any error, to leave it to torch's function."""
        raise NotImplementedError

    def recorded(self, input: Tensor, *given: Any) -> Any:
        """By the registered operators, which others may see and change; None to leave it to torch's function.

        While torch.compile traces, no error can be caught, so this has to see before what the operators refuse.
        """
        raise NotImplementedError

    def call(self, input: Tensor, *given: Any) -> Any:
        if is_compiling():
            found = self.recorded(input, *given) if has_kernels(input) else None
            return self.theirs(input, *given) if found is None else found
        kernels = raw_kernels(input, input)
        if kernels is None:
            return self.seen(input, *given)
        try:
            found = self.eager(kernels, input, *given)
        except Exception:
            found = None
        return self.theirs(input, *given) if found is None else found

    def seen(self, input: Tensor, *given: Any) -> Any:
        """With `__torch_function__` (torch.fx traces by that), under torch.jit.trace, or for the operators."""
        likes = (input, *given[: self.tensors - 1])
        if has_torch_function(likes):
            from .. import functional

            return handle_torch_function(getattr(functional, self.name), likes, input, *given)
        found = None
        if _tracing_state() is None and has_kernels(input):
            try:
                found = self.recorded(input, *given)
            except Exception:
                found = None
        return self.theirs(input, *given) if found is None else found
