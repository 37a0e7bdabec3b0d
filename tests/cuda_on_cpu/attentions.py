"""Drawn calls of attention: their tensors, and values and gradients by the kernels and in float64 by the equations."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from pykernels.reference.attention import attention, attention_weights

from .device import TOLERANCE, Device

MASKS = {  # its dtype (None: the query's) and which dimensions it has whole
    "bool": (torch.bool, (True, True, True, True)),
    "one bool for all rows": (torch.bool, (True, False, False, True)),
    "float": (None, (True, True, True, True)),
    "one float for all examples": (None, (False, True, True, True)),
    "one float for all rows": (None, (True, False, False, True)),
    "one float for all": (None, (False, False, False, True)),
    "one float for all keys": (None, (True, True, True, False)),
}
RESULTS = ("out", "lse")
GRADIENTS = ("grad query", "grad key", "grad value", "grad mask")


@dataclasses.dataclass(frozen=True)
class Call:
    batch: int = 2
    groups: int = 2
    heads_of_group: int = 1
    rows: int = 5
    keys: int = 7
    depth: int = 8
    value_depth: int = 8
    mask: str = ""
    lengths: bool = False
    left: int = -1
    right: int = -1
    bottom_right: bool = False
    softcap: float = 0.0
    dropout: float = 0.0
    scale: float | None = None
    rows_first: bool = False
    seed: int = 0

    def tensors(self, dtype: torch.dtype) -> dict[str, Any]:
        """What both operators take, by name: query, key, value, mask, row_lengths, key_lengths, seed."""
        draw = torch.Generator().manual_seed(self.seed)
        heads = self.groups * self.heads_of_group

        def some(heads: int, rows: int, columns: int) -> Tensor:
            if self.rows_first:
                return torch.randn(self.batch, rows, heads, columns, generator=draw).to(dtype).transpose(1, 2)
            return torch.randn(self.batch, heads, rows, columns, generator=draw).to(dtype)

        made: dict[str, Any] = {
            "query": some(heads, self.rows, self.depth),
            "key": some(self.groups, self.keys, self.depth),
            "value": some(self.groups, self.keys, self.value_depth),
            "mask": None,
        }
        if self.mask:
            kind, whole = MASKS[self.mask]
            full = (self.batch, heads, self.rows, self.keys)
            numbers = torch.randn([n if w else 1 for n, w in zip(full, whole, strict=True)], generator=draw)
            made["mask"] = numbers > -0.5 if kind == torch.bool else numbers.to(dtype)
        for name, most in (("row_lengths", self.rows), ("key_lengths", self.keys)):
            lengths = torch.randint(0, most + 1, (self.batch,), generator=draw)
            made[name] = lengths if self.lengths else None
        made["seed"] = torch.tensor([self.seed * 0x123456789 + 5]) if self.dropout else None
        return made

    def numbers(self) -> tuple[Any, ...]:
        return self.scale, self.softcap, self.dropout, self.left, self.right, self.bottom_right

    def weightings(self, dtype: torch.dtype) -> list[Tensor]:
        """Gradients of out and lse."""
        draw = torch.Generator().manual_seed(self.seed + 1)
        shape = (self.batch, self.groups * self.heads_of_group, self.rows)
        out = torch.randn(*shape, self.value_depth, generator=draw).to(dtype)
        return [out, torch.randn(shape, generator=draw).to(lse_dtype(dtype))]


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(device: Device, call: Call, dtype: torch.dtype, tensors: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Results and gradients by the kernels."""
    tensors = tensors or call.tensors(dtype)
    given = tensors.values()
    results = device.kernels.attention_forward(*given, *call.numbers())
    grads = device.kernels.attention_backward(
        *call.weightings(dtype), *given, *results, *call.numbers(), True, True, True, True
    )
    named = dict(zip(RESULTS + GRADIENTS, (*results, *grads), strict=True))
    if tensors["mask"] is None or tensors["mask"].dtype == torch.bool:
        assert named.pop("grad mask").shape == (0,)
    return named


def truth(call: Call, dtype: torch.dtype, tensors: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """The same by the twin in float64, on what the dtype stores."""
    given = dict(tensors or call.tensors(dtype))
    leaves = {}
    for name in ("query", "key", "value", "mask"):
        if given[name] is not None and given[name].is_floating_point():
            leaves[f"grad {name}"] = given[name] = given[name].double().requires_grad_()
    results = attention(*given.values(), *call.numbers())
    weighting = [tensor.double() for tensor in call.weightings(dtype)]
    grads = torch.autograd.grad(results, list(leaves.values()), weighting, allow_unused=True)
    named = dict(zip(RESULTS, (result.detach() for result in results), strict=True))
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        named[name] = torch.zeros_like(leaf) if grad is None else grad
    return named


def weights_and_truth(
    device: Device, call: Call, dtype: torch.dtype, average: bool, tensors: dict[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by the kernels, with their own lse, and by the equations in float64."""
    given = dict(tensors or call.tensors(dtype))
    lse = device.kernels.attention_forward(*given.values(), *call.numbers())[1]
    exact = {n: t.double() if t is not None and t.is_floating_point() else t for n, t in given.items()}
    right = attention(*exact.values(), *call.numbers())[1]
    for each in (given, exact):
        each.pop("value")
    found = device.kernels.attention_weights(*given.values(), lse, *call.numbers(), average)
    return {"weights": found}, {"weights": attention_weights(*exact.values(), right, *call.numbers(), average)}


def assert_right(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Each tensor within the tolerance of its dtype; infinities and not-a-numbers only where the truth has them."""
    assert list(actual) == list(expected)
    for name, right in expected.items():
        tensor, kind = actual[name], lse_dtype(dtype) if name == "lse" else dtype
        assert tensor.dtype == kind and tensor.shape == right.shape, name
        assert torch.equal(tensor.isnan(), right.isnan()), f"{name}: not-a-numbers"
        assert torch.equal(tensor.isinf(), right.isinf()), f"{name}: infinities"
        if right.numel():
            right, tensor = (t.double().nan_to_num(posinf=0, neginf=0) for t in (right, tensor))
            error = float((tensor - right).abs().max() / (right.abs().max() + 1))
            assert error <= (4 if kind == torch.float32 else 1.5) * TOLERANCE[kind], f"{name} is off by {error:.3g}"
