"""The twin of the convolutions against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from pykernels import functional, reference
from pykernels.reference.conv_arguments import numbers
from tests.functional.conv_cases import SPACE, Conv, run
from tests.helpers import assert_equal, drawn


@drawn(60, of=Conv, **SPACE)
def test_against_torch(device, case):
    if case.mode == "zeros" or case.batch:  # (torch does not pad every batch of nothing)
        assert_equal(*(run(where, case, torch.float64, device) for where in (reference, F)), 1e-11)


def test_by_hand(device):
    """Two taps two pixels apart, every third place, the border repeated: y_o = 10 x_{3o - 1} + x_{3o + 1} + 5."""
    x = torch.tensor([[1.0, 2, 3, 4, 5]], device=device)
    w, b = torch.tensor([[[10.0, 1.0]]], device=device), torch.tensor([5.0], device=device)
    y = reference.conv1d(x, w, b, stride=3, padding=((1, 0),), dilation=2, padding_mode="replicate")
    assert y.tolist() == [[10 * 1 + 2 + 5, 10 * 3 + 5 + 5]]
    y = reference.conv1d(x, -w, b, stride=3, padding=((1, 0),), dilation=2, padding_mode="circular", activation="relu")
    assert y.tolist() == [[0, 0]]
    y = reference.conv1d(x, w, b, stride=2, padding=2, padding_mode="reflect")
    assert y.tolist() == [[10 * 3 + 2 + 5, 10 * 1 + 2 + 5, 10 * 3 + 4 + 5, 10 * 5 + 4 + 5]]


@pytest.mark.parametrize(
    "padding, expected",
    [
        (1, (1, 1, 1, 1)), ([1, 2], (1, 1, 2, 2)), ([(1, 2), (3, 4)], (1, 2, 3, 4)), ((0, (1, 2)), (0, 0, 1, 2)),
        ("valid", (0, 0, 0, 0)), ("full", (4, 4, 3, 3)), ("same", (2, 2, 1, 2)), ([(1, 0)], (1, 0, 1, 0)),
    ],
)  # fmt: skip
def test_padding_in_numbers(padding, expected):
    assert numbers(2, (3, 4), 1, padding, (2, 1)) == ((1, 1), expected, (2, 1))


def test_derivatives(device):
    case = Conv(1, 2, 2, 1, 2, 2, 2, 2, padding="pairs", mode="circular")
    leaves = case.tensors(device=device)

    def function(*values):
        return reference.conv2d(*values, **case.options)

    assert gradcheck(function, tuple(leaves.values()), check_forward_ad=True)
    assert gradgradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_are_float32_for_low_precision(device, dtype):
    x, w = torch.rand(1, 400, 3, 3, device=device).to(dtype), torch.rand(2, 400, 3, 3, device=device).to(dtype)
    y = reference.conv2d(x, w)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), F.conv2d(x.double(), w.double()), rtol=torch.finfo(dtype).eps * 4, atol=0)


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not func.name().startswith("pykernels"), func
        return func(*args, **(kwargs or {}))


def test_the_twin_is_pytorch_alone(device):
    """No operator of ours runs in it."""
    x, w = torch.randn(1, 2, 5, 5, device=device, requires_grad=True), torch.randn(3, 2, 2, 2, device=device)
    options = {"padding": "full", "padding_mode": "reflect", "activation": "relu"}
    with Watch():
        y = reference.conv2d(x, w, **options)
        y.sum().backward()
    with pytest.raises(AssertionError), Watch():
        functional.conv2d(x, w, **options)
