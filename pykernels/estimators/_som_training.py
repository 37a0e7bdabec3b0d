"""How a map learns: in whole epochs, in small batches, or sample by sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional import bmu
from ._base import Rows
from ._grid import Grid, Neighbourhood

BLOCK_BYTES = 64 << 20  # of samples that are dense at a time where they are sparse or come from another device


class Pass(NamedTuple):
    """What one pass over samples gives; of a shared one sums, counts and errors are those of all processes."""

    units: Tensor  # [N, k] of this process's samples
    distance: Tensor  # [N, k]
    sums: Tensor  # [units, features] float64: of the samples whose best unit it is
    counts: Tensor  # [units] float64
    quantization_error: float
    topographic_error: float  # of a pass that looks for two units


def blocks_of(rows: Rows) -> Iterator[tuple[int, Tensor]]:
    """All samples, at once where they are on the device already."""
    size = torch.empty((), dtype=rows.dtype).element_size()
    here = not rows.is_sparse and rows.data.device == rows.device and rows.data.dtype == rows.dtype
    return rows.blocks(len(rows) if here else max(1, BLOCK_BYTES // (size * rows.n_features)))


def is_shared() -> bool:
    """Whether several processes fit one map, each with samples of its own."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def added_up(values: Tensor) -> Tensor:
    """The sum over processes, of float64 values."""
    if is_shared():
        dist.all_reduce(values)
    return values


def look_up(rows: Rows, codebook: Tensor, grid: Grid, metric: str, k: int, *, shared: bool) -> Pass:
    """One pass over samples: their best units, errors, and sums by unit, of all processes where it is shared."""
    distances, indices = [], []
    # sums of units, their counts, and of all samples: distances, those whose best two units are no neighbours
    totals = codebook.new_zeros(codebook.shape[0], codebook.shape[1] + 1, dtype=torch.float64)
    errors = codebook.new_zeros(3, dtype=torch.float64)
    for _, block in blocks_of(rows):
        distance, index = (t.reshape(len(block), -1) for t in bmu(block, codebook, k, metric))
        sums, counts = torch.ops.pykernels.unit_sums(block, index[:, 0].contiguous(), codebook.shape[0])
        totals[:, :-1] += sums
        totals[:, -1] += counts
        errors[0] += distance[:, 0].sum(dtype=torch.float64)
        errors[2] += len(block)
        if k > 1:
            errors[1] += (~grid.are_neighbours(index[:, 0], index[:, 1])).sum()
        distances.append(distance)
        indices.append(index)
    summed = torch.cat([totals.reshape(-1), errors])
    summed = added_up(summed) if shared else summed
    totals, errors = summed[:-3].reshape(totals.shape), summed[-3:]
    samples = max(float(errors[2]), 1.0)
    found = torch.cat(indices), torch.cat(distances), totals[:, :-1], totals[:, -1]
    return Pass(*found, float(errors[0]) / samples, float(errors[1]) / samples if k > 1 else math.nan)


def moved(
    codebook: Tensor,
    sums: Tensor,
    counts: Tensor,
    neighbourhood: Neighbourhood,
    sigma: float,
    bounds: Tensor | None = None,
) -> Tensor:
    r"""The codebook after a batch: :math:`w_j + \sum_i h_{ij} (s_i - n_i w_j) / \sum_i |h_{ij}| n_i`, the mean of the
    samples weighted by the neighbourhood where that has no negative part. Units that no sample reaches stay; within
    the bounds do all."""
    spread = neighbourhood.spread(torch.cat([sums, counts[:, None]], 1), sigma)
    weight = spread[:, -1]
    if neighbourhood.kind == "mexican_hat":
        magnitude = neighbourhood.spread_magnitudes(counts, sigma)
    else:
        magnitude = weight
    old = codebook.double()
    if neighbourhood.kind == "mexican_hat":
        target = old + (spread[:, :-1] - weight[:, None] * old) / magnitude[:, None]
    else:
        target = spread[:, :-1] / weight[:, None]
    new = torch.where(magnitude[:, None] > 0, target, old)
    if bounds is not None:
        new = new.clamp(bounds[0].to(new), bounds[1].to(new))
    return new.to(codebook.dtype)


@dataclass(frozen=True)
class Schedule:
    """A value on its way over all epochs.

    Args:
        kind: "exponential" or "linear", from `begin` to `end`; a number, tau epochs in which it falls to 1 / e; a
            function of the fraction of the way, which gives a factor.
        n_epochs: on the way.
    """

    kind: Any
    begin: float
    end: float
    n_epochs: int

    def at(self, epoch: float) -> float:
        """The value in an epoch, 0 ... n_epochs - 1, or between two; after the last it stays."""
        epoch = min(epoch, self.n_epochs - 1)
        fraction = epoch / max(self.n_epochs - 1, 1)
        if callable(self.kind):
            return self.begin * float(self.kind(fraction))
        if self.kind == "exponential":
            return self.begin * (self.end / self.begin) ** fraction
        if self.kind == "linear":
            return self.begin + (self.end - self.begin) * fraction
        return self.begin * math.exp(-epoch / self.kind)


def initial_codebook(rows: Rows, grid: Grid, kind: Any, generator: torch.Generator) -> Tensor:
    """The map before it has learned: "pca", a plane through the data; "random", within their range; "sample"."""
    if kind == "pca":
        made = _plane(rows, grid)
    elif kind == "random":
        low, high = _range(rows)
        drawn = torch.rand(grid.size, rows.n_features, generator=generator, dtype=torch.float64).to(low)
        made = low + drawn * (high - low)
    else:
        chosen = torch.randperm(len(rows), generator=generator)
        chosen = chosen.repeat(-(-grid.size // len(rows)))[: grid.size]
        made = rows.dense(chosen)
    made = made.to(rows.device, rows.dtype).contiguous()
    if is_shared():
        dist.broadcast(made, 0)
    return made


def _moments(rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and covariance, in float64, of the samples of all processes."""
    total = torch.zeros(rows.n_features + 1, dtype=torch.float64, device=rows.device)
    for _, block in blocks_of(rows):
        total[:-1] += block.sum(0, dtype=torch.float64)
        total[-1] += len(block)
    total = added_up(total)
    mean, count = total[:-1] / total[-1], float(total[-1])
    products = torch.zeros(rows.n_features, rows.n_features, dtype=torch.float64, device=rows.device)
    for _, block in blocks_of(rows):
        off = block.double() - mean
        products += off.mT @ off
    return mean, added_up(products) / count


def _plane(rows: Rows, grid: Grid) -> Tensor:
    """Units spread over two standard deviations to each side along the first two principal directions."""
    mean, covariance = _moments(rows)
    variances, directions = torch.linalg.eigh(covariance)
    directions = directions.flip(1)[:, :2] * variances.flip(0)[:2].clamp_min(0).sqrt()
    # of two opposite ones always the same, also where rounding chooses between entries of equal size
    large = directions.abs() >= 0.99 * directions.abs().amax(0)
    directions = directions * directions.gather(0, large.int().argmax(0)[None]).sign()
    if directions.shape[1] < 2:
        directions = torch.cat([directions, torch.zeros_like(directions)], 1)
    places = grid.coordinates.to(mean)
    spans = places.amax(0) - places.amin(0)
    scaled = torch.where(spans > 0, (places - places.amin(0)) / spans.clamp_min(1e-12) * 2 - 1, 0)
    if spans[0] < spans[1]:
        scaled = scaled.flip(1)  # the first direction along the longer side
    return mean + 2 * scaled @ directions.mT


def _range(rows: Rows) -> tuple[Tensor, Tensor]:
    lows, highs = zip(*((block.amin(0), block.amax(0)) for _, block in blocks_of(rows)), strict=True)
    bounds = torch.stack([-torch.stack(lows).amin(0), torch.stack(highs).amax(0)]).double()
    if is_shared():
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
    return -bounds[0], bounds[1]


class Trainer:
    """One epoch after the other; `codebook` is what has been learned.

    Args:
        sigma, rate: the neighbourhood's width and the learning rate.
    """

    def __init__(
        self, codebook: Tensor, grid: Grid, neighbourhood: Neighbourhood, metric: str, sigma: Schedule, rate: Schedule
    ) -> None:
        self.codebook, self.grid, self.neighbourhood, self.metric = codebook, grid, neighbourhood, metric
        self.sigma, self.rate = sigma, rate
        self.sums = self.counts = codebook.new_zeros(0, dtype=torch.float64)  # of small batches: as they were of late
        self.bounds: Tensor | None = None

    def see(self, rows: Rows) -> None:
        """Widen the bounds by samples: units that others push away stay within the range of the data."""
        if self.neighbourhood.kind == "mexican_hat":
            low, high = _range(rows)
            if self.bounds is not None:
                low, high = torch.minimum(low, self.bounds[0].to(low)), torch.maximum(high, self.bounds[1].to(high))
            self.bounds = torch.stack([low, high])

    def _move(self, sums: Tensor, counts: Tensor, epoch: float) -> None:
        self.codebook = moved(self.codebook, sums, counts, self.neighbourhood, self.sigma.at(epoch), self.bounds)

    def batch(self, rows: Rows, epoch: float) -> float:
        """A whole epoch at once; gives the mean distance before it."""
        found = look_up(rows, self.codebook, self.grid, self.metric, 1, shared=True)
        self._move(found.sums, found.counts, epoch)
        return found.quantization_error

    def small_batches(self, rows: Rows, epoch: int, size: int, generator: torch.Generator) -> float:
        """Batches of about as many samples, `size` at most, in random order, and as many in every process."""
        order, error = torch.randperm(len(rows), generator=generator), 0.0
        longest = torch.tensor(len(rows), device=rows.device)
        if is_shared():
            dist.all_reduce(longest, dist.ReduceOp.MAX)
        batches = -(-int(longest) // size)
        for i, some in enumerate(order.tensor_split(batches)):
            block = rows.dense(some)
            part = Rows(block, rows.device, rows.dtype, False)
            error += self.small_batch(part, epoch + i / batches, max(len(part), 1))
        return error / batches

    def small_batch(self, rows: Rows, epoch: float, size: int) -> float:
        """Sums by unit are running means over batches, which the codebook follows (stepwise expectation-maximisation,
        Cappe and Moulines 2009)."""
        found = look_up(rows, self.codebook, self.grid, self.metric, 1, shared=True)
        total = found.counts.sum().clamp_min(1)
        # a batch that is smaller than others counts for less
        part = 1 - (1 - self.rate.at(epoch)) ** min(float(total) / size, 1.0) if len(self.counts) else 1.0
        for name, new in (("sums", found.sums), ("counts", found.counts)):
            old = getattr(self, name)
            setattr(self, name, new / total * part + (old.to(new.device) * (1 - part) if part < 1 else 0))
        self._move(self.sums, self.counts, epoch)
        return found.quantization_error

    def online(self, rows: Rows, epoch: int, generator: torch.Generator | None = None) -> float:
        """Sample by sample, in random order where there is a generator."""
        count, error = len(rows), 0.0
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        codebook = self.codebook.clone(memory_format=torch.contiguous_format)
        bounds = None if self.bounds is None else self.bounds.to(codebook)
        size = max(1, BLOCK_BYTES // (codebook.element_size() * rows.n_features))
        for begin in range(0, count, size):
            some = order[begin : begin + size]
            when = [epoch + (begin + i) / count for i in range(len(some))]
            sigma, rate = (torch.tensor([s.at(t) for t in when], dtype=torch.float64) for s in (self.sigma, self.rate))
            distance = torch.ops.pykernels.som_learn_(
                codebook, rows.dense(some), self.grid.coordinates, self.grid.periods, sigma, rate, bounds,
                self.neighbourhood.kind, self.metric,
            )  # fmt: skip
            error += float(distance.sum(dtype=torch.float64))
        self.codebook = codebook
        return error / count
