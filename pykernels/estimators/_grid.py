"""The grid of a map: where units are, which are neighbours, and how values spread from each to those around it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TOPOLOGIES = ("rectangular", "hexagonal", "linear")
NEIGHBOURHOODS = ("gaussian", "bubble", "mexican_hat")
_ROW_HEIGHT = math.sqrt(3) / 2  # of hexagons whose centres are 1 apart
_AT_ONCE = 1 << 24  # elements of the matrix between all units that exist at a time


class Grid:
    """Units on a grid, one unit of length apart; unit `row * n_columns + column` is at `coordinates`.

    Rectangular: at (row, column). Hexagonal: odd rows are moved by half a column, rows are sqrt(3)/2 apart, so that six
    units are at distance 1. Linear: a chain in the order of the units. Toroidal: borders are joined to their opposites.
    """

    def __init__(self, n_rows: int, n_columns: int, topology: str, toroidal: bool) -> None:
        self.shape, self.topology, self.toroidal = (n_rows, n_columns), topology, toroidal
        self.size = n_rows * n_columns
        unit = torch.arange(self.size, dtype=torch.float64)
        if topology == "linear":
            self.coordinates = torch.stack([torch.zeros_like(unit), unit], 1)
            self.lengths = (1.0, float(self.size))
        else:
            row, column = torch.div(unit, n_columns, rounding_mode="floor"), unit % n_columns
            height = 1.0
            if topology == "hexagonal":
                column, height = column + 0.5 * (row % 2), _ROW_HEIGHT
            self.coordinates = torch.stack([row * height, column], 1)
            self.lengths = (n_rows * height, float(n_columns))

    @property
    def longest(self) -> float:
        """The longer side."""
        return max(self.lengths)

    @property
    def periods(self) -> tuple[float, float]:
        """After which rows and columns come again; 0 where they do not."""
        return self.lengths if self.toroidal else (0.0, 0.0)

    def squared_distances(self, units: Tensor, others: Tensor) -> Tensor:
        """Between units on the grid, element by element as in `units - others`."""
        coordinates = self.coordinates.to(units.device)
        apart = (coordinates[units] - coordinates[others]).abs()
        if self.toroidal:
            apart = torch.minimum(apart, apart.new_tensor(self.lengths) - apart)
        return apart.square().sum(-1)

    def are_neighbours(self, units: Tensor, others: Tensor) -> Tensor:
        """Whether two units are beside each other: in a rectangle also at a corner, as one of eight."""
        nearest = 2.0 if self.topology == "rectangular" else 1.0
        squares = self.squared_distances(units, others)
        return (squares < nearest + 0.1) & (squares > 0)

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """All ordered pairs of neighbours."""
        rows, columns = self.shape
        reach = [(0, 1), (0, -1)]
        if self.topology != "linear":
            reach = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
        else:
            rows, columns = 1, self.size
        unit = torch.arange(self.size)
        found = []
        for down, right in reach:
            row, column = unit // columns + down, unit % columns + right
            if self.toroidal:
                row, column = row % rows, column % columns
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            found.append(torch.stack([unit[inside], (row * columns + column)[inside]], 1))
        pairs = torch.unique(torch.cat(found), dim=0)
        units, others = pairs.unbind(1)
        beside = self.are_neighbours(units, others)
        return units[beside], others[beside]


class Neighbourhood:
    r"""How much unit j takes part in what happens to unit i, d apart on the grid and with width sigma: gaussian
    :math:`e^{-d^2 / 2 \sigma^2}`, bubble :math:`[d \le \sigma]`, mexican_hat
    :math:`(1 - d^2 / m \sigma^2) e^{-d^2 / 2 \sigma^2}` in m dimensions (one for a chain, two), whose sum is zero."""

    def __init__(self, grid: Grid, kind: str) -> None:
        self.grid, self.kind = grid, kind
        self.dimensions = 1 if bool((grid.coordinates == grid.coordinates[0]).all(0).any()) else 2

    def weights(self, squares: Tensor, sigma: float) -> Tensor:
        """From squared distances."""
        if self.kind == "bubble":
            # (for what rounding does to units that are just as far)
            return (squares <= (sigma + 1e-4) ** 2).to(squares.dtype)
        scaled = squares / (sigma * sigma)
        bell = torch.exp(-0.5 * scaled)
        return bell if self.kind == "gaussian" else (1 - scaled / self.dimensions) * bell

    def spread(self, values: Tensor, sigma: float) -> Tensor:
        """Sum over i of h(i, j) values[i] for every unit j: values [units, *] in float64.

        A gaussian is a product of one along rows and one along columns, and is applied one after the other: K (R + C)
        products in the place of K^2. In a hexagonal grid that holds for the rows of either parity.
        """
        if self.kind != "gaussian":
            return self._all_pairs(values, lambda squares: self.weights(squares, sigma))
        if self.grid.topology == "linear":
            whole = self._along(torch.arange(self.grid.size), 1, 0.0, sigma, values)
            return (whole @ values.reshape(self.grid.size, -1)).reshape(values.shape)
        rows, columns = self.grid.shape
        table = values.reshape(rows, columns, -1)
        parities = [slice(0, None, 2), slice(1, None, 2)] if self.grid.topology == "hexagonal" else [slice(None)]
        number, place = torch.arange(rows), torch.arange(columns)
        found = torch.zeros_like(table)
        for p, to in enumerate(parities):
            for q, source in enumerate(parities):
                across = self._along(place, 1, 0.5 * (p - q), sigma, values)
                part = torch.einsum("dc,rcf->rdf", across, table[source])
                down = self._along(number, 0, 0.0, sigma, values)[to, source]
                found[to] += torch.einsum("qr,rdf->qdf", down, part)
        return found.reshape(values.shape)

    def spread_magnitudes(self, values: Tensor, sigma: float) -> Tensor:
        """The same with |h|."""
        if self.kind != "mexican_hat":
            return self.spread(values, sigma)
        return self._all_pairs(values, lambda squares: self.weights(squares, sigma).abs())

    def _along(self, place: Tensor, axis: int, offset: float, sigma: float, like: Tensor) -> Tensor:
        """One factor of the gaussian: between all places of an axis, the first ones moved by `offset`."""
        pitch = _ROW_HEIGHT if axis == 0 and self.grid.topology == "hexagonal" else 1.0
        place = place.to(like)
        apart = ((place[:, None] - place) * pitch + offset).abs()
        if self.grid.toroidal:
            apart = torch.minimum(apart, self.grid.lengths[axis] - apart).abs()
        return torch.exp(-0.5 * (apart / sigma).square())

    def _all_pairs(self, values: Tensor, weight: Callable[[Tensor], Tensor]) -> Tensor:
        size, flat = self.grid.size, values.reshape(self.grid.size, -1)
        unit, parts = torch.arange(size, device=values.device), []
        for begin in range(0, size, max(1, _AT_ONCE // size)):
            some = unit[begin : begin + max(1, _AT_ONCE // size)]
            parts.append(weight(self.grid.squared_distances(some[:, None], unit)).to(values) @ flat)
        return torch.cat(parts).reshape(values.shape)
