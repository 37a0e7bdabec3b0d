"""What PyTorch has to know about the Hopfield operators (csrc/ops/hopfield.h): shapes without computing (fake), that
there are no derivatives, and how vmap runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._operators import _below_autograd, _library, loop_over

retrieve_op = torch.ops.pykernels.hopfield_retrieve.default
packed_op = torch.ops.pykernels.hopfield_packed_retrieve.default


def _fake(_weight: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    sweeps, period = (state.new_empty(state.shape[:1], dtype=torch.int64) for _ in range(2))
    return state.new_empty(state.shape), sweeps, period


def _register(op: Any) -> None:
    name = op.name().split("::")[1]

    def without_gradient(keyset: Any, *args: Any) -> Any:
        return _below_autograd(op, keyset, args)

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Examples that share weight and orders are rows of one call."""
        if in_dims[0] is not None or (args[2] is not None and (in_dims[2] is not None or args[2].dim() == 2)):
            return loop_over(op, info, in_dims, args)
        if in_dims[1] is None or in_dims[3] is not None:
            return loop_over(op, info, in_dims, args)
        state = args[1].movedim(in_dims[1], 0)
        found = op(args[0], state.flatten(0, 1), *args[2:])
        return tuple(t.unflatten(0, state.shape[:2]) for t in found), (0, 0, 0)

    torch.library.register_fake(f"pykernels::{name}", _fake)
    torch.library.register_vmap(f"pykernels::{name}", vmap)
    _library.impl(name, without_gradient, "Autograd", with_keyset=True)


for _op in (retrieve_op, packed_op):
    _register(_op)
