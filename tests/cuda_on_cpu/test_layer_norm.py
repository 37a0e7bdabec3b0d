"""Layer norm of cuda/, glue and kernels unchanged, executed on the processor: values and gradients against the twin."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels.reference.layer_norm import dropped, normalize, sum_dtype
from tests.helpers import FLAG, SEED, assert_same_bits, drawn

from .device import TOLERANCE, Device

LOW = [torch.bfloat16, torch.float16]
EVERY = [torch.float64, torch.float32, *LOW]
FEATURES = {
    "rows": [1, 5, 70],
    "columns": [1, 3, 17, 64, 64, 100, 104, 257, 1500],
    "residual": FLAG,
    "weight": ["", "own", "wide"],
    "bias": ["", "own", "wide"],
    "dropout": [0.0, 0.0, 0.3],
    "lie": ["dense", "dense", "apart", "aligned", "one", "across"],
    "grads": ["out", "total", "both", "both"],
    "epsilon": [1e-5, 0.1],
    "seed": SEED,
}


@dataclasses.dataclass(frozen=True)
class Call:
    rows: int = 5
    columns: int = 64
    residual: bool = True
    weight: str = "own"  # of the input's dtype, or wide: of that of the sums
    bias: str = "own"
    dropout: float = 0.0
    lie: str = "dense"
    grads: str = "both"
    epsilon: float = 1e-5
    seed: int = 0

    def some_rows(self, draw: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Rows with others between them, of an odd width or one of 16 bytes, all the same, or column beside column."""
        space = {"apart": 3, "aligned": 8}.get(self.lie, 0)
        whole = torch.randn(1 if self.lie == "one" else self.rows, self.columns + space, generator=draw).to(dtype)
        if self.lie == "one":
            return whole.expand(self.rows, self.columns)
        return whole.T.contiguous().T if self.lie == "across" else whole[:, : self.columns]

    def tensors(self, dtype: torch.dtype) -> dict[str, Any]:
        """What forward takes, by name."""
        draw = torch.Generator().manual_seed(self.seed)
        made: dict[str, Any] = {"input": self.some_rows(draw, dtype)}
        made["residual"] = self.some_rows(draw, dtype) if self.residual else None
        for name in ("weight", "bias"):
            kind, values = getattr(self, name), torch.randn(self.columns, generator=draw)
            made[name] = values.to(dtype if kind == "own" else sum_dtype(made["input"])) if kind else None
        made["seed"] = torch.tensor([self.seed * 0x123456789 + 5]) if self.dropout else None
        return made

    def gradients(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Of out and total."""
        draw = torch.Generator().manual_seed(self.seed + 1)
        both = [self.some_rows(draw, dtype) for _ in range(2)]
        return [
            grad if self.grads in (name, "both") else None for name, grad in zip(("out", "total"), both, strict=True)
        ]


def run(device: Device, call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = call.tensors(dtype)
    out, total, stats = device.kernels.layer_norm_forward(*tensors.values(), [call.columns], call.dropout, call.epsilon)
    if not (call.residual or call.dropout):
        assert total.shape == (0,)
        total = tensors["input"]
    kept = [tensors[name] for name in ("weight", "bias", "seed")]
    grads = device.kernels.layer_norm_backward(
        *call.gradients(dtype), total, stats, *kept, [call.columns], call.dropout, call.epsilon, True, True
    )
    names = ("grad of total", "grad input", "grad weight", "grad bias")
    found = {"out": out, "total": total, "stats": stats} | dict(zip(names, grads, strict=True))
    for name, there in (("grad input", call.dropout), ("grad weight", call.weight), ("grad bias", call.bias)):
        if not there:
            assert found.pop(name).shape == (0,)
    return found


def truth(call: Call, dtype: torch.dtype, total: Tensor) -> dict[str, Tensor]:
    """The same by the twin in float64, on what the dtype stores; what follows from the total, from that given."""
    tensors = call.tensors(dtype)
    exact = {n: None if t is None or n == "seed" else t.double() for n, t in tensors.items()}
    sum_of_both = dropped(exact["input"], tensors["seed"], 1, call.dropout)
    if call.residual:
        sum_of_both = sum_of_both + exact["residual"]
    leaves = {"grad of total": total.double().detach().requires_grad_()}
    leaves |= {f"grad {n}": exact[n].requires_grad_() for n in ("weight", "bias") if exact[n] is not None}
    out, mean, scale = normalize(leaves["grad of total"], exact["weight"], exact["bias"], 1, call.epsilon)
    grad_out, grad_total = (None if grad is None else grad.double() for grad in call.gradients(dtype))
    grads = dict.fromkeys(leaves)
    if grad_out is not None:
        grads = dict(
            zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad_out, allow_unused=True), strict=True)
        )
    grads = {name: torch.zeros_like(leaves[name]) if grad is None else grad for name, grad in grads.items()}
    if grad_total is not None:
        grads["grad of total"] = grads["grad of total"] + grad_total
    if call.dropout:
        grads["grad input"] = dropped(grads["grad of total"], tensors["seed"], 1, call.dropout)
    stats = torch.cat((mean, scale), 1)
    results = {"out": out, "total": sum_of_both, "stats": stats} | grads
    return {name: result.detach() for name, result in results.items()}


def check(device: Device, call: Call, dtype: torch.dtype, seeds: int = 1) -> None:
    first = None
    for seed in range(call.seed, call.seed + seeds):
        device.configure(seed)
        found = run(device, call, dtype)
        if first is not None:
            assert_same_bits(found, first)
        first = found
    assert first is not None
    expected = truth(call, dtype, first["total"])
    assert set(first) == set(expected)
    tensors = call.tensors(dtype)
    for name, right in expected.items():
        kind = sum_dtype(tensors["input"]) if name == "stats" else dtype
        if name in ("grad weight", "grad bias"):
            kind = tensors[name.removeprefix("grad ")].dtype
        tensor = first[name]
        assert tensor.dtype == kind and tensor.shape == right.shape, name
        assert torch.equal(tensor.isnan(), right.isnan()), f"{name}: not-a-numbers"
        if right.numel():
            right, tensor = (t.double().nan_to_num() for t in (right, tensor))
            error = float((tensor - right).abs().max() / (right.abs().max() + 1))
            assert error <= 4 * TOLERANCE[kind], f"{name} is off by {error:.3g}"


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@drawn(40, of=Call, **FEATURES)
def test_equals_the_twin(device, dtype, case):
    check(device, case, dtype)


# Of each dtype, the longest rows of every form, and longer ones; and rows that are no multiple of 16 bytes.
LENGTHS = {
    torch.float64: [128, 512, 1024, 2048, 4096, 8192, 8194, 255, 511, 2047, 4095, 8191, 8193],
    torch.float32: [256, 512, 1024, 2048, 4096, 8192, 16384, 16388, 511, 4095, 8191, 8193],
    torch.bfloat16: [512, 1024, 2048, 4096, 8192, 12288, 32768, 32776, 511, 4095, 8191, 8193],
}


@pytest.mark.parametrize(("dtype", "columns"), [(dtype, each) for dtype in LENGTHS for each in LENGTHS[dtype]], ids=str)
def test_every_length(device, dtype, columns):
    check(device, Call(2, columns, dropout=0.4 * (columns % 3 > 0), weight="wide"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [104, 1023, 4096])
def test_the_same_bits_in_every_order_of_threads(device, dtype, columns):
    check(device, Call(150 if columns == 104 else 9, columns, dropout=0.2), dtype, seeds=3)


def test_gradients_of_many_rows(device):
    """More than the runs that gradients of weight and bias are added up over."""
    check(device, Call(5000, 8, residual=False), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0, 0)])
def test_empty(device, dtype, shape):
    """A row without columns has no mean."""
    check(device, Call(*shape), dtype)
    device.configure(0)
    stats = device.kernels.layer_norm_forward(torch.empty(shape, dtype=dtype), *[None] * 4, shape[1:], 0.0, 1e-5)[2]
    assert stats.shape == (shape[0], 2) and stats.isnan().all()


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("columns", [8, 11, 1504])
def test_one_value_in_a_row_is_all_that_a_mean_can_lose(device, dtype, columns):
    """A variance is of what differs from the mean: that of a large number is zero."""
    device.configure(0)
    rows = torch.full((3, columns), 1000.0, dtype=dtype)
    out, _, stats = device.kernels.layer_norm_forward(rows, None, None, None, None, [columns], 0.0, 1e-5)
    assert not out.any() and torch.allclose(stats[:, 0].double(), torch.tensor(1000.0).double())
    assert torch.allclose(stats[:, 1].double(), torch.tensor(1e-5).double().rsqrt(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [40, 3000])
def test_what_is_not_a_number_stays_in_its_row(device, dtype, columns):
    device.configure(0)
    rows = Call(6, columns).tensors(dtype)["input"]
    clean = device.kernels.layer_norm_forward(rows, None, None, None, None, [columns], 0.0, 1e-5)
    rows[2, 7] = torch.nan
    found = device.kernels.layer_norm_forward(rows, None, None, None, None, [columns], 0.0, 1e-5)
    for before, after in ((clean[0], found[0]), (clean[2], found[2])):
        assert after[2].isnan().all() and torch.equal(after[[0, 1, 3, 4, 5]], before[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_a_seed_and_a_probability_of_zero_or_one(device, dropout):
    device.configure(0)
    input, residual = torch.randn(3, 2, 40).unbind(1)
    seed = torch.tensor([7])
    _, total, stats = device.kernels.layer_norm_forward(input, residual, None, None, seed, [40], dropout, 1e-5)
    assert torch.equal(total, input + residual if dropout == 0 else residual)
    grads = device.kernels.layer_norm_backward(
        None, residual, total, stats, None, None, seed, [40], dropout, 1e-5, True, True
    )
    assert torch.equal(grads[0], residual) and torch.equal(grads[1], residual * (1 - dropout))


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("columns", [40, 3000, 17000])
def test_what_is_not_needed_is_empty(device, columns, need):
    call = Call(5, columns)
    device.configure(0)
    whole = run(device, call, torch.float32)
    tensors = call.tensors(torch.float32)
    grads = device.kernels.layer_norm_backward(
        *call.gradients(torch.float32), whole["total"], whole["stats"], tensors["weight"], tensors["bias"], None,
        [columns], 0.0, 1e-5, *need,
    )  # fmt: skip
    for wanted, grad, name in zip(need, grads[2:], ("grad weight", "grad bias"), strict=True):
        assert torch.equal(grad, whole[name] if wanted else torch.empty(0))
