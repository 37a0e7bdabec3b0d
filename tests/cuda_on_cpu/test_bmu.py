"""Best matching units and sums by unit of cuda/, glue and kernels unchanged, executed on the processor."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pykernels import _native, reference
from tests.helpers import SEED, drawn

from .device import TOLERANCE, Device

CPU = _native.kernels
EVERY = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
METRICS = ["euclidean", "cosine", "manhattan"]
every_dtype = pytest.mark.parametrize("dtype", EVERY, ids=str)


@dataclasses.dataclass(frozen=True)
class Search:
    """Values lie `apart` from zero; `steps` within one, so that some are equal; a few are `missing`."""

    samples: int = 40
    units: int = 150
    features: int = 9
    k: int = 1
    metric: str = "euclidean"
    apart: float = 0.0
    steps: int = 0
    missing: bool = False
    multiprocessors: int = 1
    seed: int = 0

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        rows = torch.randn(self.samples + self.units, self.features, generator=draw, dtype=torch.float64)
        rows = (rows * self.steps).round() / self.steps if self.steps else rows
        rows += self.apart
        if self.missing and rows.numel():
            places = torch.randint(rows.numel(), (1 + rows.numel() // 200,), generator=draw)
            rows.view(-1)[places] = torch.tensor([torch.nan, torch.inf, -torch.inf])[places % 3].double()
        return rows[: self.samples].to(dtype), rows[self.samples :].to(dtype)


def check(device: Device, case: Search, dtype: torch.dtype) -> None:
    """The processor's units and distances, which are those of float64."""
    device.configure(case.seed, case.multiprocessors)
    x, w = case.tensors(dtype)
    k = min(case.k, case.units)
    distance, index = device.kernels.bmu(x, w, k, case.metric)
    expected, units = CPU.bmu(x, w, k, case.metric)
    assert distance.dtype == dtype and distance.shape == index.shape == (case.samples, k)
    assert torch.equal(index, units)
    assert torch.equal(distance.isnan(), expected.isnan())
    finite = expected.isfinite()
    torch.testing.assert_close(distance[finite], expected[finite], rtol=TOLERANCE[dtype] / 3, atol=TOLERANCE[dtype])


@every_dtype
@drawn(
    14,
    of=Search,
    samples=(1, 60),
    units=(1, 200),
    features=[0, 1, 2, 5, 16, 17, 33, 40, 64, 65, 100],
    k=[1, 1, 1, 2, 3, 8],
    metric=METRICS,
    apart=[0.0, 0.0, 50.0],
    steps=[0, 0, 1, 3],
    missing=[False, False, True],
    multiprocessors=[1, 2],
    seed=SEED,
)
def test_gives_what_the_processor_gives(device, dtype, case):
    check(device, case, dtype)


@every_dtype
@pytest.mark.parametrize("metric", METRICS)
def test_chosen_searches(device, dtype, metric):
    """Tiles that are not full, features beyond registers, a codebook far away, equal units."""
    check(device, Search(130, 140, 34, 1, metric), dtype)
    check(device, Search(30, 270, 70, 2, metric, apart=1000.0), dtype)
    check(device, Search(60, 200, 4, 1, metric, steps=1), dtype)
    check(device, Search(0, 5, 3, 1, metric), dtype)


def test_float64_arithmetic_decides(device):
    """Units that single precision cannot tell apart."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(80, 12, generator=draw, dtype=torch.float64)
    w = x[:40].repeat(4, 1) * (1 + 1e-12 * torch.randn(160, 12, generator=draw, dtype=torch.float64))
    device.configure(1, 1)
    _, index = device.kernels.bmu(x, w, 1, "euclidean")
    assert torch.equal(index[:, 0], reference.bmu(x, w)[1])


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e15, 1e30])
@pytest.mark.parametrize("metric", METRICS)
def test_no_scale_of_values_is_special(device, metric, scale):
    for dtype in (torch.float32, torch.float64):
        x, w = (t * scale for t in Search(40, 120, 10).tensors(dtype))
        w[3] /= scale
        device.configure(2, 1)
        distance, index = device.kernels.bmu(x, w, 2, metric)
        expected, units = CPU.bmu(x, w, 2, metric)
        assert torch.equal(index, units)
        torch.testing.assert_close(distance, expected)


def test_strides_are_free(device):
    x, w = Search(70, 140, 11).tensors(torch.float32)
    spread = torch.stack([x, x * torch.nan], 1).flatten(0, 1)[::2], torch.stack([w, w * torch.nan], -1)[..., 0]
    device.configure(4, 1)
    for one, other in zip(
        device.kernels.bmu(x, w, 2, "euclidean"), device.kernels.bmu(*spread, 2, "euclidean"), strict=True
    ):
        assert torch.equal(one, other)


@every_dtype
@pytest.mark.parametrize(
    "shape", [(700, 5, 35), (300, 40, 3), (1, 1, 1), (0, 3, 4), (600, 2, 0), (257, 1000, 2)], ids=str
)
def test_sums_by_unit(device, dtype, shape):
    samples, units, features = shape
    draw = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, features, generator=draw).to(dtype)
    index = torch.randint(units, (samples,), generator=draw) ** 2 // units
    device.configure(5)
    sums, counts = device.kernels.unit_sums(x, index, units)
    expected, expected_counts = CPU.unit_sums(x, index, units)
    assert torch.equal(counts, expected_counts)
    torch.testing.assert_close(sums, expected, rtol=1e-13, atol=1e-13)
    again, _ = device.kernels.unit_sums(torch.cat([x, x], 1)[:, :features], index, units)
    assert torch.equal(sums, again)


def test_what_is_wrong_is_refused(device):
    device.configure(0)
    x = torch.ones(4, 2)
    for bad in (-1, 3):
        with pytest.raises(IndexError, match="expected an index of units 0 to 2"):
            device.kernels.unit_sums(x, torch.tensor([0, 1, bad, 2]), 3)
    with pytest.raises(ValueError, match="expected k from 1 to 3"):
        device.kernels.bmu(x, x[:3], 4, "euclidean")
