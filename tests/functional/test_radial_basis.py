"""The radial basis layer against its twin in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from pykernels import functional, reference
from tests.helpers import LOW

from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
op = torch.ops.pykernels.radial_basis.default
ALLOWED = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# samples, centres, features: around a vector, the tile of rows, the panel of centres
SHAPES = [(1, 1, 1), (2, 3, 5), (7, 16, 4), (6, 17, 16), (13, 64, 17), (97, 65, 3), (200, 129, 33), (33, 200, 70)]
every_dtype = pytest.mark.parametrize("dtype", [*ALLOWED], ids=str)


def drawn(samples: int, centers: int, features: int, dtype: torch.dtype = torch.float64, offset: float = 0.0) -> Any:
    torch.manual_seed(samples + centers + features)
    x, t = torch.randn(samples, features, dtype=torch.float64), torch.randn(centers, features, dtype=torch.float64)
    return (x + offset).to(dtype), (t + offset).to(dtype)


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype):
    x, t = drawn(*shape, dtype)
    gamma = 0.5 / shape[2]
    found = functional.radial_basis(x, t, gamma)
    assert found.dtype == dtype and found.shape == shape[:2]
    truth = reference.radial_basis(x.double(), t.double(), gamma)
    assert float((found.double() - truth).abs().max()) <= ALLOWED[dtype]


def test_far_from_the_origin_nothing_is_lost():
    x, t = drawn(50, 40, 6, torch.float32, 1e4)
    truth = reference.radial_basis(x.double(), t.double(), 0.1)
    assert float((functional.radial_basis(x, t, 0.1).double() - truth).abs().max()) < 3e-6


@pytest.mark.parametrize("shape", [(0, 3, 2), (5, 0, 2), (4, 3, 0)], ids=str)
def test_empty(shape):
    x, t = drawn(*shape)
    found = functional.radial_basis(x, t, 1.0)
    assert found.shape == shape[:2] and (found == 1).all()


def test_strides():
    x, t = drawn(21, 18, 7, torch.float32)
    expected = functional.radial_basis(x, t, 0.2)
    turned, wide = x.T.contiguous().T, torch.stack([t, t * math.nan], 1)[:, 0]
    assert torch.equal(functional.radial_basis(turned, wide, 0.2), expected)


def test_not_a_number_stays_in_its_row_and_column():
    x, t = drawn(9, 20, 5, torch.float32)
    x[3, 1], t[7, 2] = math.nan, math.nan
    found = functional.radial_basis(x, t, 0.2).isnan()
    expected = torch.zeros_like(found)
    expected[3], expected[:, 7] = True, True
    assert torch.equal(found, expected)


def test_a_sample_on_a_centre_gives_one():
    _, t = drawn(1, 30, 9, torch.float32, 3.0)
    assert torch.allclose(functional.radial_basis(t, t, 0.7).diagonal(), torch.ones(30), atol=2e-6, rtol=0)
    assert float(functional.radial_basis(t, t, 0.7).max()) <= 1


def test_same_bits_for_any_number_of_threads():
    x, t = drawn(700, 300, 40, torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(functional.radial_basis(x, t, 0.05))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_gradients():
    x, t = (one.requires_grad_() for one in drawn(6, 4, 3))
    gamma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(functional.radial_basis, (x, t, gamma))
    assert gradgradcheck(functional.radial_basis, (x, t, gamma))
    assert gradcheck(lambda x, t: functional.radial_basis(x, t, 0.3), (x, t), check_forward_ad=True)
    assert gradgradcheck(lambda x, t: functional.radial_basis(x, t, 0.3), (x, t))


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_gradients_against_the_twin(dtype):
    x, t = (one.requires_grad_() for one in drawn(40, 30, 8, dtype, 2.0))
    weighting = torch.linspace(-1, 1, 1200).reshape(40, 30)
    (functional.radial_basis(x, t, 0.1).float() * weighting).sum().backward()
    a, b = (one.detach().double().requires_grad_() for one in (x, t))
    (reference.radial_basis(a, b, 0.1) * weighting).sum().backward()
    for mine, truth in ((x.grad, a.grad), (t.grad, b.grad)):
        assert float((mine.double() - truth).abs().max()) <= 20 * ALLOWED[dtype] * float(truth.abs().max())


def test_default_width():
    x, t = drawn(5, 7, 3)
    apart = torch.cdist(t, t).max()
    assert torch.allclose(functional.radial_basis(x, t), reference.radial_basis(x, t, 7 / apart**2))
    assert torch.allclose(functional.radial_basis(x, x[:1]), reference.radial_basis(x, x[:1], 1.0))


def test_dtypes_are_promoted():
    x, t = drawn(5, 7, 3)
    assert functional.radial_basis(x.float(), t, 0.1).dtype == torch.float64


def test_operator():
    x, t = (one.requires_grad_() for one in drawn(5, 7, 3))
    torch.library.opcheck(op, (x, t, 0.3))
    meta = op(torch.empty(5, 3, device="meta"), torch.empty(7, 3, device="meta"), 0.3)
    assert meta.shape == (5, 7)


def test_compiled_whole():
    x, t = drawn(11, 7, 3, torch.float32)
    t.requires_grad_()
    run, _ = compiled(lambda x, t: functional.radial_basis(x, t, 0.3).square().sum())
    expected = grad(lambda t: functional.radial_basis(x, t, 0.3).square().sum())(t.detach())
    run(x, t).backward()
    assert torch.allclose(t.grad, expected, atol=1e-6)


def test_vmap():
    x, t = drawn(12, 7, 3)
    batched = x.reshape(3, 4, 3)
    assert torch.allclose(vmap(lambda x: functional.radial_basis(x, t, 0.3))(batched).flatten(0, 1), op(x, t, 0.3))
    own = vmap(lambda x, t: functional.radial_basis(x, t, 0.3))(batched, torch.stack([t, t + 1, t - 1]))
    assert torch.allclose(own[1], op(batched[1], t + 1, 0.3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.zeros(3)},
            RuntimeError,
            r"\[radial_basis\] expected input of shape \[samples, features\], got \[3\]",
        ),
        (
            {"t": torch.zeros(2, 4)},
            RuntimeError,
            r"expected centers of shape \[centers, 3\] like the input.*got \[2, 4\]",
        ),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, RuntimeError, "expected input of dtype float32"),
        ({"gamma": -1.0}, ValueError, "expected gamma of 0 or more, got -1"),
    ],
)
def test_errors(change, error, message):
    given: dict[str, Any] = {"x": torch.zeros(5, 3), "t": torch.zeros(2, 3), "gamma": 1.0} | change
    with pytest.raises(error, match=message):
        functional.radial_basis(given["x"], given["t"], given["gamma"])
