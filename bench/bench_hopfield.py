"""Rows of Hopfield networks: a sweep at once and one in order against torch, and retrieval from bits against ours from
the weight."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import ours
from bench.layers import check_same
from bench.limits import Work

NOISE = 0.2  # share of units that a state has wrong
WHY = {
    "hopfield-sync": "four weights have sixteen sums with signs: a row looks one up where torch multiplies four",
    "hopfield-async": "fields follow the flips: a row changes them as often as a unit flips, not as there are units",
    "hopfield-packed": "whole numbers of the overlaps with the patterns instead of the weight",
}

shapes = pytest.mark.parametrize("units,rows", [(784, 64), (2000, 256)], ids=lambda n: str(n))
in_order = pytest.mark.parametrize("units,rows", [(2000, 16), (2000, 256)], ids=lambda n: str(n))


def stored(units: int, count: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patterns, M times the weight of Hebb's rule, and states near patterns."""
    torch.manual_seed(units + rows)
    f = torch.randint(0, 2, (count, units)).float() * 2 - 1
    state = f[torch.arange(rows) % count] * torch.where(torch.rand(rows, units) < NOISE, -1.0, 1.0)
    return f, (f.T @ f).fill_diagonal_(0), state


def torch_at_once(weight: Tensor, state: Tensor) -> Tensor:
    field = state @ weight.T
    return torch.where(field == 0, state, field.sign())


def torch_in_order(weight: Tensor, state: Tensor, order: list[int]) -> Tensor:
    state = state.clone()
    for unit in order:
        field = state @ weight[unit]
        state[:, unit] = torch.where(field == 0, state[:, unit], field.sign())
    return state


def package(weight: Tensor, state: Tensor) -> Callable[[], object] | None:
    """hopfieldnetwork from PyPI, row by row, if it is installed: a permutation of its own each time, as it has no other
    way."""
    try:
        network = importlib.import_module("hopfieldnetwork").HopfieldNetwork(N=len(weight))
    except ImportError:
        return None
    network.w, rows = weight.double().numpy(), state.to(torch.int64).numpy()

    def run() -> Any:
        for row in rows:
            network.S = np.copy(row)
            network.update_neurons(1, "async")

    return run


@shapes
def test_hopfield_sync(units, rows, compare):
    _, weight, state = stored(units, units // 12, rows)
    update = ours.library().functional.hopfield_update
    works = {"ours": lambda: update(weight, state, "sync"), "torch": lambda: torch_at_once(weight, state)}
    check_same(works["ours"](), works["torch"]())
    work = Work(2.0 * rows * units * units, weight.nbytes + 2 * state.nbytes)
    compare("hopfield-sync", f"N{units} B{rows}", works, grad=False, work=work, target=1.6, why=WHY)


@in_order
def test_hopfield_async(units, rows, compare):
    _, weight, state = stored(units, units // 12, rows)
    order = torch.randperm(units)
    turns = order.tolist()
    update = ours.library().functional.hopfield_update
    works = {
        "ours": lambda: update(weight, state, order=order),
        "torch": lambda: torch_in_order(weight, state, turns),
    }
    check_same(works["ours"](), works["torch"]())
    peer = package(weight, state) if rows <= 16 else None
    works |= {"hopfieldnetwork": peer} if peer else {}
    work = Work(2.0 * rows * units * units * (1 + NOISE), weight.nbytes + 2 * state.nbytes)
    about: dict[str, Any] = {"work": work, "target": 5.0, "why": WHY, "against": "torch"}
    compare("hopfield-async", f"N{units} B{rows}", works, grad=False, **about)


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("rows", [1, 64])
def test_hopfield_packed(rows, mode, compare):
    units, count = 4096, 100
    f, weight, state = stored(units, count, rows)
    library = ours.library()
    bits = library.reference.pack_signs(f)
    order = None if mode == "sync" else torch.randperm(units)
    dense, packed = library.functional.hopfield_retrieve, library.functional.hopfield_packed_retrieve
    works = {
        "ours": lambda: packed(bits, state, mode, order).state,
        "dense": lambda: dense(weight, state, mode, order, symmetric=True).state,
    }
    check_same(works["ours"](), works["dense"]())
    work = Work(2.0 * rows * units * count, 2 * bits.nbytes + 2 * state.nbytes)
    label = f"N{units} M{count} B{rows} {mode}"
    compare("hopfield-packed", label, works, grad=False, work=work, target=4.0, why=WHY)
