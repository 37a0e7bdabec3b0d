"""`layer_norm` as PyTorch sees it: derivatives, transforms, tracing, errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

from pykernels import functional, reference
from tests.helpers import (
    assert_equal,
    drawn,
    outcome,
    with_gradients,
)

from .compiling import compiled, forget_what_was_compiled
from .layer_norm_cases import FULL, TINY, Norm, call, every_dtype

assert forget_what_was_compiled  # around every test
normalize = functional.layer_norm
forward, backward = torch.ops.pykernels.layer_norm_forward.default, torch.ops.pykernels.layer_norm_backward.default


# -- derivatives ------------------------------------------------------------------------------------------------------
def as_function(case: Norm, names, where=functional):
    return lambda *values: tuple(call(where, case, dict(zip(names, values, strict=True))).values())


@drawn(6, of=Norm, **TINY)
def test_gradcheck_and_gradgradcheck(device, case):
    leaves = case.tensors(device=device)
    function = as_function(case, leaves)
    if not case.residual and not case.dropout:
        function = lambda *values: as_function(case, leaves)(*values)[0]  # noqa: E731  (the total is the input)
    assert gradcheck(function, tuple(leaves.values()), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tuple(leaves.values()), check_fwd_over_rev=True)


@pytest.mark.parametrize("of", ["y", "total"])
@pytest.mark.parametrize("wanted", ["input", "residual", "weight", "bias"])
def test_each_gradient_by_itself(device, wanted, of):
    found = []
    for where in (functional, reference):
        leaves = {n: t.detach().requires_grad_(n == wanted) for n, t in FULL.tensors(device=device).items()}
        result = call(where, FULL, leaves)[of]
        loss = result.sin().sum() + 0 * leaves[wanted].sum()  # to the total no gradient of a weight goes
        found.append({"": torch.autograd.grad(loss, leaves[wanted])[0]})
    assert_equal(*found)


@drawn(10, of=Norm, **{**TINY, "dropout": [0.0]})
def test_transforms_are_the_twins(device, case):
    tensors = {n: t.detach() for n, t in case.tensors(device=device).items()}
    tangents = tuple(torch.randn_like(t) for t in tensors.values())
    found = []
    for where in (functional, reference):
        function = as_function(case, tensors, where)
        scalar = lambda *v, f=function: sum(r.sin().sum() for r in f(*v))  # noqa: E731
        values = tuple(tensors.values())
        made = (jvp(function, values, tangents), grad(scalar, argnums=tuple(range(len(values))))(*values),
                hessian(scalar)(*values), jacrev(function)(*values))  # fmt: skip
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(made))})
    assert_equal(*found, 1e-10)


@pytest.mark.parametrize("batched", [["input"], ["input", "residual"], ["residual", "weight"], ["bias"]], ids=str)
def test_vmap_is_a_loop(device, batched):
    tensors = {n: t.detach() for n, t in Norm().tensors(device=device).items()}
    values = [torch.stack([t, 2 * t, t + 1]) if n in batched else t for n, t in tensors.items()]
    dims = tuple(0 if n in batched else None for n in tensors)
    single = [[v[i] if d == 0 else v for v, d in zip(values, dims, strict=True)] for i in range(3)]
    function = as_function(Norm(), tensors)
    for one in (function, grad(lambda *v: function(*v)[0].sin().sum(), argnums=(0, 1, 2, 3))):
        expected = [torch.stack(r) for r in zip(*(one(*s) for s in single), strict=True)]
        torch.testing.assert_close(list(vmap(one, in_dims=dims)(*values)), expected)


def test_vmap_with_dropout(device):
    x = torch.ones(3, 4, 50, device=device)
    for randomness, same in (("same", True), ("different", False)):
        run = vmap(lambda x: normalize(x, [50], dropout_p=0.5, return_total=True)[1], randomness=randomness)
        found = run(x)
        assert torch.equal(found[0], found[1]) is same and 0 < (found == 0).sum() < x.numel()


OPERATORS = [Norm(2, 6, dropout=0.3, lead=2, own=2), Norm(), Norm(residual=False, weight="none"), Norm(bias=False)]


@pytest.mark.parametrize("case", OPERATORS, ids=str)
def test_opcheck(device, case):
    leaves, seed = case.tensors(device=device), torch.tensor([7]) if case.dropout else None
    operands, numbers = [leaves.get(n) for n in ("input", "residual", "weight", "bias")], (case.dropout, 1e-5)
    torch.library.opcheck(forward, (*operands, seed, case.shape, *numbers))
    out, total, stats = (t.detach() for t in forward(*operands, seed, case.shape, *numbers))
    assert stats.shape == (*out.shape[: case.lead], 2)
    assert total.shape == (out.shape if case.residual or case.dropout else (0,))
    total = total if total.numel() else leaves["input"].detach()
    grads = torch.randn_like(out).requires_grad_(), torch.randn_like(out)
    for pair in (grads, (grads[0], None), (None, grads[1])):
        for needs in ((True, True), (False, True), (False, False)):
            args = (*pair, total, stats, *operands[2:], seed, case.shape, *numbers, *needs)
            torch.library.opcheck(backward, args, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(backward, (*grads, total, stats, *operands[2:], seed, case.shape, *numbers, True, True))


@every_dtype
def test_fake_results_are_the_real_ones(device, dtype):
    leaves = [t.detach() for t in Norm(4, 6, "float32", lead=2, own=2).tensors(dtype, device).values()]
    meta = [t.to("meta") for t in leaves]
    real, fake = (forward(*ts, None, (1, 6), 0.0, 1e-5) for ts in (leaves, meta))
    grads = [(ts[0], None, r[1], r[2], *ts[2:]) for ts, r in ((leaves, real), (meta, fake))]
    for needs in ((True, True), (True, False)):
        given = (backward(*g, None, (1, 6), 0.0, 1e-5, *needs) for g in grads)
        for a, b in zip((*real, *next(given)), (*fake, *next(given)), strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


# -- tracing ----------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    def forward(self, x, r, w, b):
        return normalize(x.sin(), [24], w, b, residual=r, return_total=True)


def test_compile_with_shapes_that_change(device):
    fast, counter = compiled(Block())
    counts = []
    for rows in (4, 6, 9, 12):
        leaves = Norm(rows, 24, lead=2).tensors(device=device)
        found, expected = (dict(zip(("y", "total"), f(*leaves.values()), strict=True)) for f in (fast, Block()))
        assert_equal(with_gradients(found, leaves), with_gradients(expected, leaves))
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[-1] == counts[1] <= 2, counts


def test_inductor(cpu_only):
    given = [t.detach() for t in Norm(4, 24).tensors().values()]
    torch.testing.assert_close(compiled(Block(), "inductor")[0](*given), Block()(*given))


def test_compiled_dropout(device):
    x = torch.ones(20, 64, device=device, requires_grad=True)
    fast, _ = compiled(lambda x: normalize(x, [64], dropout_p=0.5, return_total=True)[1])
    first, second = fast(x), fast(x)
    assert not torch.equal(first, second) and 0 < (first == 0).sum() < x.numel()
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], first)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export(device, strict):
    given = tuple(t.detach() for t in Norm(4, 24).tensors(device=device).values())
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(Block(), given, dynamic_shapes=({0: rows}, {0: rows}, None, None), strict=strict)
    assert forward in [node.target for node in program.graph.nodes]
    longer = (*torch.randn(2, 11, 24, dtype=torch.float64, device=device), *given[2:])
    for found, expected in zip(program.module()(*longer), Block()(*longer), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_torchs_dtypes(device, given):
    found = []
    for function in (normalize, F.layer_norm):
        leaves = Norm(residual=False).tensors(torch.float32, device)
        with torch.autocast(device.type, torch.bfloat16):
            y = function(leaves["input"].to(given), [17], leaves["weight"], leaves["bias"])
        gradients = torch.autograd.grad(y.float().square().sum(), list(leaves.values()))
        found.append([t.dtype for t in (y, *gradients)])
    assert found[0] == found[1]


def test_meta_tensors_tell_shapes(cpu_only):
    x = torch.empty(3, 4, 6, device="meta", dtype=torch.bfloat16, requires_grad=True)
    y, total = normalize(x, [4, 6], residual=x, dropout_p=0.5, return_total=True)
    assert y.shape == total.shape == x.shape and y.dtype == x.dtype and y.is_meta and total.is_meta
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


# -- errors -----------------------------------------------------------------------------------------------------------
X, W = torch.randn(3, 4, 6), torch.randn(6)
SAME_AS_TORCH = {
    "no shape": lambda f: f(X, []),
    "shape": lambda f: f(X, [5]),
    "shapes": lambda f: f(X, [3, 6]),
    "too many": lambda f: f(X, [2, 3, 4, 6]),
    "weight": lambda f: f(X, [6], torch.randn(5)),
    "bias": lambda f: f(X, [4, 6], torch.randn(4, 6), torch.randn(6)),
    "weight and input": lambda f: f(X, [5], torch.randn(6)),
    "nothing": lambda f: f(torch.randn(()), [1]),
}


@pytest.mark.parametrize("what", SAME_AS_TORCH)
def test_errors_of_torch(cpu_only, what):
    found, expected = (outcome(lambda f=f: SAME_AS_TORCH[what](f)) for f in (normalize, F.layer_norm))
    assert found == expected and found is not None


SEEDED = torch.tensor([3])
OWN = {
    "dropout": (lambda: normalize(X, [6], dropout_p=1.5), "has to be between 0 and 1, but got 1.5"),
    "no number": (lambda: normalize(X, [6], dropout_p=math.nan), "has to be between 0 and 1, but got nan"),
    "residual": (lambda: normalize(X, [6], residual=X[0]), "expected residual of shape [3, 4, 6]"),
    "integers": (lambda: normalize(X.long(), [6]), "expected input of dtype float32"),
    "complex": (lambda: normalize(X.cfloat(), [6]), "expected input of dtype float32"),
    "weight's dtype": (lambda: normalize(X, [6], W.double()), "expected weight of dtype"),
    "low weight": (lambda: normalize(X, [6], None, W.half()), "expected bias of dtype"),
    "devices": (lambda: normalize(X, [6], W.to("meta")), "expected"),
    "operator's input": (lambda: forward(X, None, None, None, None, [5], 0.0, 1e-5), "input with shape [*, 5]"),
    "operator's residual": (lambda: forward(X, X[:2], None, None, None, [6], 0.0, 1e-5), "expected residual of shape"),
    "operator's dtype": (lambda: forward(X, X.half(), None, None, None, [6], 0.0, 1e-5), "expected residual of dtype"),
    "operator's weight": (lambda: forward(X, None, W[:5], None, None, [6], 0.0, 1e-5), "weight to be of same shape"),
    "no seed": (lambda: forward(X, None, None, None, None, [6], 0.5, 1e-5), "expected a seed, as dropout is 0.5"),
    "seed": (lambda: forward(X, None, None, None, SEEDED.int(), [6], 0.5, 1e-5), "seed as one int64 on the CPU"),
}  # fmt: skip


@pytest.mark.parametrize("what", OWN)
def test_errors_of_ours(cpu_only, what):
    attempt, text = OWN[what]
    with pytest.raises((RuntimeError, ValueError), match=re.escape(text)):
        attempt()


@pytest.mark.parametrize("place", range(5), ids=["grad_out", "grad_total", "total", "stats", "weight"])
def test_errors_of_the_backward(cpu_only, place):
    given = [torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 2), W]
    for change in (lambda t: t[:1], lambda t: t.long(), lambda t: torch.cat([t, t])):
        changed = [change(t) if i == place else t for i, t in enumerate(given)]
        with pytest.raises(RuntimeError, match=r"\[layer_norm\] expected|to be of same shape as normalized_shape"):
            backward(*changed, None, None, [6], 0.0, 1e-5, True, True)
