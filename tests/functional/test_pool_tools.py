"""Pooling as PyTorch sees it: derivatives, transforms, tracing, errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from pykernels import functional, reference
from tests.helpers import assert_equal, drawn, outcome

from .compiling import compiled, forget_what_was_compiled
from .pool_cases import FORMATS, TINY, Pool, call, every_dtype

assert forget_what_was_compiled  # around every test
ops = torch.ops.pykernels
NAMES = [f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in (1, 2, 3)]
CASES = [
    Pool("max", 2, 2, 2, 1, 5, 6, (1, 3, 2), (1, 2, 1), 1, channels_last=True),
    Pool("max", 1, -1, 3, 1, 1, 9, (1, 1, 3), (1, 1, 2), 1, (1, 1, 2)),
    Pool("max", 3, 1, 2, 3, 4, 5, (2, 2, 2), (1, 2, 2), ceil_mode=True),
    Pool("max", 2, 1, 2, 1, 20, 18, (1, 17, 17), (1, 1, 1)),
    Pool("avg", 2, 2, 2, 1, 5, 6, (1, 3, 2), (1, 2, 1), 1, include=False, channels_last=True),
    Pool("avg", 3, -1, 2, 3, 4, 5, (2, 2, 2), (1, 2, 2), 1, ceil_mode=True, divisor=3),
    Pool("adaptive_max", 2, 2, 3, 1, 5, 7, output=(1, 3, 3)),
    Pool("adaptive_avg", 2, 2, 3, 1, 5, 7, output=(1, 3, 9), channels_last=True),
    Pool("adaptive_avg", 1, 20, 3, 1, 1, 7, output=(1, 1, 1)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


# -- derivatives ------------------------------------------------------------------------------------------------------
def as_function(case: Pool, where=functional):
    return lambda x: call(where, case, x)["y"]


@drawn(25, of=Pool, **TINY)
def test_gradcheck_and_gradgradcheck(device, case):
    x = case.input(device=device).requires_grad_()
    function = as_function(case)
    if not function(x).isfinite().all():  # windows of nothing
        return
    assert gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, x, check_fwd_over_rev=True)


@every_case
def test_transforms_are_the_twins(device, case):
    x, tangent = case.input(device=device), torch.randn_like(case.input(device=device))
    found = []
    for where in (functional, reference):
        function = as_function(case, where)
        scalar = lambda x, f=function: f(x).sin().sum()  # noqa: E731
        made = [jvp(function, (x,), (tangent,)), grad(scalar)(x), jacrev(function)(x), jacfwd(function)(x)]
        made += [
            jvp(grad(scalar), (x,), (tangent,)),
            jvp(lambda t, f=function: jvp(f, (x,), (t,))[1], (x,), (tangent,)),
        ]
        if x.numel() < 200:
            made.append(hessian(scalar)(x))
        found.append({str(i): t for i, t in enumerate(torch.utils._pytree.tree_leaves(made))})
    assert_equal(*found, 1e-12)


@every_case
def test_vmap_is_a_loop(device, case):
    x = torch.stack([case.input(device=device) * factor for factor in (1, -2, 0.5)])
    function = as_function(case)
    scalar = lambda x: function(x).sin().sum()  # noqa: E731
    for one in (function, grad(scalar), lambda x: jvp(function, (x,), (x,))[1], grad(lambda x: grad(scalar)(x).sum())):
        expected = torch.stack([one(example) for example in x])
        torch.testing.assert_close(vmap(one)(x), expected)
        torch.testing.assert_close(vmap(one, in_dims=-1)(x.movedim(0, -1)), expected)


def test_vmap_with_indices(device):
    x = torch.randn(4, 2, 3, 8, 9, device=device)
    for turn in (lambda t: t, lambda t: t.contiguous(memory_format=torch.channels_last_3d)):
        found = vmap(lambda x: functional.max_pool2d(x, 3, 2, 1, return_indices=True))(turn(x))
        for i, example in enumerate(x):
            y, at = functional.max_pool2d(example, 3, 2, 1, return_indices=True)
            assert torch.equal(found[0][i], y) and torch.equal(found[1][i], at)
        back = vmap(lambda y, at: functional.max_unpool2d(y, at, 3, 2, 1, (8, 9)))(*found)
        assert torch.equal(back[1], functional.max_unpool2d(found[0][1], found[1][1], 3, 2, 1, (8, 9)))


def test_the_gradient_of_a_gradient_is_the_kernels(device):
    """Recorded backwards call the operators, not the twin."""
    x = torch.randn(2, 3, 8, 8, device=device, requires_grad=True)
    for function in (lambda x: functional.max_pool2d(x, 2), lambda x: functional.avg_pool2d(x, 2)):
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        names = set()
        todo = [first.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None:
                names.add(type(node).__name__)
                todo += [n for n, _ in node.next_functions]
        assert "_NodeBackward" in names and not {n for n in names if "Gather" in n or "Index" in n}


# -- operators --------------------------------------------------------------------------------------------------------
def window_of(case: Pool) -> list:
    if case.kind.startswith("adaptive"):
        return [[], [], [], [], False, list(case.output[3 - case.dims :])]
    return [*(list(column) for column in zip(*case.windows, strict=True)), case.ceil_mode, []]


@every_case
def test_opcheck(device, case):
    x, window = case.input(device=device).requires_grad_(), window_of(case)
    if case.is_max:
        for keep in (True, False):
            torch.library.opcheck(ops.max_pool_forward.default, (x, *window, keep))
        y, places = (t.detach() for t in ops.max_pool_forward(x, *window, True))
        grad_y = torch.randn_like(y).requires_grad_()
        torch.library.opcheck(ops.max_pool_backward.default, (grad_y, places, list(x.shape), *window))
        torch.library.opcheck(ops.max_pool_gather.default, (x, places, *window))
        torch.library.opcheck(ops.max_pool_indices.default, (places, list(x.shape), *window))
        indices = ops.max_pool_indices(places, list(x.shape), *window)
        size = list(x.shape[x.dim() - case.dims :])
        torch.library.opcheck(ops.max_unpool.default, (y.requires_grad_(), indices, size))
        return
    numbers = *window[:3], *window[4:], case.include and not case.kind.startswith("adaptive"), case.divisor or 0
    torch.library.opcheck(ops.avg_pool_forward.default, (x, *numbers))
    grad_y = torch.randn_like(ops.avg_pool_forward(x.detach(), *numbers)).requires_grad_()
    for last in (False, True):
        torch.library.opcheck(ops.avg_pool_backward.default, (grad_y, list(x.shape), last, *numbers))


@every_dtype
@every_case
def test_fake_results_are_the_real_ones(device, dtype, case):
    x = case.input(dtype, device)
    real, fake = (call(functional, case, t, indices=case.is_max) for t in (x, x.to("meta")))
    for name, tensor in real.items():
        assert fake[name].shape == tensor.shape and fake[name].dtype == tensor.dtype
        assert fake[name].stride() == tensor.stride()
    leaf = x.to("meta").requires_grad_()
    assert torch.autograd.grad(call(functional, case, leaf)["y"].sum(), leaf)[0].shape == x.shape


class Net(nn.Module):
    def forward(self, x):
        y, at = functional.max_pool2d(x * 2, 3, 2, 1, return_indices=True)
        back = functional.max_unpool2d(y, at, 3, 2, 1, x.shape[-2:])
        a = functional.avg_pool2d(back, 2, ceil_mode=True)
        b = functional.adaptive_max_pool2d(functional.max_pool2d(x, 2), 3)
        return functional.adaptive_avg_pool2d(a, 1) + b


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(device, backend, form):
    x = torch.randn(2, 3, 13, 17, device=device).contiguous(memory_format=form)
    net = Net()
    fast, counter = compiled(net, backend)
    found = []
    for function in (net, fast):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        found.append((y, torch.autograd.grad(y.sin().sum(), leaf)[0]))
    torch.testing.assert_close(*found)
    assert counter.frame_count == 1


def test_compile_with_symbolic_sizes(device):
    net = Net()
    fast, counter = compiled(net, dynamic=True)
    for shape in ((2, 3, 13, 17), (3, 4, 21, 33), (5, 2, 9, 25)):
        leaf = torch.randn(shape, device=device, requires_grad=True)
        y = fast(leaf)
        torch.testing.assert_close(y, net(leaf))
        expected = torch.autograd.grad(net(leaf).sin().sum(), leaf)[0]
        torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), leaf)[0], expected)
    # (whether adaptive windows are all of one length is a question that is asked while tracing)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_export(device, strict):
    x = torch.randn(2, 3, 13, 17, device=device)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Net(), (x,), dynamic_shapes=({0: batch},), strict=strict)
    assert ops.max_pool_forward.default in [node.target for node in program.graph.nodes]
    other = torch.randn(7, 3, 13, 17, device=device)
    torch.testing.assert_close(program.module()(other), Net()(other))


# -- errors -----------------------------------------------------------------------------------------------------------
X = torch.randn(2, 3, 8, 9)
SAME_AS_TORCH = {
    "kernel 0": lambda w: w.max_pool2d(X, 0),
    "kernel of three": lambda w: w.max_pool2d(X, (2, 2, 2)),
    "kernel of text": lambda w: w.max_pool2d(X, "2"),
    "kernel of a fraction": lambda w: w.max_pool2d(X, 2.5),
    "too large": lambda w: w.max_pool2d(X, 10),
    "stride 0": lambda w: w.max_pool2d(X, 2, 0),
    "negative stride": lambda w: w.max_pool2d(X, 2, -1),
    "strides": lambda w: w.max_pool2d(X, 2, (1, 2, 3)),
    "padding": lambda w: w.max_pool2d(X, 3, 1, 2),
    "negative padding": lambda w: w.max_pool2d(X, 3, 1, -1),
    "dilation": lambda w: w.max_pool2d(X, 3, 1, 0, 0),
    "one dimension": lambda w: w.max_pool2d(X[0, 0, 0], 2),
    "two": lambda w: w.max_pool2d(X[0, 0], 2),
    "five": lambda w: w.max_pool2d(X[None], 2),
    "nothing": lambda w: w.max_pool2d(X[:, :0], 2),
    "no rows": lambda w: w.max_pool2d(X[:, :, :0], 2),
    "huge": lambda w: w.max_pool2d(X, 2**31),
    "huge stride": lambda w: w.avg_pool2d(X, 2, 2**40),
    "bool": lambda w: w.max_pool2d(X > 0, 2),
    "complex": lambda w: w.max_pool2d(X.cfloat(), 2),
    "no tensor": lambda w: w.max_pool2d([1, 2], 2),
    "1d": lambda w: w.max_pool1d(X, 2),
    "1d padding": lambda w: w.max_pool1d(X[0], 3, 1, 2),
    "1d too large": lambda w: w.max_pool1d(X[0], 10),
    "3d": lambda w: w.max_pool3d(X[0], 2),
    "3d too large": lambda w: w.max_pool3d(X, 4),
    "mean, kernel": lambda w: w.avg_pool2d(X, 0),
    "mean, too large": lambda w: w.avg_pool2d(X, (9, 9)),
    "mean, padding": lambda w: w.avg_pool2d(X, 2, 2, 2),
    "mean, divisor": lambda w: w.avg_pool2d(X, 2, divisor_override=0),
    "mean, integers": lambda w: w.avg_pool2d(X.int(), 2),
    "mean, dimensions": lambda w: w.avg_pool1d(X, 2),
    "mean, 3d": lambda w: w.avg_pool3d(X, 4, 1, 2),
    "adaptive": lambda w: w.adaptive_max_pool2d(X, (2, 2, 2)),
    "adaptive, negative": lambda w: w.adaptive_max_pool2d(X, -1),
    "adaptive, dimensions": lambda w: w.adaptive_max_pool2d(X[0, 0], 2),
    "adaptive, nothing": lambda w: w.adaptive_max_pool2d(X[:, :0], 2),
    "adaptive mean": lambda w: w.adaptive_avg_pool2d(X, (2, 2, 2)),
    "adaptive mean, negative": lambda w: w.adaptive_avg_pool2d(X, -2),
    "adaptive mean, 3d": lambda w: w.adaptive_avg_pool3d(X[0], 2),
    "adaptive mean, nothing": lambda w: w.adaptive_avg_pool2d(X[:, :, :0], 2),
    "unpooled size": lambda w: w.max_unpool2d(X, torch.zeros_like(X).long(), 2, output_size=(3, 3)),
    "unpooled sizes": lambda w: w.max_unpool2d(X, torch.zeros_like(X).long(), 2, output_size=(3,)),
    "unpooled indices": lambda w: w.max_unpool2d(X, torch.zeros_like(X), 2),
    "unpooled shape": lambda w: w.max_unpool2d(X, torch.zeros_like(X[0]).long(), 2),
}


@pytest.mark.parametrize("what", SAME_AS_TORCH)
def test_errors_of_torch(cpu_only, what):
    found, expected = (outcome(lambda w=w: SAME_AS_TORCH[what](w)) for w in (functional, F))
    assert found == expected and found is not None


def test_empty_batches_and_outputs(device):
    for name in NAMES:
        for form in (torch.contiguous_format, FORMATS.get(int(name[-2]), torch.contiguous_format)):
            x = torch.randn(0, 3, *[6] * int(name[-2]), device=device).contiguous(memory_format=form).requires_grad_()
            y, expected = (getattr(where, name)(x, 2) for where in (functional, F))
            assert y.shape == expected.shape and torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    x = torch.randn(2, 3, 8, 8, device=device, requires_grad=True)
    for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        for size in ((0, 3), (3, 0)):
            found = getattr(functional, name)(x, size)
            assert found.shape == (2, 3, *size)
            assert not torch.autograd.grad(found.sum(), x)[0].any()


WINDOW = [[2, 2], [2, 2], [0, 0], [1, 1], False, []]
Y, PLACES = ops.max_pool_forward(X, *WINDOW, True)
OWN = {
    "integers": (lambda: ops.max_pool_forward(X.int(), *WINDOW, True), "[max_pool] expected input of dtype float32"),
    "kernel": (lambda: ops.max_pool_forward(X, [0, 2], *WINDOW[1:], True), "expected kernel_size from 1 to 2147483647"),
    "lengths": (lambda: ops.max_pool_forward(X, [2, 2], [2], *WINDOW[2:], True), "expected stride of 2 numbers"),
    "both": (lambda: ops.max_pool_forward(X, *WINDOW[:5], [2, 2], True), "expected kernel_size or output_size"),
    "neither": (lambda: ops.max_pool_forward(X, [], [], [], [], False, [], True), "windows of one to three dimensions"),
    "padding": (lambda: ops.max_pool_forward(X, [2, 2], [2, 2], [2, 0], [1, 1], False, [], True), "expected padding"),
    "places": (
        lambda: ops.max_pool_forward(
            torch.zeros(1, 1, 1, 1, 1), [2**31 - 1] * 3, [1] * 3, [2**30 - 1] * 3, [1] * 3, True, [], True
        ),
        "expected",
    ),
    "grad": (lambda: ops.max_pool_backward(X, PLACES, X.shape, *WINDOW), "expected grad of shape [2, 3, 4, 4]"),
    "size": (lambda: ops.max_pool_backward(Y, PLACES, [2, 3, 10, 9], *WINDOW), "expected grad of shape [2, 3, 5, 4]"),
    "places' shape": (lambda: ops.max_pool_backward(Y, PLACES[:1], X.shape, *WINDOW), "expected places of shape"),
    "places' dtype": (lambda: ops.max_pool_backward(Y, PLACES.long(), X.shape, *WINDOW), "expected places of dtype"),
    "gather": (lambda: ops.max_pool_gather(X[:1], PLACES, *WINDOW), "expected places of shape [1, 3, 4, 4]"),
    "indices": (lambda: ops.max_pool_indices(PLACES, [3, 8, 9], *WINDOW), "expected places of shape [3, 4, 4]"),
    "mean's grad": (
        lambda: ops.avg_pool_backward(X, X.shape, False, *WINDOW[:3], False, [], True, 0),
        "[avg_pool] expected grad of shape [2, 3, 4, 4]",
    ),
    "unpool": (lambda: ops.max_unpool(X, X.long(), [2**33, 2]), "expected output_size from 0 to"),
    "unpool's indices": (lambda: ops.max_unpool(X, X.int(), [9, 9]), "expected indices of dtype int64"),
    "other devices": (lambda: ops.max_pool_backward(Y.to("meta"), PLACES, X.shape, *WINDOW), ""),
}


@pytest.mark.parametrize("what", OWN)
def test_errors_of_ours(cpu_only, what):
    attempt, text = OWN[what]
    if not text:
        outcome(attempt)  # whatever PyTorch says of meta tensors: it must not crash
        return
    with pytest.raises(RuntimeError, match=re.escape(text)):
        attempt()


def test_places_that_no_forward_wrote_are_harmless(cpu_only):
    for window, size in ((WINDOW, (2, 3, 8, 9)), ([[3, 3], [2, 1], [1, 1], [1, 2], True, []], (2, 3, 8, 9))):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(size).contiguous(memory_format=form)
            y, places = ops.max_pool_forward(x, *window, True)
            places.random_(0, 255)
            assert ops.max_pool_backward(y, places, size, *window).shape == x.shape
            assert ops.max_pool_gather(x, places, *window).shape == y.shape
            assert int(ops.max_pool_indices(places, size, *window).max()) < 72
            assert math.isfinite(float(ops.max_pool_gather(x, places, *window).sum()))
