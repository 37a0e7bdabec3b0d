"""`dot_attention` and its module against the equations, torch, and what PyTorch does with functions."""

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
from torch.func import grad, vmap

import pykernels
from pykernels import functional, reference
from tests.helpers import LOW, SEED, assert_no_worse, assert_same_bits, drawn, python, with_gradients

from .attention_cases import assert_equal
from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
forward, weigh = torch.ops.pykernels.attention_forward.default, torch.ops.pykernels.attention_weights.default
DTYPES = [torch.float64, torch.float32, *LOW]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FLAG = [False, True]


@dataclasses.dataclass(frozen=True)
class Dot:
    batch: int = 2
    rows: int = 3
    keys: int = 5
    query_size: int = 6
    memory_size: int = 4
    attention_size: int = 7
    weights: str = "both"  # or "query", "memory", "none", "keys" (at hand)
    mask: str = "none"  # or the dimensions of it that are not broadcast
    lengths: str = "none"  # or "some", "zeros"
    scale: float = 1.0
    seed: int = 0

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        d, e, a = self.query_size, self.memory_size, self.attention_size
        d, e, a = {"query": (d, e, e), "memory": (d, e, d), "none": (e, e, e)}.get(self.weights, (d, e, a))
        shapes = {"query": (self.batch, self.rows, d), "memory": (self.batch, self.keys, e)}
        shapes |= {"query_weight": (a, d)} if self.weights in ("both", "query", "keys") else {}
        shapes |= {"memory_weight": (a, e)} if self.weights in ("both", "memory") else {}
        shapes |= {"keys": (self.batch, self.keys, a)} if self.weights == "keys" else {}
        made = {n: torch.randn(s, generator=draw, dtype=torch.float64) / math.sqrt(s[-1]) for n, s in shapes.items()}
        return {n: t.to(device, dtype).requires_grad_() for n, t in made.items()}

    def options(self, device: Any = "cpu") -> dict[str, Any]:
        draw, found = torch.Generator().manual_seed(self.seed), {"scale": self.scale}
        if self.lengths != "none":
            lengths = torch.randint(self.keys + 1, (self.batch,), generator=draw)
            found["lengths"] = (lengths * 0 if self.lengths == "zeros" else lengths).to(device)
        if self.mask != "none":
            full = {"B": self.batch, "L": self.rows, "S": self.keys}
            shape = [size if name in self.mask else 1 for name, size in full.items()]
            shape = shape[1:] if "B" not in self.mask and self.seed % 2 else shape
            found["mask"] = (torch.rand(shape, generator=draw) > 0.3).to(device)
        return found


def attend(where: Any, case: Dot, leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    options = case.options(leaves["query"].device)
    context, weights = where.dot_attention(**leaves, **options, return_weights=True)
    return {"context": context, "weights": weights}


def run_dot(where: Any, case: Dot, dtype: torch.dtype, device: Any = "cpu", truth: bool = False):
    leaves = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    leaves = {n: (t.double() if truth else t).requires_grad_() for n, t in leaves.items()}
    return with_gradients(attend(where, case, leaves), leaves)


DOT: dict[str, Any] = {
    "batch": (1, 3),
    "rows": [1, 2, 3, 4, 5, 17, 40],  # L < S and L >= S: two ways of computing
    "keys": [1, 2, 3, 4, 5, 16, 33, 65],
    "query_size": [1, 6, 17],
    "memory_size": [1, 4, 16, 33],
    "attention_size": [1, 7, 20],
    "weights": ["both", "both", "query", "memory", "none", "keys"],
    "mask": ["none", "none", "BLS", "LS", "BS", "S", "BL", ""],
    "lengths": ["none", "some", "some", "zeros"],
    "scale": [1.0, 0.3, -0.5],
    "seed": SEED,
}
FEW = {**DOT, "batch": (1, 2), "rows": [1, 3, 4], "keys": [1, 3, 5], "query_size": [2], "memory_size": [3],
       "attention_size": [2]}  # fmt: skip


@drawn(120, of=Dot, **DOT)
def test_dot_attention_is_its_twin(device, case):
    assert_equal(
        run_dot(functional, case, torch.float64, device), run_dot(reference, case, torch.float64, device), 1e-11
    )
    leaves = case.tensors(device=device)
    context = functional.dot_attention(**leaves, **case.options(device))
    assert torch.equal(context, attend(functional, case, leaves)["context"])


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@drawn(40, of=Dot, **{**DOT, "keys": [5, 16, 33, 65], "memory_size": [4, 16, 33], "attention_size": [7, 20]})
def test_dot_attention_is_as_exact_as_its_twin(device, dtype, case):
    found = run_dot(functional, case, dtype, device), run_dot(reference, case, dtype, device)
    assert_no_worse(*found, run_dot(reference, case, dtype, device, truth=True), floor=48)


def test_lengths_are_the_examples_by_themselves(device):
    """And what lies beyond them is not read."""
    for rows in (3, 9):
        leaves = {n: t.detach() for n, t in Dot(3, rows, 8).tensors(device=device).items()}
        lengths = torch.tensor([8, 3, 0], device=device)
        clean = functional.dot_attention(**leaves, lengths=lengths, return_weights=True)
        leaves["memory"][1, 3:], leaves["memory"][2] = math.nan, math.nan
        found = functional.dot_attention(**leaves, lengths=lengths, return_weights=True)
        own = leaves | {"query": leaves["query"][1:2], "memory": leaves["memory"][1:2, :3]}
        context, weights = functional.dot_attention(**own, return_weights=True)
        for t, c, o in zip(found, clean, (context, F.pad(weights, (0, 5))), strict=True):
            assert torch.equal(t, c) and not t[2].any()
            torch.testing.assert_close(t[1:2], o)


@pytest.mark.parametrize("rows", [3, 9])
def test_dot_attention_is_torchs(device, rows):
    leaves = {n: t.detach() for n, t in Dot(2, rows, 5, scale=0.4).tensors(device=device).items()}
    q, k = leaves["query"] @ leaves["query_weight"].T, leaves["memory"] @ leaves["memory_weight"].T
    expected = F.scaled_dot_product_attention(q, k, leaves["memory"], scale=0.4)
    torch.testing.assert_close(functional.dot_attention(**leaves, scale=0.4), expected)
    weights = {n: leaves[n] for n in ("query", "memory", "query_weight")}
    torch.testing.assert_close(functional.dot_attention(**weights, keys=k, scale=0.4), expected)
    ignored = functional.dot_attention(**leaves, keys=2 * k, scale=0.2)
    torch.testing.assert_close(ignored, expected, msg="memory_weight is used though keys are given")


@drawn(6, of=Dot, **FEW)
def test_dot_attention_gradcheck_and_gradgradcheck(device, case):
    leaves = case.tensors(device=device)

    def function(*values):
        return tuple(attend(functional, case, dict(zip(leaves, values, strict=True))).values())

    assert gradcheck(function, tuple(leaves.values()), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("rows", [2, 4, 60])
@every_dtype
def test_dot_attention_same_bits_for_any_number_of_threads(threads, dtype, rows):
    """What is computed here (the projections are torch's products)."""
    case = Dot(5, rows, 40, memory_size=33, weights="none", mask="BLS", lengths="some")
    found = []
    for count in (1, 2, 8):
        threads(count)
        leaves = case.tensors(dtype)
        context = functional.dot_attention(**leaves, **case.options())
        found.append(with_gradients({"context": context}, leaves) | attend(functional, case, leaves))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


class Block(nn.Module):
    def forward(self, *tensors, **options):
        return functional.dot_attention(*tensors, **options, return_weights=True)


@pytest.mark.parametrize("wanted", ["context", "weights"])
def test_compile_with_shapes_that_change(device, wanted):
    fast, counter = compiled(Block())
    counts = []
    for rows, keys in ((13, 25), (14, 27), (16, 31), (17, 32)):
        case = Dot(2, rows, keys, lengths="some", mask="BLS")
        leaves, found = case.tensors(device=device), []
        for function in (fast, Block()):
            results = dict(zip(("context", "weights"), function(*leaves.values(), **case.options(device)), strict=True))
            gradients = {"query": leaves["query"], "memory": leaves["memory"]}
            found.append(results | with_gradients({wanted: results[wanted]}, gradients))
        assert_equal(*found)
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[-1] == counts[1] <= 2, counts


def test_inductor(cpu_only):
    fast, _ = compiled(Block(), "inductor")
    given = [t.detach() for t in Dot(2, 3, 5).tensors().values()]
    torch.testing.assert_close(fast(*given), Block()(*given))


@pytest.mark.parametrize("strict", FLAG, ids=["non_strict", "strict"])
def test_export(device, strict):
    given = tuple(t.detach() for t in Dot(2, 3, 5).tensors(device=device).values())
    program = torch.export.export(Block(), given, strict=strict)
    assert weigh in [node.target for node in program.graph.nodes]
    torch.testing.assert_close(program.module()(*given), Block()(*given))


@pytest.mark.parametrize("rows", [3, 9])
def test_dot_attention_vmap_is_a_loop(device, rows):
    leaves = {n: t.detach() for n, t in Dot(2, rows, 5).tensors(device=device).items()}
    many = [torch.stack([t, t / 2, t + 1]) for t in leaves.values()]
    for one in (Block(), grad(lambda *v: Block()(*v)[0].sin().sum(), argnums=(0, 1, 2, 3))):
        expected = [torch.stack(r) for r in zip(*(one(*(t[i] for t in many)) for i in range(3)), strict=True)]
        torch.testing.assert_close(list(vmap(one)(*many)), expected)


@pytest.mark.parametrize("rows", [3, 9])
def test_autocast(device, rows):
    leaves = Dot(2, rows, 5).tensors(torch.float32, device)
    with torch.autocast(device.type, torch.bfloat16):
        context, weights = Block()(*leaves.values())
    exact = Block()(*leaves.values())
    assert context.dtype == weights.dtype == torch.bfloat16
    torch.testing.assert_close((context.float(), weights.float()), exact, rtol=0.1, atol=0.05)
    gradients = torch.autograd.grad(context.float().sum() + weights.float().square().sum(), list(leaves.values()))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


D, H, WA = torch.randn(2, 3, 6), torch.randn(2, 5, 4), torch.randn(7, 6)
dot = functional.dot_attention
ERRORS = {
    "query": (lambda: dot(D[0], H), "expected query of 3 dimensions, got 2"),
    "memory": (lambda: dot(D, H[0]), "expected memory of 3 dimensions, got 2"),
    "keys": (lambda: dot(D, H, keys=H[0]), "expected keys of 3 dimensions, got 2"),
    "sizes": (lambda: dot(D, H), "to be of one size, got 6 and 4"),
    "sizes of keys": (lambda: dot(D, H, WA, keys=H), "to be of one size, got 7 and 4"),
    "float mask": (lambda: dot(H, H, mask=torch.zeros(5, 5)), "bool, broadcast to [B, L, S], got torch.float32"),
    "mask of int": (lambda: dot(H, H, mask=torch.ones(5, 5).long()), "bool"),
    "mask's shape": (lambda: dot(H, H, mask=torch.ones(4, 5) > 0), "mask that can be broadcast to"),
    "float lengths": (lambda: dot(H, H, lengths=torch.ones(2)), "expected one dimension of integers"),
    "lengths": (lambda: dot(H, H, lengths=torch.tensor([6, 1])), "between 0 and 5, got 6"),
    "dtypes": (lambda: dot(H, H.double()), "to have the same dtype"),
    "batch": (lambda: dot(H, H[:, :3], keys=H), "expected value of shape [2, 1, 5, 4]"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_of_dot_attention(cpu_only, what):
    attempt, text = ERRORS[what]
    with pytest.raises((RuntimeError, ValueError), match=re.escape(text)):
        attempt()


# -- the module -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_first", FLAG)
@pytest.mark.parametrize("rows", [3, 8])
def test_module_is_the_function(device, rows, batch_first):
    module = pykernels.DotAttention(6, 4, 7, batch_first, 0.5, device=device, dtype=torch.float64)
    case = Dot(2, rows, 5, mask="BLS", lengths="some", scale=0.5, weights="query", attention_size=7)
    query, memory = (torch.randn(2, n, s, dtype=torch.float64, device=device) for n, s in ((rows, 6), (5, 4)))
    options = {n: v for n, v in case.options(device).items() if n != "scale"}
    expected = reference.dot_attention(query, memory, *module.parameters(), **options, scale=0.5, return_weights=True)
    turn = (lambda t: t) if batch_first else (lambda t: t.transpose(0, 1))
    for keys in (None, module.keys(turn(memory))):
        context, weights = module(turn(query), turn(memory), **options, keys=keys, need_weights=True)
        torch.testing.assert_close((turn(context), weights), expected)
        context, weights = module(turn(query), turn(memory), **options, keys=keys)
        assert weights is None
        torch.testing.assert_close(turn(context), expected[0])


def test_module_copies_and_its_text(device):
    module = pykernels.DotAttention(6, 4, device=device)
    assert {n: p.shape for n, p in module.named_parameters()} == {"query_weight": (4, 6), "memory_weight": (4, 4)}
    assert repr(module) == "DotAttention(6, 4, 4)"
    assert repr(pykernels.DotAttention(6, 4, 7, True, 2.0)) == "DotAttention(6, 4, 7, batch_first=True, scale=2.0)"
    other = pykernels.DotAttention(6, 4, device=device)
    other.load_state_dict(module.state_dict())
    args = torch.randn(3, 2, 6, device=device), torch.randn(5, 2, 4, device=device)
    expected = module(*args)[0]
    for copied in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(*args)[0], expected) and repr(copied) == repr(module)
    assert module.to(torch.bfloat16)(*(t.bfloat16() for t in args))[0].dtype == torch.bfloat16
    for sizes in ((0, 4), (6, -1), (6, 4, 0)):
        with pytest.raises(ValueError, match=re.escape("must be greater than 0, got " + ", ".join(map(str, sizes)))):
            pykernels.DotAttention(*sizes)


def test_parameters_are_glorots(device):
    module = pykernels.DotAttention(300, 200, 100, device=device)
    for weight in module.parameters():
        bound = math.sqrt(6 / sum(weight.shape))
        largest = float(weight.detach().max())
        assert 0.98 * bound < largest <= bound * (1 + 1e-6) and abs(float(weight.detach().mean())) < 0.05 * bound


@pytest.mark.parametrize("batch, rows, keys", [(2, 3, 0), (2, 0, 5), (0, 3, 5), (2, 0, 0)])
def test_module_at_its_limits(device, batch, rows, keys):
    """No states of the encoder: zeros, and gradients that are zeros."""
    module = pykernels.DotAttention(6, 4, 7, batch_first=True, device=device)
    query = torch.randn(batch, rows, 6, device=device, requires_grad=True)
    context, weights = module(query, torch.randn(batch, keys, 4, device=device), need_weights=True)
    assert context.shape == (batch, rows, 4) and weights.shape == (batch, rows, keys)
    assert keys or not context.any()
    assert all(g.isfinite().all() for g in torch.autograd.grad(context.sum(), [query, *module.parameters()]))


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_no_keys_and_many_rows(cpu_only, rows):
    """In a process of its own, which it must not end."""
    python(
        "import torch, pykernels\n"
        f"module, query = pykernels.DotAttention(6, 4), torch.randn({rows}, 2, 6, requires_grad=True)\n"
        "context, weights = module(query, torch.randn(0, 2, 4), need_weights=True)\n"
        f"assert context.shape == ({rows}, 2, 4) and weights.shape == (2, {rows}, 0) and not context.any()\n"
        "assert not torch.autograd.grad(context.sum(), query)[0].any()\n"
    )
