"""The operators of the input's part of the gates: values, derivatives, what is kept, opcheck, threads, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels import functional
from pykernels.functional import _recurrent, _variants
from pykernels.reference import input_part_layer
from tests.helpers import FLAG, LOW, SEED, assert_same_bits, distance, drawn

FORWARD, BACKWARD = torch.ops.pykernels.input_part_forward, torch.ops.pykernels.input_part_backward
assert functional  # registers them


@dataclasses.dataclass(frozen=True)
class Part:
    """One problem: every tensor follows from these fields."""

    steps: int = 3
    batch: int = 4
    inputs: int = 5
    columns: int = 8
    bias: bool = True
    layer_norm: bool = True
    bidirectional: bool = False
    packed: bool = False
    seed: int = 0

    @property
    def flags(self) -> tuple[bool, ...]:
        return self.bias, self.layer_norm, self.bidirectional

    @property
    def sizes(self) -> Tensor | None:
        return torch.full((self.steps,), self.batch) if self.packed else None

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> list[Tensor]:
        """The input, then the weights."""
        draw = torch.Generator().manual_seed(self.seed)
        sizes = (self.steps * self.batch,) if self.packed else (self.steps, self.batch)
        each = [(self.columns, self.inputs)] + [(self.columns,)] * (self.bias + self.layer_norm)
        shapes = [(*sizes, self.inputs), *each * (2 if self.bidirectional else 1)]
        made = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
        return [tensor.to(device, dtype).requires_grad_() for tensor in made]

    def run(self, tensors: list[Tensor]) -> Tensor:
        (found,) = _recurrent.run_layer(
            _variants._INPUT_PART, tensors[0], self.sizes, (), tuple(tensors[1:]), self.flags
        )
        return found

    def twin(self, tensors: list[Tensor]) -> Tensor:
        return input_part_layer(tensors[0], self.sizes, tensors[1:], *self.flags)[0]

    def results(self, function: Any, tensors: list[Tensor]) -> dict[str, Tensor]:
        out = function(tensors)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
        found = torch.autograd.grad(out, tensors, grad)
        return {"out": out.detach()} | {f"grad {i}": gradient for i, gradient in enumerate(found)}


SPACE: dict[str, Any] = {
    "steps": (1, 9), "batch": (1, 9), "inputs": (1, 40), "columns": (2, 90), "bias": FLAG, "layer_norm": FLAG,
    "bidirectional": FLAG, "packed": FLAG, "seed": SEED,
}  # fmt: skip


@pytest.mark.isa
@drawn(60, of=Part, **SPACE)
def test_values_and_gradients(device, case):
    truth = case.results(case.twin, case.tensors(device=device))
    largest = max(float(t.abs().max()) for t in truth.values())
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
        found = case.results(case.run, case.tensors(dtype, device))
        for name, tensor in found.items():
            assert tensor.dtype == dtype
            assert distance(tensor, truth[name], largest / 100) < tolerance, name


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("layer_norm", FLAG)
def test_low_precision(device, dtype, layer_norm):
    case = Part(4, 5, 30, 64, layer_norm=layer_norm)
    truth = case.results(case.twin, [t.to(dtype).double() for t in case.tensors(device=device)])
    found = case.results(case.run, case.tensors(dtype, device))
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert distance(tensor, truth[name]) < 0.03, name


def test_rows_in_any_layout(device):
    """A transposed input, and one with gaps."""
    case = Part(5, 6, 7, 12)
    x, *weights = (t.detach() for t in case.tensors(device=device))
    expected = case.run([x, *weights])
    assert torch.equal(case.run([x.transpose(0, 1).contiguous().transpose(0, 1), *weights]), expected)
    assert torch.equal(case.run([x.repeat_interleave(2, 2)[..., ::2], *weights]), expected)


@drawn(6, of=Part, **SPACE | {"steps": (1, 3), "batch": (1, 3), "inputs": (1, 4), "columns": (2, 6)})
def test_derivatives(case):
    tensors = case.tensors()
    torch.autograd.gradcheck(lambda *t: case.run(list(t)), tensors, check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda *t: case.run(list(t)), tensors, atol=1e-4)


@pytest.mark.parametrize("layer_norm", FLAG)
@pytest.mark.parametrize("packed", FLAG)
def test_opcheck(layer_norm, packed):
    case = Part(layer_norm=layer_norm, packed=packed, bidirectional=True)
    x, *weights = case.tensors()
    torch.library.opcheck(FORWARD, (x, case.sizes, weights, *case.flags, True))
    out, *kept = (t.detach() for t in FORWARD(x, case.sizes, weights, *case.flags, True))
    torch.library.opcheck(BACKWARD, (out, x, case.sizes, weights, out, *kept, *case.flags, True, False, True))


@pytest.mark.parametrize("need_input", FLAG)
@pytest.mark.parametrize("need_weights", FLAG)
def test_only_what_is_wanted(device, need_input, need_weights):
    case = Part(bidirectional=True)
    x, *weights = (t.detach() for t in case.tensors(device=device))
    out, *kept = FORWARD(x, None, weights, *case.flags, True)
    all_of_it = BACKWARD(out, x, None, weights, out, *kept, *case.flags, True, False, True)
    grad_x, grads = BACKWARD(out, x, None, weights, out, *kept, *case.flags, need_input, False, need_weights)
    assert torch.equal(grad_x, all_of_it[0]) if need_input else grad_x.shape == (0,)
    for grad, whole in zip(grads, all_of_it[1], strict=True):
        assert torch.equal(grad, whole) if need_weights else grad.shape == (0,)
    assert all(t.shape == (0,) for t in FORWARD(x, None, weights, *case.flags, False)[1:])


def test_no_rows_and_no_gradient(device):
    case = Part(batch=0, bidirectional=True)
    found = case.results(case.run, case.tensors(device=device))
    assert found["out"].shape == (3, 0, 16)
    assert all((grad == 0).all() for name, grad in found.items() if name.startswith("grad"))
    case = Part()
    x, *weights = (t.detach() for t in case.tensors(device=device))
    out, *kept = FORWARD(x, None, weights, *case.flags, True)
    grad_x, grads = BACKWARD(None, x, None, weights, out, *kept, *case.flags, True, False, True)
    assert all((grad == 0).all() for grad in (grad_x, *grads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [Part(12, 33, 37, 404), Part(1, 2, 1, 4), Part(9, 5, 130, 200, layer_norm=False)])
def test_same_bits_for_any_number_of_threads(threads, case, dtype):
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(case.results(case.run, case.tensors(dtype)))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


def test_wrong_arguments(device):
    case = Part()
    x, *weights = (t.detach() for t in case.tensors(device=device))
    wrong = {
        "expected a 3-D input, got 2-D": (x[0], weights),
        "expected 3 weights, got 2": (x, weights[:-1]),
        "expected weight_ih of shape": (x[..., :-1], weights),
        "expected bias_ih of shape": (x, [weights[0], weights[1][:-1], weights[2]]),
        "expected weight_ln_ih of shape": (x, [*weights[:2], weights[2][None]]),
        "expected every weight of dtype Float": (x.float(), weights),
    }
    for text, (input, others) in wrong.items():
        with pytest.raises(RuntimeError, match=text):
            FORWARD(input, None, others, *case.flags, True)


@pytest.mark.parametrize("layer_norm", FLAG)
def test_no_inputs(device, layer_norm):
    """Nothing but the bias is put out, and it has a gradient."""
    case = Part(inputs=0, layer_norm=layer_norm, bidirectional=True)
    tensors = case.tensors(device=device)
    found, truth = (case.results(function, tensors) for function in (case.run, case.twin))
    for name, tensor in found.items():
        assert tensor.shape == truth[name].shape
        assert distance(tensor, truth[name], 1e-3) < 1e-9, name
