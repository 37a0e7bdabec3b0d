"""Convolution, ReLU and max-pooling at once of cuda/, glue and kernels unchanged, executed on the processor."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from tests.helpers import FLAG, SEED, assert_same_bits, drawn

from . import convs
from .convs import Call, assert_right, drawn_call
from .device import Device

EVERY = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", EVERY, ids=str)
MODES = ["reflect", "replicate", "circular"]
# Multiprocessors: with few of them a block has many rows of windows.
FEW, MANY = 1, 256
FEATURES = {
    "batch": [0, 1, 2, 3],
    "groups": [1, 1, 2, 3],
    "inputs": [1, 2, 3, 6],
    "outputs": [1, 3, 4, 6, 16, 19],
    "mode": ["zeros", "zeros", *MODES],
    "bias": FLAG,
    "channels_last": [False, False, False, True],
    "seed": SEED,
}
Ints = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Windows:
    kernel: Ints = (2, 2)
    stride: Ints = (2, 2)
    padding: Ints = (0, 0)
    dilation: Ints = (1, 1)
    ceil_mode: bool = False

    @property
    def numbers(self) -> list[Any]:
        return [self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode]


def drawn_windows(call: Call) -> Windows:
    """Of what the convolution gives."""
    draw = random.Random(call.seed)
    kernels, strides, paddings, dilations = [], [], [], []
    for size in call.output_size()[2:]:
        kernel, dilation = draw.randint(1, 4), draw.choice([1, 1, 2])
        padding = draw.randint(0, kernel // 2)
        while dilation * (kernel - 1) + 1 > size + 2 * padding:
            kernel -= 1
            padding = min(padding, kernel // 2)
        kernels.append(kernel)
        strides.append(draw.choice([1, 2, 2, 3]))
        paddings.append(padding)
        dilations.append(dilation)
    each = [(first, second) for first, second in (kernels, strides, paddings, dilations)]
    return Windows(*each, draw.random() < 0.3)


def run(device: Device, call: Call, windows: Windows, given: dict[str, Tensor]) -> Tensor:
    bias = given["bias"] if call.bias else None
    return device.kernels.conv_relu_max_pool(given["input"], given["weight"], bias, *call.options, *windows.numbers)


def truth(call: Call, windows: Windows, given: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """In float64, of what the dtype stores."""
    out = convs.truth(dataclasses.replace(call, relu=True), dtype, given)["out"]
    kernel, stride, padding, dilation, ceil_mode = windows.numbers
    return F.max_pool2d(out, kernel, stride, padding, dilation, ceil_mode)


def check(
    device: Device, call: Call, windows: Windows, dtype: torch.dtype, given: dict[str, Tensor] | None = None
) -> None:
    given = given or call.tensors(dtype)
    expected, found = truth(call, windows, given, dtype), []
    for multiprocessors in (FEW, MANY):
        device.configure(call.seed, resident_blocks=multiprocessors)
        found.append(run(device, call, windows, given))
        assert_right({"out": found[-1]}, {"out": expected}, dtype)
        last = torch.channels_last in [suggest_memory_format(given[name]) for name in ("input", "weight")]
        assert found[-1].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert_same_bits({"out": found[0]}, {"out": found[1]})


@every_dtype
@drawn(60, of=functools.partial(drawn_call, 2, 14), **FEATURES)
def test_equals_torch(device, dtype, case):
    check(device, case, drawn_windows(case), dtype)


@every_dtype
@pytest.mark.parametrize(
    ("call", "windows"),
    [
        (Call((28, 28), (5, 5), inputs=1, outputs=6), Windows()),
        (Call((28, 28), (3, 3), inputs=1, outputs=32, batch=1, padding=(1, 1, 1, 1)), Windows()),
        (Call((12, 12), (5, 5), inputs=6, outputs=16, batch=3), Windows()),
        (Call((30, 27), (5, 4), (2, 3), inputs=3, outputs=21), Windows((3, 3), (2, 2), (1, 1), ceil_mode=True)),
        (Call((9, 200), (3, 3), inputs=8, outputs=20, batch=1), Windows((3, 3), (1, 2))),
        (Call((11, 8), (3, 3), inputs=2, outputs=5), Windows((2, 6), (3, 1))),
        (Call((8, 8), (3, 3), inputs=2, outputs=5), Windows((6, 6), (1, 1))),
    ],
    ids=["LeNet", "LeNet 32", "LeNet second", "strided", "wide", "whole rows", "whole images"],
)
def test_chosen_calls(device, dtype, call, windows):
    """Several tiles of filters and of windows, whole and not; fewer filters where there is little room."""
    check(device, call, windows, dtype)


@every_dtype
@pytest.mark.parametrize(
    ("call", "one"),
    [
        (Call((9, 9), inputs=29, outputs=5), False),
        (Call((9, 9), inputs=28, outputs=5), True),
        (Call((9, 9), groups=6, inputs=1, outputs=1), False),
        (Call((5, 600), (3, 3), inputs=9, outputs=4), False),
        (Call((9, 9), inputs=4, outputs=4, channels_last=True), False),
        (Call((9, 9), batch=0), False),
    ],
    ids=["long filters", "less long ones", "depthwise", "too wide", "channels last", "no images"],
)
def test_what_has_no_kernel_goes_through_two(device, dtype, call, one):
    device.launches()
    check(device, call, Windows(), dtype)
    assert (device.launches() == 2) == one  # for two numbers of multiprocessors


@every_dtype
def test_it_gives_what_two_kernels_give_where_every_sum_is_exact(device, dtype):
    device.configure(0)
    call = Call((11, 12), (3, 2), padding=(1, 0, 0, 1), inputs=3, outputs=7)
    given = {name: tensor.clamp(-2, 2).round() for name, tensor in call.tensors(dtype).items()}
    apart = device.kernels.conv_forward(given["input"], given["weight"], given["bias"], *call.options, "relu")
    apart = device.kernels.max_pool_forward(apart, *Windows().numbers, [], False)[0]
    device.launches()
    assert torch.equal(run(device, call, Windows(), given), apart)
    assert device.launches() == 1


@every_dtype
def test_no_channels(device, dtype):
    call = Call((6, 5), inputs=0)
    given = call.tensors(dtype)
    device.configure(0)
    assert torch.equal(run(device, call, Windows(), given), given["bias"].relu()[:, None, None].expand(2, 4, 2, 1))


@every_dtype
def test_what_is_not_a_number(device, dtype):
    """It is in every window that it is in, whatever else is there."""
    call, windows = Call((9, 9), padding=(1, 1, 1, 1), outputs=6), Windows((3, 3), (2, 2), (1, 1))
    for name, at in (("input", (1, 2, 4, 4)), ("weight", (5, 0, 1, 1)), ("bias", (2,))):
        for value in (torch.nan, torch.inf, -torch.inf):
            given = call.tensors(dtype)
            given[name][at] = value
            expected = truth(call, windows, given, dtype)
            device.configure(0)
            found = run(device, call, windows, given)
            assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())
    given = {name: torch.full_like(tensor, -1) for name, tensor in call.tensors(dtype).items()}
    given["input"] = given["input"].abs()
    assert not run(device, call, windows, given).any()


@every_dtype
def test_windows_of_padding_alone_are_the_least(device, dtype):
    """Rows of them before, between and after others."""
    call = Call((1, 9), (1, 3), inputs=2)
    check(device, call, Windows((2, 2), (1, 1), (1, 1), (2, 1)), dtype)


@every_dtype
def test_strides_are_free(device, dtype):
    call = Call((9, 10), padding=(1, 1, 0, 1))
    given = call.tensors(dtype)
    device.configure(0)
    dense = run(device, call, Windows(), given)
    spread = {name: torch.stack([t, t * torch.nan], -1)[..., 0] for name, t in given.items()}
    moved = {name: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape) for name, t in given.items()}
    for other in (spread, moved):
        assert torch.equal(run(device, call, Windows(), other), dense)
