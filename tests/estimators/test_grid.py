"""The grid of a map: places, neighbours, and how values spread, against all pairs of units written out."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

pytest.importorskip("sklearn")

from pykernels.estimators import _grid
from pykernels.estimators._grid import NEIGHBOURHOODS, TOPOLOGIES, Grid, Neighbourhood
from pykernels.estimators._som_training import Schedule

HEIGHT = math.sqrt(3) / 2
SHAPES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 7), (7, 1), (3, 3), (4, 5), (6, 4), (2, 9), (5, 5)]
GRIDS = [
    (*shape, topology, toroidal)
    for shape, topology, toroidal in itertools.product(SHAPES, TOPOLOGIES, (False, True))
    if not (topology == "hexagonal" and toroidal and shape[0] % 2)
]
every_grid = pytest.mark.parametrize("given", GRIDS, ids=lambda g: f"{g[0]}x{g[1]} {g[2]}{' torus' if g[3] else ''}")


def place(given: tuple, unit: int) -> tuple[float, float]:
    _, columns, topology, _ = given
    if topology == "linear":
        return 0.0, float(unit)
    row, column = divmod(unit, columns)
    return (row * HEIGHT, column + 0.5 * (row % 2)) if topology == "hexagonal" else (float(row), float(column))


def squares(given: tuple) -> torch.Tensor:
    """Squared distances between all units [K, K]; on a torus the shortest of the ways around it."""
    rows, columns, topology, toroidal = given
    if topology == "linear":
        height, width = 1.0, float(rows * columns)
    else:
        height, width = rows * (HEIGHT if topology == "hexagonal" else 1.0), float(columns)
    turns = list(itertools.product((-1, 0, 1), repeat=2)) if toroidal else [(0, 0)]
    places = [place(given, unit) for unit in range(rows * columns)]
    table = [
        [min((a[0] - b[0] + r * height) ** 2 + (a[1] - b[1] + c * width) ** 2 for r, c in turns) for b in places]
        for a in places
    ]
    return torch.tensor(table, dtype=torch.float64)


@every_grid
def test_places_and_distances(given):
    grid = Grid(*given)
    size = given[0] * given[1]
    assert grid.size == size and grid.coordinates.shape == (size, 2) and grid.coordinates.dtype == torch.float64
    torch.testing.assert_close(
        grid.coordinates, torch.tensor([place(given, u) for u in range(size)], dtype=torch.float64)
    )
    unit = torch.arange(size)
    torch.testing.assert_close(grid.squared_distances(unit[:, None], unit), squares(given))
    assert grid.periods == (grid.lengths if given[3] else (0.0, 0.0))


@every_grid
def test_neighbours_are_the_units_next_to_each(given):
    """At most 1 apart, in a rectangle at a corner too."""
    grid = Grid(*given)
    apart = squares(given)
    near = (apart > 0) & (apart < (2.1 if given[2] == "rectangular" else 1.1))
    unit = torch.arange(grid.size)
    assert torch.equal(grid.are_neighbours(unit[:, None], unit), near)
    pairs = set(zip(*(t.tolist() for t in grid.neighbours()), strict=True))
    assert pairs == {tuple(pair) for pair in near.nonzero().tolist()}
    assert len(pairs) == len(grid.neighbours()[0])  # each once


@pytest.mark.parametrize(
    "topology, toroidal, expected",
    [
        ("rectangular", False, {3: 4, 5: 16, 8: 16}),
        ("rectangular", True, {8: 36}),
        ("hexagonal", True, {6: 36}),
        ("linear", False, {1: 2, 2: 34}),
        ("linear", True, {2: 36}),
    ],
)
def test_how_many_neighbours_there_are(topology, toroidal, expected):
    units, _ = Grid(6, 6, topology, toroidal).neighbours()
    counts = Counter(Counter(units.tolist()).values())
    assert counts == expected


def test_six_neighbours_of_a_hexagon_at_the_same_distance():
    grid = Grid(7, 7, "hexagonal", False)
    units, others = grid.neighbours()
    torch.testing.assert_close(grid.squared_distances(units, others), torch.ones(len(units), dtype=torch.float64))
    counts = torch.bincount(units).reshape(7, 7)
    assert (counts[1:-1, 1:-1] == 6).all()
    assert (
        counts.min() == 2 and counts[0, 0] == 2 and counts[0, -1] == 3
    )  # (a corner that stands back, and one that not)


# -- neighbourhoods ---------------------------------------------------------------------------------------------------
def share(given: tuple, kind: str, sigma: float) -> torch.Tensor:
    apart = squares(given)
    if kind == "bubble":
        return (apart.sqrt() <= sigma + 1e-9).double()
    bell = torch.exp(-apart / (2 * sigma**2))
    if kind == "gaussian":
        return bell
    places = [place(given, unit) for unit in range(given[0] * given[1])]
    chain = len({p[0] for p in places}) == 1 or len({p[1] for p in places}) == 1
    return (1 - apart / ((1 if chain else 2) * sigma**2)) * bell


@every_grid
@pytest.mark.parametrize("kind", NEIGHBOURHOODS)
def test_values_spread_as_by_all_pairs(given, kind):
    neighbourhood = Neighbourhood(Grid(*given), kind)
    size = given[0] * given[1]
    for sigma, shape in ((0.3, (size,)), (1.0, (size, 1)), (2.5, (size, 3))):
        matrix, values = share(given, kind, sigma), torch.rand(shape, dtype=torch.float64)
        expected = (matrix @ values.reshape(size, -1)).reshape(shape)
        torch.testing.assert_close(neighbourhood.spread(values, sigma), expected)
        expected = (matrix.abs() @ values.reshape(size, -1)).reshape(shape)
        torch.testing.assert_close(neighbourhood.spread_magnitudes(values, sigma), expected)


def test_pairs_in_parts(monkeypatch):
    neighbourhood = Neighbourhood(Grid(6, 7, "hexagonal", True), "mexican_hat")
    values = torch.rand(42, 3, dtype=torch.float64)
    whole = neighbourhood.spread(values, 1.5)
    for at_once in (1, 42, 100, 43 * 42):
        monkeypatch.setattr(_grid, "_AT_ONCE", at_once)
        torch.testing.assert_close(neighbourhood.spread(values, 1.5), whole)


@pytest.mark.parametrize("shape", [(1, 81), (41, 41)])
@pytest.mark.parametrize("topology", ["rectangular", "hexagonal"])
def test_a_mexican_hat_sums_to_nothing(shape, topology):
    neighbourhood = Neighbourhood(Grid(*shape, topology, False), "mexican_hat")
    one = torch.zeros(shape, dtype=torch.float64)
    one[shape[0] // 2, shape[1] // 2] = 1
    found = neighbourhood.spread(one.flatten(), 3.0)
    assert found.max() == 1 and found.min() < -0.1 and abs(float(found.sum())) < 1e-3


def test_a_bubble_takes_in_units_exactly_as_far():
    neighbourhood = Neighbourhood(Grid(9, 9, "hexagonal", False), "bubble")
    one = torch.zeros(81, dtype=torch.float64)
    one[40] = 1
    for sigma, count in ((0.99, 1), (1.0, 7), (1.7, 7), (math.sqrt(3), 13), (2.0, 19)):
        assert neighbourhood.spread(one, sigma).sum() == count


# -- schedules --------------------------------------------------------------------------------------------------------
def test_schedules():
    def values(kind, epochs=5):
        return [Schedule(kind, 8.0, 0.5, epochs).at(n) for n in range(epochs)]

    assert values("exponential") == pytest.approx([8, 4, 2, 1, 0.5])
    assert values("linear") == pytest.approx([8, 6.125, 4.25, 2.375, 0.5])
    assert values(2.0) == pytest.approx([8 * math.exp(-n / 2) for n in range(5)])
    assert values(lambda part: 1 - part / 2) == pytest.approx([8, 7, 6, 5, 4])
    for kind in ("exponential", "linear", 3.0, lambda part: 1.0):
        assert values(kind, 1) == [8.0]
        assert Schedule(kind, 8.0, 0.5, 5).at(9) == Schedule(kind, 8.0, 0.5, 5).at(4)
    assert Schedule("linear", 8.0, 0.5, 5).at(1.5) == pytest.approx((6.125 + 4.25) / 2)
