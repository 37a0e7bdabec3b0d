"""Pooling of cuda/, glue and kernels unchanged, executed on the processor: against the processor's own kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pykernels import _native
from tests.functional.pool_cases import SPACE, Pool
from tests.functional.test_pool_tools import window_of
from tests.helpers import drawn

from .device import TOLERANCE, Device

CPU = _native.kernels
EVERY = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FEW = {
    **SPACE,
    "batch": (-1, 2),
    "channels": [1, 2, 3, 8, 16],
    "columns": [1, 2, 5, 9, 17, 20],
    "rows": (1, 6),
    "depth": (1, 3),
}


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape and found.stride() == expected.stride()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape and found.stride() == expected.stride()
    assert torch.equal(found.isfinite(), expected.isfinite())
    if expected.numel():
        difference = (found.double() - expected.double()).nan_to_num(0, 0, 0).abs().max()
        assert difference <= 2 * TOLERANCE[found.dtype] * (expected.double().nan_to_num(0, 0, 0).abs().max() + 1)


def check(device: Device, case: Pool, dtype: torch.dtype) -> None:
    device.configure(case.seed)
    x, window, gpu = case.input(dtype), window_of(case), device.kernels
    draw = torch.Generator().manual_seed(case.seed)
    if case.is_max:
        same(gpu.max_pool_forward(x, *window, False)[0], CPU.max_pool_forward(x, *window, False)[0])
        found, expected = gpu.max_pool_forward(x, *window, True), CPU.max_pool_forward(x, *window, True)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        y, places = expected
        grad = torch.randn(y.shape, generator=draw).to(dtype)
        args: Any = (grad, places, x.shape, *window)
        same(gpu.max_pool_backward(*args), CPU.max_pool_backward(*args))
        same(gpu.max_pool_gather(x, places, *window), CPU.max_pool_gather(x, places, *window))
        indices = gpu.max_pool_indices(places, x.shape, *window)
        same(indices, CPU.max_pool_indices(places, x.shape, *window))
        size = x.shape[x.dim() - case.dims :]
        same(gpu.max_unpool(y, indices, size), CPU.max_unpool(y, indices, size))
        return
    numbers = *window[:3], *window[4:], case.include and case.kind == "avg", case.divisor or 0
    y = CPU.avg_pool_forward(x, *numbers)
    near(gpu.avg_pool_forward(x, *numbers), y)
    grad = torch.randn(y.shape, generator=draw).to(dtype)
    args = (grad, x.shape, case.channels_last, *numbers)
    near(gpu.avg_pool_backward(*args), CPU.avg_pool_backward(*args))


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@drawn(40, of=Pool, **FEW)
def test_gives_what_the_processor_gives(device, dtype, case):
    check(device, case, dtype)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_chosen_calls(device, dtype):
    """Packs of channels and single ones, places beyond a byte, whole planes, nothing."""
    usual = {"kernel": (1, 3, 3), "stride": (1, 2, 2), "padding": 1}
    for case in (
        Pool("max", 2, 1, 16, 1, 9, 11, **usual, channels_last=True, values="missing"),
        Pool("max", 2, 1, 17, 1, 9, 11, **usual, channels_last=True, values="few"),
        Pool("avg", 2, 1, 16, 1, 9, 11, **usual, channels_last=True),
        Pool("max", 2, 1, 2, 1, 20, 22, (1, 17, 17), (1, 2, 1), 3, values="few"),
        Pool("max", 2, 1, 8, 1, 20, 22, (1, 17, 17), (1, 2, 1), 3, channels_last=True),
        Pool("adaptive_avg", 2, 4, 8, 1, 7, 9, output=(1, 1, 1)),
        Pool("adaptive_max", 2, 4, 8, 1, 7, 9, output=(1, 1, 1), channels_last=True),
        Pool("max", 2, 0, 3, 1, 8, 8),
        Pool("max", 3, 1, 3, 4, 5, 6, (2, 2, 2), (1, 1, 1), 1, (1, 2, 1)),
    ):
        check(device, case, dtype)


def test_an_index_outside_is_an_error(device):
    for bad in (-1, 64):
        with pytest.raises(RuntimeError, match="inside planes of 64 elements"):
            device.kernels.max_unpool(torch.ones(1, 2, 2), torch.full((1, 2, 2), bad), [8, 8])
