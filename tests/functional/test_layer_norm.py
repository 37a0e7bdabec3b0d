"""layer_norm against its twin in float64 and against torch; the module."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels
from pykernels import functional, reference
from tests.helpers import (
    LOW,
    assert_equal,
    assert_same_bits,
    distance,
    drawn,
    with_gradients,
)

from .compiling import forget_what_was_compiled
from .layer_norm_cases import DTYPES, SPACE, WIDTHS, Norm, call, check_values, every_dtype, run

assert forget_what_was_compiled  # around every test
normalize = functional.layer_norm
forward, backward = torch.ops.pykernels.layer_norm_forward.default, torch.ops.pykernels.layer_norm_backward.default


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@drawn(60, of=Norm, **SPACE)
def test_against_float64(device, dtype, case):
    check_values(case, dtype, device)


@pytest.mark.isa
@pytest.mark.parametrize("columns", WIDTHS)
def test_every_tail(device, columns):
    for dtype in DTYPES:
        check_values(Norm(7, columns, "float32", dropout=0.25, seed=columns), dtype, device)
        check_values(Norm(3, columns, residual=False, seed=columns), dtype, device)


@every_dtype
@pytest.mark.parametrize("case", [Norm(3, 5000), Norm(1000, 33), Norm(4099, 7, dropout=0.5)], ids=str)
def test_long_sums(device, dtype, case):
    check_values(case, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_a_large_mean_does_not_cancel(device, dtype):
    """Rows far from zero: two passes over the row, not a difference of squares."""
    x = (torch.randn(9, 300) + 1000).to(device, dtype)
    truth = F.layer_norm(x.double(), [300])
    theirs = distance(F.layer_norm(x, [300]), truth)
    assert distance(normalize(x, [300]), truth) <= 2 * theirs + 2 * torch.finfo(dtype).eps


@drawn(40, of=Norm, **{**SPACE, "dropout": [0.0]})
def test_equals_torch(device, case):
    assert_equal(run(functional, case, torch.float64, device), run(F, case, torch.float64, device), 1e-11)


@every_dtype
@drawn(12, of=Norm, **{**SPACE, "dropout": [0.0, 0.4], "rows": [1, 3, 16], "columns": [1, 3, 16, 33, 64]})
def test_any_strides(device, dtype, case):
    """Slices, turned and shifted operands have the bits of contiguous ones; so have expanded gradients."""
    tensors = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    expected = run(functional, case, dtype, device)
    lays = {
        "wide": lambda t: torch.cat([torch.full_like(t[..., :1], math.nan), t, t], -1)[..., 1 : 1 + t.shape[-1]],
        "halves": lambda t: torch.stack([t, t], -1)[..., 0],
        "turned": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    for lay in lays.values():
        leaves = {n: lay(t).requires_grad_() for n, t in tensors.items()}
        assert_same_bits(with_gradients(call(functional, case, leaves), leaves), expected)
        y = call(functional, case, leaves)["y"]
        given = torch.randn(case.shape, device=device).to(dtype).expand(y.shape)
        found = [torch.autograd.grad(y, leaves["input"], g, retain_graph=True)[0] for g in (given, given.clone())]
        assert torch.equal(*found)


# -- dropout ----------------------------------------------------------------------------------------------------------
@drawn(30, of=Norm, **{**SPACE, "dropout": [0.1, 0.5, 0.97], "residual": [False]})
def test_dropout_has_the_twins_bits(device, case):
    ours, twin = (call(w, case, case.tensors(torch.float32, device))["total"] for w in (functional, reference))
    assert torch.equal(ours == 0, twin == 0)
    torch.testing.assert_close(ours, twin)


def test_dropout_of_nothing_and_of_all(device):
    x, r = torch.randn(2, 5, 33, device=device)
    state = torch.get_rng_state()
    assert torch.equal(normalize(x, [33], residual=r, dropout_p=0.0), normalize(x, [33], residual=r))
    assert torch.equal(torch.get_rng_state(), state), "random numbers are drawn for nothing"
    x.requires_grad_()
    y, total = normalize(x, [33], residual=r, dropout_p=1.0, return_total=True)
    assert torch.equal(total, r) and torch.equal(y, normalize(r, [33]))
    assert not torch.autograd.grad((y * r).sum(), x)[0].any()
    assert not normalize(x, [33], dropout_p=1.0, return_total=True)[1].any()


def test_dropout_follows_the_generator_and_its_probability(device):
    x = torch.ones(300, 257, device=device)
    torch.manual_seed(1)
    first, second = (normalize(x, [257], dropout_p=0.3, return_total=True)[1] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(normalize(x, [257], dropout_p=0.3, return_total=True)[1], first)
    assert not torch.equal(first, second)
    deviation = math.sqrt(0.3 * 0.7 / x.numel())
    assert abs(float((first == 0).double().mean()) - 0.3) < 5 * deviation
    assert set(first.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}


# -- meaning ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_dtype
def test_what_is_no_number_stays_in_its_row(device, dtype, bad):
    case = Norm(9, 40, dropout=0.2)
    clean = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    dirty = {**clean, "residual": clean["residual"].clone()}
    dirty["residual"][4, 21] = bad
    found = []
    for tensors in (clean, dirty):
        leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
        rows = {"input": leaves["input"], "residual": leaves["residual"]}
        found.append(with_gradients(call(functional, case, leaves), rows))
    assert found[1]["y"][4].isnan().all() and found[1]["grad residual"][4].isnan().any()
    others = torch.arange(9, device=device) != 4
    assert_same_bits(*({n: t[others] for n, t in f.items()} for f in found))


def test_residual_of_another_dtype_is_promoted(device):
    """As torch's r + x is."""
    x, r = torch.randn(3, 8, device=device, dtype=torch.bfloat16), torch.randn(3, 8, device=device)
    for a, b in ((x, r), (r, x), (x, r.double())):
        expected = F.layer_norm(a + b, [8])
        y, total = normalize(a.requires_grad_(), [8], residual=b.requires_grad_(), return_total=True)
        assert y.dtype == total.dtype == expected.dtype and torch.equal(total, a + b)
        torch.testing.assert_close(y, expected)
        assert [g.dtype for g in torch.autograd.grad(y.sum(), (a, b))] == [a.dtype, b.dtype]


def test_nothing_but_what_is_needed_is_saved(device):
    """The total and two numbers a row; without a residual the input itself."""
    for case, new in ((Norm(64, 100), 64 * 100 + 128), (Norm(64, 100, residual=False), 128)):
        leaves, kept = case.tensors(torch.float32, device), []
        pointers = {t.data_ptr() for t in leaves.values()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.append(t) or t, lambda t: t):
            call(functional, case, leaves)
        assert sum(t.numel() for t in kept if t.data_ptr() not in pointers) == new


def test_changed_operands_are_noticed(device):
    x = torch.randn(3, 8, device=device, requires_grad=True)
    w = torch.randn(8, device=device)
    y = normalize(x, [8], w)
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_dtype
@pytest.mark.parametrize("case", [Norm(2000, 70, dropout=0.2), Norm(3, 3000), Norm(333, 257)], ids=str)
def test_same_bits_for_any_number_of_threads(threads, dtype, case):
    found = []
    for count in (1, 2, 8):
        threads(count)
        found.append(run(functional, case, dtype))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


# -- the module -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("shape", [6, (4, 6)], ids=str)
def test_module_in_the_place_of_torchs(device, shape, options):
    ours, theirs = (where.LayerNorm(shape, **options, device=device) for where in (pykernels, nn))
    assert isinstance(ours, nn.LayerNorm) and repr(ours) == repr(theirs)
    assert_same_bits(dict(ours.state_dict()), dict(theirs.state_dict()))
    with torch.no_grad():
        [p.uniform_() for p in theirs.parameters()]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 4, 6, device=device)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(x), theirs(x))


def test_module_drops_while_training_only(device):
    module, x = pykernels.LayerNorm(6, device=device), torch.randn(3, 4, 6, device=device)
    y, total = module.eval()(x, x, dropout_p=0.5, return_total=True)
    assert torch.equal(total, 2 * x) and torch.equal(y, module(2 * x))
    assert (module.train()(x, x, dropout_p=0.9, return_total=True)[1] == x).any()
