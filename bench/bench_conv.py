"""Rows of the convolutions against torch's, contiguous and channels-last: inference, training, first layers, bf16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import child, ours
from bench.layers import backward_of, check_same
from bench.limits import Work
from bench.pairs import fastest


@dataclass(frozen=True)
class Shape:
    """A square image and kernel, padded to keep the image's size (but for what the stride takes)."""

    batch: int
    inputs: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    padded: bool = True

    @property
    def label(self) -> str:
        marks = [f"stride {self.stride}"] * (self.stride > 1) + [f"dilation {self.dilation}"] * (self.dilation > 1)
        kind = "depthwise" if self.depthwise else f"K{self.outputs}"
        return " ".join([f"N{self.batch} C{self.inputs} {self.size}² {kind} {self.kernel}×{self.kernel}", *marks])

    @property
    def options(self) -> dict[str, Any]:
        padding = self.dilation * (self.kernel - 1) // 2 if self.padded else 0
        groups = self.inputs if self.depthwise else 1
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": groups}

    def tensors(self, channels_last: bool, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
        torch.manual_seed(self.batch + self.inputs + self.size)
        memory = torch.channels_last if channels_last else torch.contiguous_format
        width = self.inputs // self.options["groups"]
        scale = (width * self.kernel**2) ** -0.5
        image = torch.randn(self.batch, self.inputs, self.size, self.size)
        weight = scale * torch.randn(self.outputs, width, self.kernel, self.kernel)
        given = [t.to(dtype).contiguous(memory_format=memory) for t in (image, weight)]
        return [t.requires_grad_(grad) for t in (*given, torch.randn(self.outputs).to(dtype))]


STRONG = [
    Shape(32, 32, 28, 64, 3),
    Shape(8, 64, 56, 64, 3),
    Shape(8, 256, 14, 256, 3),
    Shape(8, 256, 14, 256, 1),
    Shape(8, 64, 56, 256, 1),
    Shape(8, 128, 56, 128, 3, stride=2),
    Shape(8, 64, 56, 128, 1, stride=2),
    Shape(8, 64, 28, 64, 3, dilation=2),
    Shape(8, 128, 56, 128, 3, depthwise=True),
    Shape(8, 256, 28, 256, 3, stride=2, depthwise=True),
]
FIRST = [Shape(32, 1, 28, 32, 3), Shape(8, 3, 224, 64, 7, stride=2), Shape(16, 1, 28, 16, 5, padded=False)]
LENET = [
    (Shape(64, 1, 28, 6, 5), "LeNet, first layer"),
    (Shape(64, 6, 14, 16, 5, padded=False), "LeNet, second layer"),
    (Shape(1, 1, 28, 6, 5), "LeNet, first layer"),
    (Shape(1, 6, 14, 16, 5, padded=False), "LeNet, second layer"),
]
AVX2 = [Shape(2, 64, 28, 64, 3), Shape(2, 256, 14, 256, 1)]
LOW = [STRONG[0], STRONG[1], STRONG[3], STRONG[5], STRONG[8]]
WHY = {
    "conv-inference": "both are near the processor's peak where there is no minimal filtering (1x1, strides); "
    "depthwise and pointwise layers are near the memory's rate",
    "conv-training": "the same; the weights' sums run over all places",
    "conv-first": "few channels: a place has few products for each number that is written",
    "conv-first-training": "the same, and the weights' gradient is a product with few columns",
    "conv-bf16": "patches are laid down in pairs of bf16",
    "conv-bf16-training": "the same for gradients",
    "conv-bf16-avx2": "products in float32: the processor has none in bf16",
    "conv-pool": "what the convolution gives stays in the first-level cache",
}


def over(shapes: list[Shape]) -> Callable:
    def decorate(test: Callable) -> Callable:
        by_shape = pytest.mark.parametrize("shape", shapes, ids=lambda shape: shape.label.replace(" ", "-"))
        by_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
        return by_shape(by_layout(test))

    return decorate


def label_of(shape: Shape, channels_last: bool, *marks: str) -> str:
    return ", ".join([shape.label, *["channels-last"] * channels_last, *marks])


def work_of(image: Tensor, weight: Tensor, out: Tensor, steps: int = 1) -> Work:
    """`steps` is how many products there are: each reads two of the three and writes the third."""
    flop = 2.0 * out.numel() * weight[0].numel()
    rate = 2.0 if image.dtype == torch.bfloat16 and ours.isa().endswith("bf16") else 1.0
    return Work(steps * flop, steps * (image.nbytes + weight.nbytes + out.nbytes), rate=rate)


def calls(shape: Shape, given: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Ours and torch's. Raises if they are not the same."""
    image, weight, bias = given
    mine, options = ours.library().functional.conv2d, shape.options
    works = {
        "ours": lambda: mine(image, weight, bias, **options),
        "torch": lambda: F.conv2d(image, weight, bias, **options),
    }
    check_same(works["ours"]().float(), works["torch"]().float(), 1e-4 if given[0].dtype == torch.float32 else 5e-2)
    return works


def inference(compare: Callable, section: str, shape: Shape, channels_last: bool, dtype: Any, **about: Any) -> None:
    given = shape.tensors(channels_last, dtype)
    works = calls(shape, given)
    work = work_of(given[0], given[1], works["ours"]())
    compare(section, label_of(shape, channels_last), works, grad=False, work=work, why=WHY, **about)


def training(
    compare: Callable,
    section: str,
    shape: Shape,
    channels_last: bool,
    dtype: Any,
    *,
    of_image: bool = True,
    target: float | None,
) -> None:
    """Forward, and the gradients of weight, bias and, `of_image`, the image."""
    given = shape.tensors(channels_last, dtype, grad=True)
    given[0].requires_grad_(of_image)
    leaves = [t for t in given if t.requires_grad]
    works = calls(shape, given)
    out = works["torch"]().detach()
    grad = torch.randn(out.shape).to(out)
    grad = grad.contiguous(memory_format=torch.channels_last) if channels_last else grad
    steps = {name: backward_of(call, leaves, grad) for name, call in works.items()}
    check_gradients(works, leaves, grad)
    label = label_of(shape, channels_last, *([] if of_image else ["no gradient of the image"]))
    work = work_of(given[0], given[1], out, 3 if of_image else 2)
    compare(section, label, steps, grad=True, work=work, why=WHY, target=target)


def check_gradients(works: dict[str, Callable[[], Tensor]], leaves: list[Tensor], grad: Tensor) -> None:
    found, expected = (torch.autograd.grad(call(), leaves, grad) for call in works.values())
    for one, other in zip(found, expected, strict=True):
        scale = other.float().abs().max()
        check_same(one.float() / scale, other.float() / scale, 1e-3 if grad.dtype == torch.float32 else 5e-2)


@over(STRONG)
def test_conv_inference(shape, channels_last, compare):
    inference(compare, "conv-inference", shape, channels_last, torch.float32, target=1.0)


@over(STRONG)
def test_conv_training(shape, channels_last, compare):
    training(compare, "conv-training", shape, channels_last, torch.float32, target=1.0)


@over(FIRST)
def test_conv_first(shape, channels_last, compare):
    inference(compare, "conv-first", shape, channels_last, torch.float32, target=1.2)


@pytest.mark.parametrize("of_image", [True, False], ids=["all", "weights"])
@over(FIRST)
def test_conv_first_training(shape, channels_last, of_image, compare):
    training(compare, "conv-first-training", shape, channels_last, torch.float32, of_image=of_image, target=1.5)


@over(LOW)
def test_conv_bf16(shape, channels_last, compare):
    inference(compare, "conv-bf16", shape, channels_last, torch.bfloat16, target=None)


@over(LOW)
def test_conv_bf16_training(shape, channels_last, compare):
    training(compare, "conv-bf16-training", shape, channels_last, torch.bfloat16, target=None)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "last"])
@pytest.mark.parametrize("shape", AVX2, ids=["three", "one"])
def test_conv_bf16_avx2(shape, channels_last, compare, keep, request):
    """As on a processor that has no more than AVX2, for which a process of its own is told so."""
    if ours.isa() == "avx2":
        inference(compare, "conv-bf16-avx2", shape, channels_last, torch.bfloat16, target=5.0)
    else:
        for row in child.rows_with_avx2(request):
            keep(row, [row["ours_ms"] / 1e3])


@pytest.mark.parametrize(("shape", "name"), LENET, ids=["first", "second", "first-alone", "second-alone"])
def test_conv_pool(shape, name, compare, plan):
    image, weight, bias = shape.tensors(False)
    options = shape.options
    mine = ours.library().functional.conv2d_relu_max_pool2d

    def theirs() -> Tensor:
        return F.max_pool2d(F.relu(F.conv2d(image, weight, bias, **options)), 2)

    compiled = torch.compile(theirs, dynamic=False)
    ways = {"compiled": compiled, "eager": theirs}
    works = {"ours": lambda: mine(image, weight, bias, **options, pool_kernel_size=2)}
    with torch.inference_mode():
        works["torch.compile"] = ways[fastest(ways, plan)]
        out = works["ours"]()
        check_same(out, works["torch.compile"](), 1e-4)
    work = Work(8.0 * out.numel() * weight[0].numel(), image.nbytes + weight.nbytes + out.nbytes)
    compare("conv-pool", f"N{shape.batch} {name}", works, grad=False, work=work, why=WHY, target=1.3)
