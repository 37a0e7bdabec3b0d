"""`bmu` as PyTorch sees it: derivatives, transforms, tracing, errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

from pykernels import functional
from tests.helpers import LOW, assert_equal, distance, drawn, outcome, with_gradients

from .bmu_cases import METRICS, SPACE, Search, every_dtype, every_metric, measures
from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
bmu = functional.bmu
op = torch.ops.pykernels.bmu.default
TINY = {**SPACE, "samples": [1, 3, 6], "units": [1, 3, 9], "features": [1, 2, 5], "layout": ["rows", "columns"]}


def both(case: Search, device, dtype: torch.dtype = torch.float64):
    return tuple(t.detach().requires_grad_() for t in case.tensors(dtype, device))


def distances(x, w, index, metric):
    """Of the units that were found, by operators that torch differentiates."""
    x, w = x[:, None], w[index]
    if metric == "manhattan":
        return (x - w).abs().sum(-1)
    if metric == "euclidean":
        return (x - w).square().sum(-1).sqrt()
    return 1 - (x * w).sum(-1) / (x.square().sum(-1) * w.square().sum(-1)).sqrt()


def written_out(x, w, k, metric):
    with torch.no_grad():
        index = measures(x, w, metric).argsort(dim=1)[:, :k]
    return distances(x, w, index, metric)


# -- derivatives ------------------------------------------------------------------------------------------------------
@every_metric
@drawn(8, of=Search, **TINY)
def test_gradcheck_and_gradgradcheck(device, metric, case):
    leaves = both(case, device)
    function = lambda x, w: bmu(x, w, case.most, metric)[0]  # noqa: E731
    if metric == "cosine" and case.features == 1:
        return  # (all angles are 0 or pi: a kink)
    forward = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, leaves, **forward)
    assert gradgradcheck(lambda *t: function(*t).sin(), leaves, check_fwd_over_rev=True, check_batched_grad=True)


@every_dtype
@every_metric
@drawn(20, of=Search, **{**SPACE, "samples": [0, 1, 5, 49], "features": [1, 2, 9, 33]})
def test_gradients_written_out(device, dtype, metric, case):
    """Against those of float64, of distances computed from the chosen units; many samples share a unit."""
    if metric == "cosine" and case.features == 1:
        return
    leaves = dict(zip(("input", "codebook"), both(case, device, dtype), strict=True))
    found, index = bmu(*leaves.values(), case.most, metric)
    wide = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    expected = distances(*wide.values(), index.reshape(-1, case.most), metric)
    if bool((expected == 0).any()):
        return  # (has a test of its own)
    found = with_gradients({"y": found}, leaves)
    expected = with_gradients({"y": expected.reshape(found["y"].shape)}, wide)
    # an angle is a difference of directions: its rounding is in units of 1 / |x|
    sizes = [t.detach().norm(dim=1) for t in wide.values() if len(t)]
    least = 1 / min(float(s.min()) for s in sizes) if metric == "cosine" else 1e-3
    for name, t in found.items():
        assert t.dtype == dtype and t.shape == expected[name].shape
        assert distance(t, expected[name], least) <= 8 * torch.finfo(dtype).eps, name


@every_metric
@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("k", [1, 3])
def test_one_gradient_by_itself(device, metric, wanted, k):
    leaves = both(Search(), device)
    expected = torch.autograd.grad(bmu(*leaves, k, metric)[0].sin().sum(), leaves[wanted])
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(leaves)]
    found, index = bmu(*alone, k, metric)
    assert found.requires_grad and not index.requires_grad
    assert torch.equal(torch.autograd.grad(found.sin().sum(), alone[wanted])[0], expected[0])


@every_metric
@pytest.mark.parametrize("k", [1, 2])
def test_all_derivatives_are_zero_where_a_distance_is(device, metric, k):
    """A sample that is a unit, and with the cosine one of no length."""
    codebook = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0], [0.0, 0.0, 0.0]], device=device, dtype=torch.float64)
    input = (codebook[2:] if metric == "cosine" else codebook[1:2]).repeat(5, 1).requires_grad_()
    codebook.requires_grad_()
    found = bmu(input, codebook, k, metric)[0].reshape(5, k)[:, 0]
    first = torch.autograd.grad(found.sum(), (input, codebook), create_graph=True)
    assert not any(t.any() for t in first)
    plain = torch.autograd.grad(bmu(input, codebook, k, metric)[0].reshape(5, k)[:, 0].sum(), (input, codebook))
    assert not any(t.any() for t in plain)
    second = torch.autograd.grad(sum(t.sin().sum() for t in first), (input, codebook), allow_unused=True)
    assert all(t is None or not t.any() for t in second)  # (NaN is true)
    of_one = hessian(lambda x: bmu(x[None], codebook.detach(), 1, metric)[0].sum())(input[0].detach())
    assert not of_one.any()
    tangent = jvp(lambda x: bmu(x, codebook.detach(), 1, metric)[0], (input.detach(),), (torch.ones_like(input),))[1]
    assert not tangent.any()


@every_metric
def test_a_sample_with_nan_keeps_it_to_itself(device, metric):
    input, codebook = both(Search(12, 6, 4), device, torch.float32)
    with torch.no_grad():
        input[3, 1] = math.nan
    gradient = torch.autograd.grad(bmu(input, codebook, 2, metric)[0].sum(), input)[0]
    assert gradient[3].isnan().any() == (metric != "manhattan")  # (torch's sign of NaN is 0)
    assert not gradient[[0, 1, 2, *range(4, 12)]].isnan().any()


@every_metric
def test_transforms(device, metric):
    input, codebook = Search(6, 5, 4).tensors(device=device)
    codebook = codebook + 3
    found = []
    for where in (lambda x, w: bmu(x, w, 2, metric)[0], lambda x, w: written_out(x, w, 2, metric)):

        def scalar(x, w, where=where):
            return where(x, w).sin().sum()

        made = [grad(scalar, (0, 1))(input, codebook), hessian(scalar, (0, 1))(input, codebook)]
        made += [jacrev(where)(input, codebook)]
        made += [jvp(grad(scalar), (input, codebook), (codebook[:1].expand(6, 4), codebook))]
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(made))})
    assert_equal(*found, tolerance=1e-9)


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, None), (2, 1), (None, 2)], ids=str)
@every_metric
@pytest.mark.parametrize("k", [1, 3])
def test_vmap(device, dims, metric, k):
    shapes = [(3, 6, 5), (3, 7, 5)]
    given = [torch.randn(s if d is not None else s[1:], device=device) for s, d in zip(shapes, dims, strict=True)]
    turned = [t if d is None else t.movedim(0, d) for t, d in zip(given, dims, strict=True)]
    found = vmap(lambda x, w: bmu(x, w, k, metric), dims)(*turned)
    parts = [[t if d is None else t[i] for t, d in zip(given, dims, strict=True)] for i in range(3)]
    expected = [torch.stack(column) for column in zip(*(bmu(*p, k, metric) for p in parts), strict=True)]
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    gradient = vmap(grad(lambda x, w: bmu(x, w, k, metric)[0].sum()), dims)(*turned)
    assert gradient.shape == (3, 6, 5)
    one = grad(lambda x: bmu(x, parts[1][1], k, metric)[0].sum())(parts[1][0])
    torch.testing.assert_close(gradient[1], one)


# -- tracing ----------------------------------------------------------------------------------------------------------
@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_opcheck(device, metric, dtype):
    input, codebook = both(Search(9, 7, 5, layout="columns"), device, dtype)
    low = {"atol": 0.05, "rtol": 0.05} if dtype in LOW else {}
    torch.library.opcheck(op, (input, codebook, 3, metric), **low)


def test_opcheck_of_empties(device):
    torch.library.opcheck(op, (torch.randn(0, 4, device=device), torch.randn(3, 4, device=device), 2, "euclidean"))
    torch.library.opcheck(op, (torch.randn(4, 0, device=device), torch.randn(3, 0, device=device), 2, "cosine"))


@pytest.mark.parametrize("k", [1, 2])
def test_compile_with_shapes_that_change(device, k):
    def block(x, w):
        found, index = bmu(x.sin(), w, k, "euclidean")
        return found.cos(), index + 1

    fast, counter = compiled(block, dynamic=True)
    for samples, units, features in ((6, 5, 4), (9, 8, 7), (12, 10, 11)):
        leaves = dict(zip("xw", both(Search(samples, units, features), device), strict=True))
        results = [f(*leaves.values()) for f in (fast, block)]
        assert torch.equal(results[0][1], results[1][1])
        assert_equal(*(with_gradients({"y": r[0]}, leaves) for r in results))
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export(device, strict):
    class Quantizer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.codebook = torch.nn.Parameter(torch.randn(7, 4, device=device))

        def forward(self, x):
            return bmu(x, self.codebook)

    module, x = Quantizer(), torch.randn(5, 4, device=device)
    shapes = ({0: torch.export.Dim("samples", min=2, max=64)},)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=strict)
    assert op in [node.target for node in program.graph.nodes]
    longer = torch.randn(11, 4, device=device)
    for found, expected in zip(program.module()(longer), module(longer), strict=True):
        assert torch.equal(found, expected)


def test_meta():
    for k, shape in ((1, (6,)), (3, (6, 3))):
        found, index = bmu(torch.empty(6, 4, device="meta", dtype=torch.bfloat16), torch.empty(5, 4, device="meta"), k)
        assert found.shape == index.shape == shape and found.is_meta and index.is_meta
        assert found.dtype == torch.float32 and index.dtype == torch.int64


@pytest.mark.parametrize("dtype", LOW, ids=str)
@every_metric
def test_gradients_of_large_values_in_low_precision(device, dtype, metric):
    """Norms whose product float16 does not hold."""
    input, codebook = (t.detach() * 50 for t in both(Search(20, 6, 40), device))
    found = []
    for of in (dtype, torch.float64):
        leaves = [t.to(dtype).to(of).requires_grad_() for t in (input, codebook)]
        found.append(torch.autograd.grad(bmu(*leaves, 2, metric)[0].sum(), leaves))
    for ours, truth in zip(*found, strict=True):
        assert distance(ours, truth) <= 4 * torch.finfo(dtype).eps


def test_fake_and_real_agree(device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    input, codebook = Search().tensors(torch.float16, device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = bmu(input, codebook, 3)
    for f, real in zip(fake, bmu(input, codebook, 3), strict=True):
        assert (f.shape, f.stride(), f.dtype, f.device) == (real.shape, real.stride(), real.dtype, real.device)


# -- errors -----------------------------------------------------------------------------------------------------------
X, W = torch.randn(6, 4), torch.randn(5, 4)
CODEBOOK = "[bmu] expected codebook of shape [units, 4] like the input of shape [6, 4], got "
DTYPE = "[bmu] expected input of dtype float32, float64, bfloat16 or float16, got "
WRONG = [
    ((X[0], W), RuntimeError, "[bmu] expected input of shape [samples, features], got [4]"),
    ((X[None], W), RuntimeError, "[bmu] expected input of shape [samples, features], got [1, 6, 4]"),
    ((X, W[0]), RuntimeError, CODEBOOK + "[4]"),
    ((X, W[:, :3]), RuntimeError, CODEBOOK + "[5, 3]"),
    ((X, W[:0]), RuntimeError, "[bmu] expected a codebook of 1 to 268435455 units, got 0"),
    ((X.int(), W), RuntimeError, DTYPE + "Int"),
    ((X, W.int()), RuntimeError, "[bmu] expected codebook of dtype Float like the input, got Int"),
    ((X.cfloat(), W.cfloat()), RuntimeError, DTYPE + "ComplexFloat"),
    ((X, W, 0), ValueError, "[bmu] expected k from 1 to 5 for 5 units, got 0"),
    ((X, W, -1), ValueError, "[bmu] expected k from 1 to 5 for 5 units, got -1"),
    ((X, W, 6), ValueError, "[bmu] expected k from 1 to 5 for 5 units, got 6"),
    ((X, W.repeat(4, 1), 9), ValueError, "[bmu] expected k from 1 to 8 for 20 units, got 9"),
    ((X, W, 1, "chebyshev"), ValueError, '[bmu] expected metric "euclidean", "cosine" or "manhattan", got "chebyshev"'),
    ((X, W.to("meta")), RuntimeError, "[bmu] expected codebook on cpu like the input, got meta"),
]  # fmt: skip


@pytest.mark.parametrize("given, kind, text", WRONG, ids=lambda v: v[:50] if isinstance(v, str) else "")
def test_errors(cpu_only, given, kind, text):
    with pytest.raises(kind, match="^" + re.escape(text)):
        bmu(*given)
    wanting = (t.detach().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t for t in given)
    with pytest.raises(kind, match="^" + re.escape(text)):
        bmu(*wanting)


def test_sparse_and_other_things_are_refused(cpu_only):
    for given in ((X.to_sparse(), W), (X, W.to_sparse()), (X.tolist(), W), (X, None), (X, W, 1.5), (X, W, 1, None)):
        kind, _ = outcome(lambda g=given: bmu(*g))
        assert issubclass(kind, (RuntimeError, TypeError, AttributeError))  # (and the process lives)


def test_all_metrics_are_told_apart(device):
    """(Else a test over them would show nothing.)"""
    input, codebook = Search(200, 50, 6).tensors(device=device)
    found = [bmu(input, codebook, 1, metric)[1] for metric in METRICS]
    assert all((a != b).any() for a, b in ((found[0], found[1]), (found[1], found[2]), (found[0], found[2])))
