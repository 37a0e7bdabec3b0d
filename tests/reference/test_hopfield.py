"""The twins of Hopfield networks against sums written out, and the rules against their definitions."""

from __future__ import annotations

import itertools

import pytest
import torch

from pykernels import reference
from pykernels.reference.hopfield import drawn_order


def patterns(count: int, units: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, units), generator=draw).double() * 2 - 1


def test_drawn_orders_are_permutations():
    seen = set()
    for sweep, key in itertools.product(range(3), (0, 5, 2**63 - 1)):
        order = drawn_order(torch.tensor([key]), sweep, 37)
        assert order.sort().values.tolist() == list(range(37))
        seen.add(tuple(order.tolist()))
    assert len(seen) == 9
    assert drawn_order(torch.tensor([1]), 0, 0).tolist() == [] and drawn_order(torch.tensor([1]), 0, 1).tolist() == [0]


def test_drawn_orders_are_uniform():
    """All 24 orders of four units, about as often as each other."""
    counts: dict[tuple[int, ...], int] = {}
    for key in range(2400):
        order = tuple(drawn_order(torch.tensor([key]), 0, 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24 and min(counts.values()) > 60 and max(counts.values()) < 145


def test_hebbian_weight_is_its_sum():
    f = patterns(3, 5)
    weight = reference.hebbian_weight(f)
    for i, j in itertools.product(range(5), range(5)):
        expected = 0 if i == j else sum(float(f[k, i] * f[k, j]) for k in range(3)) / 3
        assert weight[i, j] == pytest.approx(expected)


def test_storkey_weight_is_its_sum():
    f, n = patterns(4, 6), 6
    weight = torch.zeros(n, n, dtype=torch.float64)
    for p in f:
        before = weight.clone()
        for i, j in itertools.product(range(n), range(n)):
            if i == j:
                continue
            h_ij = sum(float(before[i, k] * p[k]) for k in range(n) if k not in (i, j))
            h_ji = sum(float(before[j, k] * p[k]) for k in range(n) if k not in (i, j))
            weight[i, j] += float(p[i] * p[j] - p[i] * h_ji - h_ij * p[j]) / n
    torch.testing.assert_close(reference.storkey_weight(f), weight)


def test_pseudo_inverse_weight_projects():
    f = patterns(7, 20)
    weight = reference.pseudo_inverse_weight(f)
    own = (torch.linalg.pinv(f) @ f).diagonal()
    torch.testing.assert_close(f @ weight.T, f * (1 - own))  # each pattern is stable
    torch.testing.assert_close(weight, weight.T)


@pytest.mark.parametrize("units", [1, 63, 64, 65, 200])
def test_packing_and_back(units):
    f = patterns(5, units)
    packed = reference.pack_signs(f)
    assert packed.shape == (5, -(-units // 64)) and packed.dtype == torch.int64
    assert torch.equal(reference.unpack_signs(packed, units, torch.float64), f)
    for k, i in itertools.product(range(5), range(units)):
        assert (int(packed[k, i // 64]) >> (i % 64) & 1) == (f[k, i] > 0)


def test_units_in_order_see_what_changed():
    """Three units, each of which copies the one before it: in order the first state runs through, at once it moves by
    one, and there are two-cycles at once that are none in order."""
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    state = torch.tensor([[1.0, -1.0, -1.0]])
    order = torch.arange(3)
    assert reference.hopfield_update(weight, state, order=order).tolist() == [[1, 1, 1]]
    assert reference.hopfield_update(weight, state, order=order.flip(0)).tolist() == [[1, 1, -1]]
    assert reference.hopfield_update(weight, state, "sync").tolist() == [[1, 1, -1]]
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    out, sweeps, period = reference.hopfield_retrieve(swap, torch.tensor([[1.0, -1.0]]), "sync")
    assert (out.tolist(), sweeps.tolist(), period.tolist()) == ([[1, -1]], [2], [2])
    out, sweeps, period = reference.hopfield_retrieve(swap, torch.tensor([[1.0, -1.0]]), order=torch.arange(2))
    assert (out.tolist(), sweeps.tolist(), period.tolist()) == ([[-1, -1]], [2], [1])


def test_zero_fields_and_not_a_numbers_change_nothing():
    state = torch.tensor([[1.0, -1.0, 1.0]])
    for weight in (torch.zeros(3, 3), torch.full((3, 3), torch.nan)):
        for mode in ("async", "sync"):
            out, _, period = reference.hopfield_retrieve(weight, state, mode, seed=torch.tensor([0]))
            assert torch.equal(out, state) and period.tolist() == [1]


def test_packed_is_dense():
    f = patterns(5, 70)
    state = patterns(6, 70, 1)
    seed = torch.tensor([4])
    weight = reference.hebbian_weight(f) * 5
    for mode in ("async", "sync"):
        dense = reference.hopfield_retrieve(weight, state, mode, seed=seed)
        packed = reference.hopfield_packed_retrieve(reference.pack_signs(f), state, mode, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(dense, packed, strict=True))
