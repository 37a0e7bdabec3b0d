"""The attention operators as PyTorch sees them: derivatives by number, opcheck, transforms, tracing, errors."""

from __future__ import annotations

import concurrent.futures
import re

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap

from pykernels import functional, reference
from tests.helpers import LOW, assert_same_bits, outcome, python, with_gradients

from .attention_cases import FEATURES, TINY, Attention, assert_equal, call, drawn_attention, run
from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
attend = functional.scaled_dot_product_attention
forward, backward = torch.ops.pykernels.attention_forward, torch.ops.pykernels.attention_backward
EVERYTHING = Attention(2, 2, 2, 5, 6, 3, 4, "float", "HLS", "bottom-right", (4, None), 2.0, 0.7, 0.2, "keys", 5)
CASES = [
    Attention(),
    Attention(mask="bool", mask_shape="LS", causal="top-left"),
    Attention(share=2, mask="float", mask_shape="S"),
    Attention(rows=1, keys=9),
    EVERYTHING,
]
every_case = pytest.mark.parametrize("case", CASES, ids=["plain", "bool", "grouped", "one_row", "everything"])


def as_function(case: Attention, names):
    return lambda *values: tuple(call(functional, case, dict(zip(names, values, strict=True))).values())


# -- derivatives ------------------------------------------------------------------------------------------------------
@drawn_attention(25, **TINY, **FEATURES)
def test_gradcheck(device, case):
    leaves = case.tensors(device=device)
    assert gradcheck(as_function(case, leaves), tuple(leaves.values()), check_forward_ad=True, check_batched_grad=True)


@drawn_attention(12, **TINY, **FEATURES)
def test_gradgradcheck(device, case):
    leaves = case.tensors(device=device)
    assert gradgradcheck(as_function(case, leaves), tuple(leaves.values()))


@pytest.mark.parametrize("wanted", ["query", "key", "value", "mask"])
def test_each_gradient_by_itself(device, wanted):
    leaves = EVERYTHING.tensors(device=device)
    whole = with_gradients(call(functional, EVERYTHING, leaves), leaves)
    alone = {name: t.detach().requires_grad_(name == wanted) for name, t in leaves.items()}
    found = with_gradients(call(functional, EVERYTHING, alone), {wanted: alone[wanted]})
    assert torch.equal(found[f"grad {wanted}"], whole[f"grad {wanted}"])


@pytest.mark.parametrize("of", ["y", "lse"])
def test_gradient_of_one_result(device, of):
    found = []
    for where in (functional, reference):
        leaves = EVERYTHING.tensors(device=device)
        found.append(with_gradients({of: call(where, EVERYTHING, leaves)[of]}, {"query": leaves["query"]}))
    assert_equal(*found)


def test_changed_operands_are_noticed(device):
    leaves = {name: t.detach().clone() for name, t in Attention().tensors(device=device).items()}
    given = [t.requires_grad_() for t in leaves.values()]
    y = attend(*given)
    with torch.no_grad():
        given[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_checkpoint_and_hooks(device):
    """What is saved passes through the hooks, dropout included."""
    leaves = EVERYTHING.tensors(device=device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        results = call(functional, EVERYTHING, leaves)
    assert len(kept) >= 6
    plain = with_gradients(call(functional, EVERYTHING, leaves), leaves)
    assert_same_bits(with_gradients(results, leaves), plain)


# -- operators --------------------------------------------------------------------------------------------------------
def operands(case: Attention, device, grad: bool = True):
    leaves = {n: t.detach().requires_grad_(grad) for n, t in case.tensors(torch.float32, device).items()}
    options = case.options(device)
    rows, keys = options.get("lengths", (None, None))
    seed = torch.tensor([case.seed]) if case.dropout else None
    left, right = (-1 if n is None else n for n in case.window or (None, None))
    mask = options.get("attn_mask", leaves.get("mask"))
    tensors = (leaves["query"], leaves["key"], leaves["value"], mask, rows, keys, seed)
    right = 0 if case.causal else right
    return tensors, (case.scale, case.softcap or 0.0, case.dropout, left, right, case.causal == "bottom-right")


@every_case
def test_opcheck_forward(device, case):
    tensors, numbers = operands(case, device)
    torch.library.opcheck(forward.default, (*tensors, *numbers))


@every_case
def test_opcheck_backward(device, case):
    tensors, numbers = operands(case, device)
    out, lse = (t.detach() for t in forward(*tensors, *numbers))
    grads = torch.randn_like(out), torch.where(lse.isinf(), 0.0, torch.randn_like(lse))
    for needs in ((True, True, True, True), (False, True, False, False)):
        torch.library.opcheck(backward.default, (*grads, *tensors, out, lse, *numbers, *needs))


@every_case
def test_vmap(device, case):
    """Over all operands, and over the query alone."""
    drawn = [{n: t.detach() for n, t in Attention(**{**vars(case), "seed": s}).tensors(device=device).items()}
             for s in (case.seed, case.seed + 2, case.seed + 4)]  # fmt: skip
    stacked = {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]}
    names = list(stacked)
    tensors, numbers = operands(case, device)

    def one(*values):
        leaves = dict(zip(names, values, strict=True))
        mask = leaves.get("mask", tensors[3])
        return forward(leaves["query"], leaves["key"], leaves["value"], mask, *tensors[4:], *numbers)

    for found, expected in zip(
        vmap(one)(*stacked.values()),
        map(torch.stack, zip(*(one(*d.values()) for d in drawn), strict=True)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    rest = [drawn[0][name] for name in names[1:]]
    found = vmap(lambda q: one(q, *rest)[0])(stacked["query"])
    torch.testing.assert_close(found, torch.stack([one(d["query"], *rest)[0] for d in drawn]))

    def gradient(*values):
        return torch.func.grad(lambda *v: one(*v)[0].square().sum(), argnums=tuple(range(len(names))))(*values)

    each = [gradient(*d.values()) for d in drawn]
    for found, expected in zip(
        vmap(gradient)(*stacked.values()), map(torch.stack, zip(*each, strict=True)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@every_case
def test_forward_mode(device, case):
    leaves = {name: t.detach() for name, t in case.tensors(device=device).items()}
    tangents = tuple(torch.randn_like(t) for t in leaves.values())
    found = [
        jvp(lambda *v, where=where: tuple(call(where, case, dict(zip(leaves, v, strict=True))).values()),
            tuple(leaves.values()), tangents)
        for where in (functional, reference)
    ]  # fmt: skip
    for ours, theirs in zip(found[0], found[1], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


# -- tracing ----------------------------------------------------------------------------------------------------------
@every_case
def test_compile_with_shapes_that_change(device, case):
    options = {**case.options(device), "lengths": None, "dropout_p": 0.0}
    options.pop("attn_mask", None)

    def model(q, k, v, mask):
        return attend(q * 2, k, v, mask, **options)[0].sin()

    fast, counter = compiled(model)
    counts = []
    for rows in (case.rows, case.rows + 2, case.rows + 5):
        problem = Attention(**{**vars(case), "rows": rows, "keys": rows + 1, "lengths": "none"})
        leaves = problem.tensors(device=device)
        mask = problem.options(device).get("attn_mask", leaves.get("mask"))
        given = (leaves["query"], leaves["key"], leaves["value"], mask)
        assert_equal(with_gradients({"y": fast(*given)}, leaves), with_gradients({"y": model(*given)}, leaves))
        counts.append(counter.frame_count)
    assert counts[0] == 1 and counts[-1] <= 2, counts


def test_inductor(cpu_only):
    def model(q, k, v):
        return attend(q.sin(), k, v, is_causal=True, dropout_p=0.0).square().mean()

    fast, _ = compiled(model, "inductor")
    leaves = Attention(rows=7).tensors(torch.float32)
    found, expected = (with_gradients({"y": f(*leaves.values())}, leaves) for f in (fast, model))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


def test_compiled_dropout_draws_from_the_generator(cpu_only):
    leaves = Attention(rows=9, keys=40).tensors(torch.float32)
    fast, _ = compiled(lambda q, k, v: attend(q, k, v, dropout_p=0.5))
    torch.manual_seed(3)
    first, second = fast(*leaves.values()), fast(*leaves.values())
    assert not torch.equal(first, second)


class Block(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return attend(q, k, v, mask, is_causal=True, return_lse=True)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export(device, strict):
    leaves = [
        t.detach() for t in Attention(mask="float", mask_shape="LS", rows=6, keys=6).tensors(device=device).values()
    ]
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = ({2: length}, {2: length}, {2: length}, {2: length, 3: length})
    leaves[3] = leaves[3].expand(1, 1, 6, 6)
    program = torch.export.export(Block(), tuple(leaves), dynamic_shapes=shapes, strict=strict)
    assert forward.default in [node.target for node in program.graph.nodes]
    longer = [torch.randn(2, 2, 11, 8, dtype=torch.float64, device=device) for _ in range(3)]
    longer.append(torch.randn(1, 1, 11, 11, dtype=torch.float64, device=device))
    for found, expected in zip(program.module()(*longer), Block()(*longer), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast(device, dtype):
    leaves = Attention(mask="float", mask_shape="LS").tensors(torch.float32, device)
    with torch.autocast(device.type, dtype):
        y = attend(*leaves.values())
        peer = F.scaled_dot_product_attention(*leaves.values())
    assert y.dtype == peer.dtype == dtype
    cast = [t.to(dtype) for t in list(leaves.values())[:3]]
    assert torch.equal(y, attend(*cast, leaves["mask"]))
    assert torch.autograd.grad(y.float().sum(), leaves["key"])[0].dtype == torch.float32


# -- many at once -----------------------------------------------------------------------------------------------------
def test_many_python_threads(cpu_only):
    case = Attention(2, 2, 1, 130, 200, 16, 16, causal="top-left")
    expected = run(functional, case, torch.float32)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: run(functional, case, torch.float32), range(16)):
            assert_same_bits(found, expected)


def test_after_a_fork(cpu_only):
    python(
        "import os, torch, pykernels\n"
        "q = torch.randn(1, 2, 200, 16, requires_grad=True)\n"
        "f = lambda: torch.autograd.grad(pykernels.functional.scaled_dot_product_attention(q, q, q).sum(), q)[0]\n"
        "here = f()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    same = torch.equal(f(), here)\n"
        "    os._exit(0 if same else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )


def test_memory_grows_with_the_length(cpu_only):
    """A training step at L = 16384, two heads of 64: the scores alone would be 2 GB."""
    done = python(
        "import resource, torch, pykernels\n"
        "q, k, v = (torch.randn(1, 2, 16384, 64).requires_grad_() for _ in range(3))\n"
        "g = torch.randn(1, 2, 16384, 64)\n"
        "few = torch.randn(1, 2, 256, 64, requires_grad=True)\n"
        "pykernels.functional.scaled_dot_product_attention(few, few, few).sum().backward()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "y = pykernels.functional.scaled_dot_product_attention(q, k, v, is_causal=True, window=(2000, 0))\n"
        "y.backward(g)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n",
        timeout=120,
    )
    assert int(done.stdout) < 160 * 1024


# -- errors -----------------------------------------------------------------------------------------------------------
def qkv(*shapes, dtype=torch.float32):
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


Q = (2, 3, 4, 5)
SAME_AS_TORCH = {
    "dtypes": lambda f: f(*qkv(Q), *qkv(Q, dtype=torch.float64), *qkv(Q)),
    "low dtypes": lambda f: f(*qkv(Q, dtype=torch.bfloat16), *qkv(Q, dtype=torch.float16), *qkv(Q)),
    "devices": lambda f: f(*qkv(Q, Q), qkv(Q)[0].to("meta")),
    "one dimension": lambda f: f(*qkv((5,), (5,), (5,))),
    "mask of double": lambda f: f(*qkv(Q, Q, Q), torch.zeros(4, 4, dtype=torch.float64)),
    "mask of int": lambda f: f(*qkv(Q, Q, Q), torch.zeros(4, 4, dtype=torch.int64)),
    "dropout": lambda f: f(*qkv(Q, Q, Q), dropout_p=1.5),
}


@pytest.mark.parametrize("what", SAME_AS_TORCH)
def test_errors_of_torch(cpu_only, what):
    attempt = SAME_AS_TORCH[what]
    found, expected = outcome(lambda: attempt(attend)), outcome(lambda: attempt(F.scaled_dot_product_attention))
    assert found == expected and found is not None


OWN = {
    "depth": (lambda: attend(*qkv(Q, (2, 3, 6, 4), (2, 3, 6, 4))), "expected key of shape [2, 3, 6, 5]"),
    "keys": (lambda: attend(*qkv(Q, (2, 3, 6, 5), (2, 3, 7, 5))), "expected value of shape [2, 3, 6, 5]"),
    "heads": (
        lambda: attend(*qkv(Q, (2, 2, 6, 5), (2, 2, 6, 5)), enable_gqa=True),
        "Number of heads in key and value must divide the number of heads in query",
    ),
    "not grouped": (lambda: attend(*qkv(Q, (2, 2, 6, 5), (2, 2, 6, 5))), "broadcast"),
    "mask": (lambda: attend(*qkv(Q, Q, Q), torch.zeros(3, 5)), "mask that can be broadcast to [2, 3, 4, 4]"),
    "integers": (lambda: attend(*(t.long() for t in qkv(Q, Q, Q))), "expected query of dtype float32"),
    "causal": (lambda: attend(*qkv(Q, Q, Q), causal="left"), "expected 'top-left' or 'bottom-right', got 'left'"),
    "both": (lambda: attend(*qkv(Q, Q, Q), is_causal=True, causal="bottom-right"), "is_causal means 'top-left'"),
    "window": (lambda: attend(*qkv(Q, Q, Q), window=(-1, 2)), "not negative, or None, got (-1, 2)"),
    "softcap": (lambda: attend(*qkv(Q, Q, Q), softcap=-1.0), "expected a positive number, got -1.0"),
    "negative dropout": (lambda: attend(*qkv(Q, Q, Q), dropout_p=-0.5), "between 0 and 1, but got -0.5"),
    "lengths": (lambda: attend(*qkv(Q, Q, Q), lengths=torch.tensor([5, 1])), "row_lengths between 0 and 4, got 5"),
    "too few": (lambda: attend(*qkv(Q, Q, Q), lengths=torch.tensor([1])), "expected row_lengths of shape [2], got [1]"),
    "lengths of float": (lambda: attend(*qkv(Q, Q, Q), lengths=torch.ones(2)), "one dimension of integers"),
    "scale": (lambda: attend(*qkv(Q, Q, Q), scale=float("nan")), "expected a finite scale, got nan"),
}


@pytest.mark.parametrize("what", OWN)
def test_errors_of_ours(cpu_only, what):
    attempt, text = OWN[what]
    with pytest.raises((RuntimeError, ValueError), match=re.escape(text)):
        attempt()


BAD = {
    "three dimensions": (0, lambda t: t[0], "expected query of 4 dimensions, got 3"),
    "dtype": (1, lambda t: t.double(), "expected key of dtype Float like the input, got Double"),
    "mask": (3, lambda t: t.double(), "expected mask of dtype Bool, Float or Float like the query, got Double"),
    "lengths": (5, lambda t: t.int(), "expected key_lengths of int64 on cpu, got Int on cpu"),
    "no seed": (6, lambda t: None, "expected a seed, as dropout is 0.2"),
    "seed": (6, lambda t: t.float(), "expected seed as one int64 on the CPU"),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_of_the_operator(cpu_only, what):
    place, change, text = BAD[what]
    tensors, numbers = operands(EVERYTHING, "cpu", grad=False)
    given = [change(t) if i == place else t for i, t in enumerate(tensors)]
    with pytest.raises(RuntimeError, match=text):
        forward(*given, *numbers)


@pytest.mark.parametrize("place, name", list(enumerate(["grad_out", "grad_lse", "out", "lse"])))
def test_errors_of_the_backward(cpu_only, place, name):
    tensors, numbers = operands(EVERYTHING, "cpu", grad=False)
    out, lse = forward(*tensors, *numbers)
    for change, text in ((lambda t: t[:1], "of shape"), (lambda t: t.double(), "of dtype")):
        given = [change(t) if i == place else t for i, t in enumerate((out, lse, out, lse))]
        with pytest.raises(RuntimeError, match=f"expected {name} {text}"):
            backward(*given[:2], *tensors, *given[2:], *numbers, True, True, True, True)


def test_other_devices(cpu_only):
    meta = torch.empty(2, 3, 4, 5, device="meta")
    assert attend(meta, meta, meta).shape == meta.shape
