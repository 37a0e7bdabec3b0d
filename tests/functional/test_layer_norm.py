"""layer_norm against its twin in float64 and against torch; its operators as PyTorch sees them; the module."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

import pykernels
from pykernels import functional, reference
from tests.helpers import (
    LOW,
    SEED,
    assert_equal,
    assert_no_worse,
    assert_same_bits,
    distance,
    drawn,
    outcome,
    with_gradients,
)

from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
normalize = functional.layer_norm
forward, backward = torch.ops.pykernels.layer_norm_forward.default, torch.ops.pykernels.layer_norm_backward.default
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dataclasses.dataclass(frozen=True)
class Norm:
    """One problem: every tensor of it follows from these fields."""

    rows: int = 5
    columns: int = 17
    weight: str = "own"  # or "float32", "none"
    bias: bool = True
    residual: bool = True
    dropout: float = 0.0
    lead: int = 1  # dimensions before those of normalized_shape
    own: int = 1  # dimensions of normalized_shape
    eps: float = 1e-5
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return *[1] * (self.own - 1), self.columns

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        lead = [2] * (self.lead - 1) + [self.rows] if self.lead else []
        made = {"input": torch.randn(*lead, *self.shape, generator=draw, dtype=torch.float64) * 1.5 + 0.5}
        if self.residual:
            made["residual"] = torch.randn(made["input"].shape, generator=draw, dtype=torch.float64)
        if self.weight != "none":
            made["weight"] = torch.randn(self.shape, generator=draw, dtype=torch.float64) + 1
        if self.bias:
            made["bias"] = torch.randn(self.shape, generator=draw, dtype=torch.float64)
        return {n: t.to(device, self.dtype_of(n, dtype)).requires_grad_() for n, t in made.items()}

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        low = dtype in LOW and self.weight == "float32" and name in ("weight", "bias")
        return torch.float32 if low else dtype


def call(where: Any, case: Norm, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(case.seed)  # of dropout
    given = tensors["input"], case.shape, tensors.get("weight"), tensors.get("bias"), case.eps
    residual = tensors.get("residual")
    if where is F:
        total = given[0] if residual is None else residual + given[0]
        return {"y": F.layer_norm(total, *given[1:]), "total": total}
    y, total = where.layer_norm(*given, residual=residual, dropout_p=case.dropout, return_total=True)
    return {"y": y, "total": total}


def run(where: Any, case: Norm, dtype: torch.dtype, device: Any = "cpu", truth: bool = False):
    """Results and gradients; as the truth in float64, of operands rounded to `dtype`."""
    tensors = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    leaves = {n: (t.double() if truth else t).requires_grad_() for n, t in tensors.items()}
    return with_gradients(call(where, case, leaves), leaves)


def check_values(case: Norm, dtype: torch.dtype, device: Any) -> None:
    """float64: the twin's. Else at most twice torch's error (of gradients three times), with dropout the twin's."""
    ours = run(functional, case, dtype, device)
    if dtype == torch.float64:
        assert_equal(ours, run(reference, case, dtype, device), 1e-11)
        return
    peer = run(reference if case.dropout else F, case, dtype, device)
    assert_no_worse(ours, peer, run(reference, case, dtype, device, truth=True))


WIDTHS = [0, 1, *range(2, 36), 47, 48, 49, 63, 64, 65, 96, 127, 128, 129, 255, 257, 512, 513, 1000]
SPACE: dict[str, Any] = {
    "rows": [0, 1, 2, 3, 5, 16, 33, 130],
    "columns": WIDTHS,
    "weight": ["own", "float32", "none"],
    "bias": [False, True],
    "residual": [False, True],
    "dropout": [0.0, 0.0, 0.3, 0.9],
    "lead": (0, 3),
    "own": (1, 3),
    "eps": [1e-5, 1e-3],
    "seed": SEED,
}
TINY = {**SPACE, "rows": (1, 3), "columns": (2, 5)}
FULL = Norm(dropout=0.3)


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
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(X.to(device)), theirs(X.to(device)))


def test_module_drops_while_training_only(device):
    module, x = pykernels.LayerNorm(6, device=device), X.to(device)
    y, total = module.eval()(x, x, dropout_p=0.5, return_total=True)
    assert torch.equal(total, 2 * x) and torch.equal(y, module(2 * x))
    assert (module.train()(x, x, dropout_p=0.9, return_total=True)[1] == x).any()
