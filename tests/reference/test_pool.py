"""The twins of pooling against torch: values, places and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pykernels import reference
from tests.functional.pool_cases import SPACE, Pool, call, run, same_values, torch_has_no_place
from tests.helpers import assert_equal, drawn


@drawn(150, of=Pool, **SPACE)
def test_equals_torch(case):
    x = case.input()
    if case.is_max:
        twin, theirs = (call(where, case, x, indices=True) for where in (reference, F))
        same_values(twin["y"], theirs["y"])
        assert torch_has_no_place(case) or torch.equal(twin["indices"], theirs["indices"])
    if case.values != "missing" and not torch_has_no_place(case):
        assert_equal(run(reference, case, torch.float64), run(F, case, torch.float64), 1e-13)


def test_windows_of_nothing_are_minus_infinity_and_have_no_gradient():
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    y, indices = reference.max_pool2d(x, 2, 2, 1, 2, return_indices=True)
    assert y.item() == -torch.inf and indices.item() == 0
    assert torch.autograd.grad(y, x)[0].item() == 0


def test_by_hand():
    x = torch.tensor([[[1.0, 3, 2], [4, 0, 5], [6, 6, 1]]])
    y, indices = reference.max_pool2d(x, 2, 1, return_indices=True)
    assert y.tolist() == [[[4, 5], [6, 6]]] and indices.tolist() == [[[3, 5], [6, 7]]]
    assert reference.avg_pool2d(x, 2, 1).tolist() == [[[2, 2.5], [4, 3]]]
    assert reference.adaptive_avg_pool2d(x, 1).item() == pytest.approx(28 / 9)
    nan, inf = float("nan"), float("inf")
    y, indices = reference.max_pool1d(torch.tensor([[nan, 2, nan, -inf, -inf, -inf]]), 3, return_indices=True)
    assert torch.isnan(y[0, 0]) and y[0, 1] == -inf and indices.tolist() == [[2, 3]]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("output", [None, 9])
def test_max_unpool(dims, output):
    x = torch.randn(2, 3, *[output or 8] * dims, dtype=torch.float64)
    pooled, indices = getattr(F, f"max_pool{dims}d")(x, 2, return_indices=True)
    leaves = [pooled.detach().requires_grad_() for _ in range(2)]
    size = None if output is None else [output] * dims
    found = [
        getattr(where, f"max_unpool{dims}d")(leaf, indices, 2, output_size=size)
        for where, leaf in zip((reference, F), leaves, strict=True)
    ]
    gradients = [torch.autograd.grad(y.square().sum(), leaf)[0] for y, leaf in zip(found, leaves, strict=True)]
    assert torch.equal(*found) and torch.equal(*gradients)
