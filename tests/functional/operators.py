"""Arguments of the registered operators and the raw kernels, by name and in the operators' order."""

from __future__ import annotations

from typing import Any

import torch

from pykernels import _native
from tests.helpers import Case

Arguments = dict[str, Any]


def kernels(device: Any) -> Any:
    return _native.kernels if torch.device(device).type == "cpu" else _native.cuda_kernels


def operator(case: Case, which: str) -> Any:
    """`torch.ops.pykernels.<kind>_forward` or `_backward`."""
    return getattr(torch.ops.pykernels, f"{case.kind}_{which}")


def raw(case: Case, which: str, device: Any = "cpu") -> Any:
    return getattr(kernels(device), f"{case.kind}_{which}")


def _flags(case: Case) -> Arguments:
    return dict(zip(case.about.flags, case.flags, strict=True))


def forward_arguments(case: Case, dtype=torch.float64, device="cpu", save=True, requires_grad=False) -> Arguments:
    tensors = case.tensors(dtype, device, requires_grad)
    made: Arguments = {"input": tensors["input"], "batch_sizes": case.batch_sizes() if case.packed else None}
    made |= {name: tensors.get(name) for name in case.about.states}
    made["weights"] = [tensors[name] for name in case.weight_shapes()]
    return made | _flags(case) | {"save": save}


def backward_arguments(case: Case, dtype=torch.float64, device="cpu", need=(True, True, True)) -> Arguments:
    given = forward_arguments(case, dtype, device)
    names = (*case.about.results, *case.about.saved)
    found = dict(zip(names, operator(case, "forward")(*given.values()), strict=True))
    made: Arguments = {f"grad_{name}": torch.randn(found[name].shape).to(found[name]) for name in case.about.results}
    made |= {name: given[name] for name in ("input", "batch_sizes", *case.about.states, "weights")}
    made |= {name: found[name] for name in ("output", *case.about.saved)}
    needs = dict(zip(("need_input", "need_states", "need_weights"), need, strict=True))
    return made | _flags(case) | needs
