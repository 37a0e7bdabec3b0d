"""Hopfield networks of cuda/, glue and kernels unchanged, executed on the processor: the twins' bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pykernels import reference
from tests.functional.hopfield_cases import SPACE, Net
from tests.helpers import drawn

from .device import Device

EVERY = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", EVERY, ids=str)


def same(found, expected) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def check(device: Device, case: Net, dtype: torch.dtype) -> None:
    device.configure(case.seed)
    weight, state, orders = case.weight(dtype), case.state(dtype), case.orders()
    expected = reference.hopfield_retrieve(weight, state, case.mode, **orders, max_sweeps=case.most)
    kept = state.clone()
    for symmetric in {False, case.kind != "any"}:
        found = device.kernels.hopfield_retrieve(
            weight, state, *orders.values(), case.most, case.mode == "sync", symmetric
        )
        assert same(found, expected)
    if case.kind == "stored":
        bits = reference.pack_signs(case.stored())
        found = device.kernels.hopfield_packed_retrieve(bits, state, *orders.values(), case.most, case.mode == "sync")
        assert same(found, expected)
    assert torch.equal(state, kept)


@every_dtype
@drawn(25, of=Net, **SPACE)
def test_is_the_twin(device, dtype, case):
    check(device, case, dtype)


@every_dtype
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_many_units(device, dtype, mode):
    """More than the threads of a block, and than the rows and units of a tile."""
    for case in (Net(300, 3, 4, most=3), Net(40, 70, 5, most=3), Net(30, 2, 70, most=5), Net(130, 4, 0, kind="any")):
        check(device, dataclasses.replace(case, mode=mode), dtype)


def test_ties_and_not_a_numbers(device):
    device.configure(1)
    state = torch.randn(3, 40).sign()
    for weight in (torch.zeros(40, 40), torch.full((40, 40), torch.nan)):
        for sync in (True, False):
            found = device.kernels.hopfield_retrieve(
                weight, state, None, None if sync else torch.tensor([3]), 4, sync, False
            )
            assert torch.equal(found[0], state) and found[1].tolist() == found[2].tolist() == [1, 1, 1]


def test_what_is_wrong_is_refused(device):
    device.configure(0)
    weight, state = torch.zeros(8, 8), torch.ones(2, 8)
    with pytest.raises(RuntimeError, match="expected order to name units, 0 to 7, got 8"):
        device.kernels.hopfield_retrieve(weight, state, torch.arange(8) + 1, None, 1, False, False)
    with pytest.raises(RuntimeError, match="expected a weight of shape"):
        device.kernels.hopfield_retrieve(weight[:7], state, None, None, 1, True, False)
    with pytest.raises(RuntimeError, match="expected packed patterns of int64"):
        device.kernels.hopfield_packed_retrieve(torch.zeros(3, 2, dtype=torch.int64), state, None, None, 1, True)
