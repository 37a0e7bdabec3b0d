"""Drawn calls of `layer_norm`, run by ours and by the twin."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pykernels import functional, reference
from tests.helpers import (
    LOW,
    SEED,
    assert_equal,
    assert_no_worse,
    with_gradients,
)

from .compiling import forget_what_was_compiled

assert forget_what_was_compiled  # around every test
normalize = functional.layer_norm
forward, backward = torch.ops.pykernels.layer_norm_forward.default, torch.ops.pykernels.layer_norm_backward.default
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dataclasses.dataclass(frozen=True)
class Norm:
    """One problem: every tensor of it follows from these fields."""

    rows: int = 5
    columns: int = 17
    weight: str = "own"  # or "float32", "none"
    bias: bool = True
    residual: bool = True
    dropout: float = 0.0
    lead: int = 1  # dimensions before those of normalized_shape
    own: int = 1  # dimensions of normalized_shape
    eps: float = 1e-5
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return *[1] * (self.own - 1), self.columns

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        lead = [2] * (self.lead - 1) + [self.rows] if self.lead else []
        made = {"input": torch.randn(*lead, *self.shape, generator=draw, dtype=torch.float64) * 1.5 + 0.5}
        if self.residual:
            made["residual"] = torch.randn(made["input"].shape, generator=draw, dtype=torch.float64)
        if self.weight != "none":
            made["weight"] = torch.randn(self.shape, generator=draw, dtype=torch.float64) + 1
        if self.bias:
            made["bias"] = torch.randn(self.shape, generator=draw, dtype=torch.float64)
        return {n: t.to(device, self.dtype_of(n, dtype)).requires_grad_() for n, t in made.items()}

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        low = dtype in LOW and self.weight == "float32" and name in ("weight", "bias")
        return torch.float32 if low else dtype


def call(where: Any, case: Norm, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(case.seed)  # of dropout
    given = tensors["input"], case.shape, tensors.get("weight"), tensors.get("bias"), case.eps
    residual = tensors.get("residual")
    if where is F:
        total = given[0] if residual is None else residual + given[0]
        return {"y": F.layer_norm(total, *given[1:]), "total": total}
    y, total = where.layer_norm(*given, residual=residual, dropout_p=case.dropout, return_total=True)
    return {"y": y, "total": total}


def run(where: Any, case: Norm, dtype: torch.dtype, device: Any = "cpu", truth: bool = False):
    """Results and gradients; as the truth in float64, of operands rounded to `dtype`."""
    tensors = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    leaves = {n: (t.double() if truth else t).requires_grad_() for n, t in tensors.items()}
    return with_gradients(call(where, case, leaves), leaves)


def check_values(case: Norm, dtype: torch.dtype, device: Any) -> None:
    """float64: the twin's. Else at most twice torch's error (of gradients three times), with dropout the twin's."""
    ours = run(functional, case, dtype, device)
    if dtype == torch.float64:
        assert_equal(ours, run(reference, case, dtype, device), 1e-11)
        return
    peer = run(reference if case.dropout else F, case, dtype, device)
    assert_no_worse(ours, peer, run(reference, case, dtype, device, truth=True))


WIDTHS = [0, 1, *range(2, 36), 47, 48, 49, 63, 64, 65, 96, 127, 128, 129, 255, 257, 512, 513, 1000]
SPACE: dict[str, Any] = {
    "rows": [0, 1, 2, 3, 5, 16, 33, 130],
    "columns": WIDTHS,
    "weight": ["own", "float32", "none"],
    "bias": [False, True],
    "residual": [False, True],
    "dropout": [0.0, 0.0, 0.3, 0.9],
    "lead": (0, 3),
    "own": (1, 3),
    "eps": [1e-5, 1e-3],
    "seed": SEED,
}
TINY = {**SPACE, "rows": (1, 3), "columns": (2, 5)}
FULL = Norm(dropout=0.3)
