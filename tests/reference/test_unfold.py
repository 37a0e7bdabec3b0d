"""The twins of unfold and fold against PyTorch's."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from pykernels import reference as twins
from tests.helpers import outcome

GRID = list(itertools.product((1, (2, 3)), (1, (1, 2)), (0, (2, 1)), (1, (3, 2))))  # kernel, dilation, padding, stride


@pytest.mark.parametrize("given", GRID, ids=str)
def test_against_torch(device, given):
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, device=device)
    expected = F.unfold(x, *given)
    assert torch.equal(twins.unfold(x, *given), expected)
    assert torch.equal(twins.unfold(x[0], *given), expected[0])
    y = torch.randn_like(expected)
    torch.testing.assert_close(twins.fold(y, (8, 9), *given), F.fold(y, (8, 9), *given))
    torch.testing.assert_close(twins.fold(y[1], (8, 9), *given), F.fold(y[1], (8, 9), *given))


def test_derivatives(device):
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.randn(1, 8, 12, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: twins.unfold(x, 2, 1, 1, (2, 1)), x, check_forward_ad=True)
    assert gradgradcheck(lambda x: twins.unfold(x, 2).sin(), x)
    assert gradcheck(lambda y: twins.fold(y, (4, 5), 2), y, check_forward_ad=True)
    assert gradgradcheck(lambda y: twins.fold(y, (4, 5), 2).sin(), y)


X, Y = torch.randn(2, 4, 8, 8), torch.randn(2, 36, 36)
WRONG = [
    {"kernel_size": 0}, {"kernel_size": (3,)}, {"stride": 0}, {"stride": (1, 1, 1)}, {"padding": -1}, {"dilation": 0},
    {"dilation": ()}, {"input": X[:, :0]}, {"input": X[None]}, {"kernel_size": 9}, {"dilation": (1, 4)},
]  # fmt: skip
WRONG_FOLDS = [
    *WRONG[:7], {"input": Y[:, :0]}, {"input": Y[None]}, {"input": Y[:, :35]}, {"input": Y[:, :, :35]},
    {"kernel_size": 4}, {"output_size": 7}, {"output_size": (8,)}, {"output_size": -1}, {"output_size": 0},
]  # fmt: skip


def label(given: dict) -> str:
    return ", ".join(f"{name} {list(v.shape) if isinstance(v, torch.Tensor) else v}" for name, v in given.items())


@pytest.mark.parametrize("wrong", WRONG, ids=label)
def test_errors_of_unfold(wrong):
    given = {"input": X, "kernel_size": 3, **wrong}
    expected = outcome(lambda: F.unfold(**given))
    assert outcome(lambda: twins.unfold(**given)) == expected is not None


@pytest.mark.parametrize("wrong", WRONG_FOLDS, ids=label)
def test_errors_of_fold(wrong):
    given = {"input": Y, "output_size": 8, "kernel_size": 3, **wrong}
    expected = outcome(lambda: F.fold(**given))
    assert outcome(lambda: twins.fold(**given)) == expected is not None
