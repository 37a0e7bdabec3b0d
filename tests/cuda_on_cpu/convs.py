"""Drawn convolutions: their tensors, and values and gradients by the kernels and in float64 by torch."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .device import TOLERANCE, Device

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
RESULTS = ("out", "grad input", "grad weight", "grad bias")


@dataclasses.dataclass(frozen=True)
class Call:
    """Extents of a dimension: one number for all of them, or one each."""

    size: tuple[int, ...] = (6, 5)
    kernel: tuple[int, ...] = (3, 3)
    stride: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    batch: int = 2
    groups: int = 1
    inputs: int = 3  # channels of a group
    outputs: int = 4
    mode: str = "zeros"
    bias: bool = True
    relu: bool = False
    channels_last: bool = False
    seed: int = 0

    @property
    def options(self) -> list[Any]:
        return [self.stride, self.padding, self.dilation, self.groups, self.mode]

    @property
    def weight_size(self) -> tuple[int, ...]:
        return (self.groups * self.outputs, self.inputs, *self.kernel)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Input, weight, bias and a gradient of the output."""
        draw = torch.Generator().manual_seed(self.seed)

        def some(*shape: int) -> Tensor:
            made = torch.randn(shape, generator=draw).to(dtype)
            return made.contiguous(memory_format=LAST[len(shape) - 2]) if self.channels_last else made

        input = some(self.batch, self.groups * self.inputs, *self.size)
        weight, bias = some(*self.weight_size), torch.randn(self.groups * self.outputs, generator=draw).to(dtype)
        return {"input": input, "weight": weight, "bias": bias, "grad": some(*self.output_size())}

    def output_size(self) -> tuple[int, ...]:
        places = (
            (size + self.padding[2 * i] + self.padding[2 * i + 1] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i, size in enumerate(self.size)
        )
        return (self.batch, self.groups * self.outputs, *places)


def drawn_call(spatial: int, largest: int, seed: int, channels_last: bool, mode: str, **fields: Any) -> Call:
    """Sizes, kernels and the rest of the dimensions drawn so that they fit."""
    draw = random.Random(seed)
    sizes, kernels, strides, dilations, paddings = [], [], [], [], []
    for _ in range(spatial):
        size, kernel, dilation = draw.randint(1, largest), draw.randint(1, 4), draw.choice([1, 1, 2, 3])
        most = {"reflect": size - 1, "circular": size}.get(mode, 4)
        before, after = (min(draw.randint(0, 3), most) for _ in range(2))
        while dilation * (kernel - 1) + 1 > size + before + after:
            kernel -= 1
        sizes.append(size)
        kernels.append(kernel)
        strides.append(draw.choice([1, 1, 2, 3, 5]))
        dilations.append(dilation)
        paddings += [before, after]
    return Call(
        tuple(sizes), tuple(kernels), tuple(strides), tuple(dilations), tuple(paddings), mode=mode,
        channels_last=channels_last and spatial > 1, seed=seed, **fields,
    )  # fmt: skip


def run(device: Device, call: Call, dtype: torch.dtype, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Values and gradients by the kernels."""
    given = tensors or call.tensors(dtype)
    bias = given["bias"] if call.bias else None
    activation = "relu" if call.relu else "none"
    kernels, input, weight, grad = device.kernels, given["input"], given["weight"], given["grad"]
    out = kernels.conv_forward(input, weight, bias, *call.options, activation)
    grad_input = kernels.conv_input_gradient(grad, weight, input.shape, *call.options)
    grads = kernels.conv_weight_gradient(input, grad, weight.shape, *call.options, call.bias)
    for tensor, operands in ((out, (input, weight)), (grad_input, (grad, weight)), (grads[0], (input, grad))):
        formats = {suggest_memory_format(operand) for operand in operands}
        assert tensor.is_contiguous(memory_format=max(formats, key=lambda each: each != torch.contiguous_format))
    return dict(zip(RESULTS, (out, grad_input, *grads), strict=True))


def truth(call: Call, dtype: torch.dtype, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The same by torch in float64, on what the dtype stores."""
    exact = {name: tensor.double() for name, tensor in (tensors or call.tensors(dtype)).items()}
    input, weight = exact["input"].requires_grad_(), exact["weight"].requires_grad_()
    pairs = [call.padding[2 * i : 2 * i + 2] for i in range(len(call.size))]
    mode = "constant" if call.mode == "zeros" else call.mode
    padded = F.pad(input, [n for pair in reversed(pairs) for n in pair], mode=mode) if any(call.padding) else input
    convolution = CONVOLUTIONS[len(call.size) - 1]
    plain = convolution(padded, weight, None, call.stride, 0, call.dilation, call.groups)
    grads = torch.autograd.grad(plain, (input, weight), exact["grad"])
    out = plain.detach()
    if call.bias:
        out = out + exact["bias"].reshape(-1, *[1] * len(call.size))
    rest = [0, *range(2, plain.dim())]
    grad_bias = exact["grad"].sum(rest) if call.bias else torch.empty(0, dtype=torch.float64)
    return dict(zip(RESULTS, (out.relu() if call.relu else out, *grads, grad_bias), strict=True))


def assert_right(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Each tensor within the tolerance of its dtype; not-a-numbers only where the truth has them."""
    for name, right in expected.items():
        tensor = actual[name]
        assert tensor.dtype == dtype and tensor.shape == right.shape, name
        assert torch.equal(tensor.isnan(), right.isnan()), f"{name}: not-a-numbers"
        if right.numel():
            right, tensor = (t.double().nan_to_num() for t in (right, tensor))
            error = float((tensor - right).abs().max() / (right.abs().max() + 1))
            assert error <= TOLERANCE[dtype], f"{name} is off by {error:.3g}"
