"""Rows of pooling against torch's: contiguous and channels last, inference and the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import ours
from bench.layers import backward_of, check_same
from bench.limits import Work

SHAPES = [(1, 6, 24, 24), (32, 64, 28, 28), (8, 64, 112, 112), (1, 1, 2048, 2048)]
CALLS: dict[str, tuple[str, dict[str, Any], float, float]] = {
    # what is called, and how many times torch's speed is wanted, in inference and in training
    "max 2": ("max_pool2d", {"kernel_size": 2}, 8.0, 2.0),
    "max 3 stride 2": ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, 5.0, 2.0),
    "max 3 stride 1": ("max_pool2d", {"kernel_size": 3, "stride": 1, "padding": 1}, 5.0, 2.0),
    "mean 2": ("avg_pool2d", {"kernel_size": 2}, 1.0, 1.0),
    "mean of the plane": ("adaptive_avg_pool2d", {"output_size": 1}, 1.0, 1.0),
}
WHY = {
    "pool": "a call's own cost where there is little; memory where there is much: torch looks at one element at a time",
    "pool-channels-last": "torch's is vectors of channels too",
    "pool-training": "a byte a window is kept for the backward, where torch keeps eight",
    "pool-channels-last-training": "the same",
}

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
calls = pytest.mark.parametrize("name", CALLS)


def run(section: str, shape: tuple[int, ...], name: str, training: bool, channels_last: bool, compare: Any) -> None:
    function, options, inference_target, training_target = CALLS[name]
    target = training_target if training else 1.0 if channels_last else inference_target
    torch.manual_seed(sum(shape))
    x = torch.randn(shape)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(training)
    mine, theirs = (getattr(where, function) for where in (ours.library().functional, F))
    works: dict[str, Callable[[], Tensor]] = {"ours": lambda: mine(x, **options), "torch": lambda: theirs(x, **options)}
    y = works["ours"]()
    check_same(y, works["torch"]())
    moved = x.nbytes + y.nbytes
    label = "{} {}x{}x{}x{}".format(name, *shape)
    if not training:
        compare(section, label, works, grad=False, work=Work(0.0, moved), target=target, why=WHY)
        return
    grad = torch.randn_like(y)
    steps = {who: backward_of(call, x, grad) for who, call in works.items()}
    places = 2 * y.numel() if function.startswith("max") else 0
    compare(section, label, steps, grad=True, work=Work(0.0, 2 * moved + places), target=target, why=WHY)


@shapes
@calls
def test_pool(name, shape, compare):
    run("pool", shape, name, False, False, compare)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@calls
def test_pool_channels_last(name, shape, compare):
    run("pool-channels-last", shape, name, False, True, compare)


@shapes
@calls
def test_pool_training(name, shape, compare):
    run("pool-training", shape, name, True, False, compare)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@calls
def test_pool_channels_last_training(name, shape, compare):
    run("pool-channels-last-training", shape, name, True, True, compare)
