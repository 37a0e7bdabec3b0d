"""The radial basis layer's CUDA kernel, executed on the processor."""

from __future__ import annotations

import pytest
import torch

from pykernels import reference

from .device import TOLERANCE, Device

# samples, centres, features: both heights of a tile, edges of tiles and of what is staged
SHAPES = [(1, 1, 1), (7, 5, 3), (32, 64, 16), (33, 65, 17), (70, 3, 40), (130, 70, 5)]


@pytest.mark.parametrize("dtype", [*TOLERANCE], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(device: Device, shape, dtype):
    samples, centers, features = shape
    torch.manual_seed(sum(shape))
    x = (torch.randn(samples, 2 * features, dtype=torch.float64) + 3).to(dtype)[:, :features]
    t = (torch.randn(centers, features, dtype=torch.float64) + 3).to(dtype)
    for seed in (0, 1):
        device.configure(seed)
        found = device.kernels.radial_basis(x, t, 0.5 / features)
        truth = reference.radial_basis(x.double(), t.double(), 0.5 / features)
        assert found.dtype == dtype and float((found.double() - truth).abs().max()) <= TOLERANCE[dtype]


def test_nothing(device: Device):
    for shape in ((0, 3, 2), (3, 0, 2), (2, 3, 0)):
        found = device.kernels.radial_basis(torch.randn(shape[0], shape[2]), torch.randn(shape[1], shape[2]), 1.0)
        assert found.shape == shape[:2] and bool((found == 1).all())


def test_not_a_number_stays_in_its_row_and_column(device: Device):
    x, t = torch.randn(40, 5), torch.randn(70, 5)
    x[3, 1], t[66, 2] = torch.nan, torch.nan
    expected = torch.zeros(40, 70, dtype=torch.bool)
    expected[3], expected[:, 66] = True, True
    assert torch.equal(device.kernels.radial_basis(x, t, 0.2).isnan(), expected)
