"""Pooling, unfold and fold where torch's own functions run in the place of kernels, and who else sees the calls."""

from __future__ import annotations

import enum
import io
import itertools
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import pykernels
from pykernels import functional
from tests.helpers import outcome

from .compiling import compiled, forget_what_was_compiled

assert forget_what_was_compiled  # around every test
pytestmark = pytest.mark.usefixtures("cpu_only")
X = {d: torch.randn(2, 3, *[8] * d, generator=torch.Generator().manual_seed(d)) for d in (1, 2, 3)}
POOLED = {d: getattr(F, f"max_pool{d}d")(x, 2, return_indices=True) for d, x in X.items()}
COLUMNS = torch.randn(2, 12, 49)


def calls() -> dict[str, tuple[tuple[Tensor, ...], dict[str, Any]]]:
    """Of every function its tensors and its other arguments, in their order."""
    made: dict[str, Any] = {}
    for d, x in X.items():
        window = {"kernel_size": 4, "stride": 2, "padding": 1}
        made[f"max_pool{d}d"] = (x,), window | {"dilation": 1, "ceil_mode": False, "return_indices": False}
        mean = window | {"ceil_mode": False, "count_include_pad": True}
        made[f"avg_pool{d}d"] = (x,), mean if d == 1 else mean | {"divisor_override": None}
        made[f"adaptive_max_pool{d}d"] = (x,), {"output_size": 2, "return_indices": False}
        made[f"adaptive_avg_pool{d}d"] = (x,), {"output_size": 2}
        made[f"max_unpool{d}d"] = POOLED[d], {"kernel_size": 2, "stride": 2, "padding": 0, "output_size": None}
    blocks = {"kernel_size": 2, "dilation": 1, "padding": 0, "stride": 1}
    return made | {"unfold": ((X[2],), blocks), "fold": ((COLUMNS,), {"output_size": 8} | blocks)}


CALLS = calls()
every_function = pytest.mark.parametrize("name", CALLS)


def leaves(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def same(attempts: list[Callable[[], Any]]) -> bool:
    """Whether both return the same, True, or raise the same, False."""
    found, expected = (outcome(a) for a in attempts)
    if expected is not None:
        # (torch finds another invalid index each time, and writes where objects lie)
        texts = [
            e and (e[0], re.sub(r"invalid max index: \d+|0x[0-9a-f]+|\d{9,}", "", e[1])) for e in (found, expected)
        ]
        assert texts[0] == texts[1]
        return False
    assert found is None, found
    for one, other in zip(*(leaves(a()) for a in attempts), strict=True):
        torch.testing.assert_close(one, other)
    return True


# -- arguments --------------------------------------------------------------------------------------------------------
class Two(enum.IntEnum):
    two = 2


class Index:
    def __index__(self) -> int:
        return 2


ODD = {
    "bool": True, "numpy": np.int64(2), "numpy bool": np.bool_(True), "tensor": torch.tensor(2),
    "bool tensor": torch.tensor(True), "tensor of one": torch.tensor([2]), "tensor of two": torch.tensor([2, 2]),
    "array": np.array([2, 2]), "array of none": np.array(2), "numpy first": (np.int64(2), 2),
    "numpy last": (2, np.int64(2)),
    "tensor first": (torch.tensor(2), 2), "tensor last": (2, torch.tensor(2)), "bool first": (True, 1),
    "bool last": (1, True), "list of bool": [True], "float": 2.0, "floats": (2.0, 2), "list": [2, 2],
    "size": torch.Size([2, 2]), "range": range(2, 4), "index": Index(), "indices": (Index(), 2), "enum": Two.two,
    "enums": (Two.two, 2), "none": None, "text": "2", "nothing": (), "one": (2,), "three": (2, 2, 2), "set": {2},
    "none first": (None, 2), "none last": (2, None), "0": 0, "1": 1, "2": 2, "-1": -1, "huge": 2**70,
}  # fmt: skip


@every_function
def test_odd_arguments_are_what_they_are_to_torch(name):
    tensors, given = CALLS[name]
    taken = 0
    for argument, odd in itertools.product(given, ODD.values()):
        values = {**given, argument: odd}.values()
        taken += same([lambda w=w, v=values: getattr(w, name)(*tensors, *v) for w in (functional, F)])
    assert taken >= 5


def test_a_cache_of_windows_knows_types_and_values():
    """Equal keys that torch tells apart, and numbers that change."""
    x = X[2]
    for size in ((1, 1), (True, 1), (1, True), (np.int64(1), 1), 1, True, 1.0):
        for call in (lambda w, s=size: w.max_pool2d(x, s), lambda w, s=size: w.unfold(x, s)):
            same([lambda w=w, c=call: c(w) for w in (functional, F)])
    size, padding = torch.tensor(3), torch.tensor([0, 0])
    for number in (3, 5):
        size.fill_(number)
        padding.fill_(number - 3)
        assert torch.equal(functional.max_pool2d(x, size, 1), F.max_pool2d(x, number, 1))
        assert torch.equal(functional.unfold(x, 3, 1, padding), F.unfold(x, 3, 1, number - 3))
    numbers = [2, 2]
    for number in (2, 4):
        numbers[1] = number
        assert torch.equal(functional.max_pool2d(x, numbers), F.max_pool2d(x, (2, number)))


MODULES = {
    "MaxPool2d": [{"kernel_size": True}, {"kernel_size": np.int64(2)}, {"kernel_size": 2, "ceil_mode": 1}],
    "AvgPool2d": [{"kernel_size": (True, 1)}, {"kernel_size": 2, "count_include_pad": None}],
    "AdaptiveAvgPool2d": [{"output_size": None}, {"output_size": (None, 2)}, {"output_size": np.array([2, 2])}],
    "AdaptiveMaxPool2d": [{"output_size": True}, {"output_size": torch.tensor([2, 2])}],
    "Unfold": [{"kernel_size": True}, {"kernel_size": np.array([2, 2])}, {"kernel_size": torch.tensor(2)}],
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_odd_arguments_of_modules(name):
    for given in MODULES[name]:
        same([lambda w=w, g=given: getattr(w, name)(**g)(X[2]) for w in (pykernels, nn)])


def test_errors_have_no_second_traceback():
    for wrong in (lambda: functional.max_pool2d(X[2], 2, 2, 2), lambda: functional.unfold(X[2], 9)):
        with pytest.raises(RuntimeError) as raised:
            wrong()
        assert raised.value.__context__ is None


# -- tensors without kernels ------------------------------------------------------------------------------------------
@every_function
def test_dtypes_layouts_and_zero_tensors(name):
    (x, *indices), given = CALLS[name]
    for odd in (
        x.mul(9).long(),
        x.to(torch.uint8),
        x > 0,
        x.cfloat(),
        torch._efficientzerotensor(x.shape),
        x.to_sparse(),
    ):
        same([lambda w=w, x=odd: getattr(w, name)(x, *indices, *given.values()) for w in (functional, F)])
    same(
        [
            lambda w=w: leaves(getattr(w, name)(x.to_mkldnn(), *indices, *given.values()))[0].to_dense()
            for w in (functional, F)
        ]
    )


@every_function
def test_negated_views_are_negated(name):
    """Imaginary parts of conjugates, as inputs and as gradients."""
    (x, *indices), given = CALLS[name]
    found = []
    for where in (functional, F):
        call = lambda x, w=where: getattr(w, name)(x, *indices, *given.values())  # noqa: E731
        pair = torch.complex(torch.zeros_like(x), x).requires_grad_()
        assert pair.conj().imag.is_neg()
        y = call(pair.conj().imag)
        leaf = x.clone().requires_grad_()
        gradients = torch.autograd.grad(y.sum(), pair)[0], torch.autograd.grad(call(leaf), leaf, torch._neg_view(y))[0]
        found.append((y, *gradients))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["max", "avg", "adaptive_max", "adaptive_avg"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_nothing_in_the_channels_or_the_batch(kind, dims):
    name, returned = f"{kind}_pool{dims}d", 0
    for lead, size in itertools.product(((2, 0), (0,), (0, 0), (0, 3)), (0, 1, 2)):
        x = torch.randn(*lead, *[6] * dims, requires_grad=True)
        attempts = [lambda w=w, x=x, s=size: getattr(w, name)(x, s) for w in (functional, F)]
        if same(attempts):
            returned += 1
            assert attempts[0]().requires_grad
            if lead != (0, 3):  # (torch has no gradient of some of these)
                same([lambda a=a, x=x: torch.autograd.grad(a().sum(), x)[0] for a in attempts])
    assert returned >= (5 if "adaptive" in kind else 2)


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16], ids=str)
@every_function
def test_autocast_gives_torchs_dtypes(name, wanted):
    (x, *indices), given = CALLS[name]
    options = [given, given | {"return_indices": True}] if "return_indices" in given else [given]
    for dtype, option in itertools.product((torch.float64, torch.float32, torch.bfloat16, torch.float16), options):
        leaf = x.to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", wanted):
            found, expected = (getattr(w, name)(leaf, *indices, *option.values()) for w in (functional, F))
        for one, other in zip(leaves(found), leaves(expected), strict=True):
            assert one.dtype == other.dtype
        assert torch.autograd.grad(leaves(found)[0].sum(), leaf)[0].dtype == dtype


def test_autocast_in_a_compiled_function():
    for name in ("max_pool3d", "avg_pool3d", "adaptive_max_pool3d", "max_unpool2d"):
        tensors, given = CALLS[name]
        low = tensors[0].bfloat16(), *tensors[1:]
        fast, _ = compiled(lambda *t, n=name, g=given: getattr(functional, n)(*t, *g.values()))
        with torch.autocast("cpu", torch.bfloat16):
            assert fast(*low).dtype == torch.float32


# -- who sees the calls -----------------------------------------------------------------------------------------------
def traced(function: Any, *inputs: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.trace(function, inputs)
        kept = io.BytesIO()
        torch.jit.save(made, kept)
        kept.seek(0)
        assert "pykernels::" not in str(made.inlined_graph)
        return torch.jit.load(kept)


TRACED = {
    "max": (pykernels.MaxPool2d(2), X[2]),
    "integers": (pykernels.MaxPool2d(2), X[2].long()),
    "indices": (pykernels.MaxPool2d(2, return_indices=True), X[2]),
    "3d": (pykernels.MaxPool3d(2), X[3]),
    "mean": (pykernels.AvgPool1d(2), X[1]),
    "adaptive": (pykernels.AdaptiveAvgPool2d((None, 2)), X[2]),
    "adaptive max": (pykernels.AdaptiveMaxPool2d(2, return_indices=True), X[2]),
    "unfold": (pykernels.Unfold(2), X[2]),
    "fold": (pykernels.Fold(8, 2), COLUMNS),
}


@pytest.mark.parametrize("what", TRACED)
def test_jit_traces_are_torchs(what):
    module, x = TRACED[what]
    for one, other in zip(leaves(traced(module, x)(x)), leaves(module(x)), strict=True):
        torch.testing.assert_close(one, other)


def test_jit_traces_of_a_replaced_network():
    """Recorded with gradients or without: the same."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))
    with torch.no_grad():
        expected = net(X[2])
    torch.testing.assert_close(traced(pykernels.replace(net), X[2])(X[2]), expected)
    w, x = torch.randn(4, 3, 3, 3), X[2]
    both = lambda x: functional.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2)  # noqa: E731
    torch.testing.assert_close(traced(both, x)(x), both(x))


@pytest.mark.parametrize("what", [name for name in TRACED if name != "integers"])
def test_fx_records_ours(what):
    module, x = TRACED[what]
    graph = torch.fx.symbolic_trace(module)
    (node,) = (n for n in graph.graph.nodes if n.op == "call_function")
    assert node.target is getattr(functional, node.target.__name__)
    for one, other in zip(leaves(pickle.loads(pickle.dumps(graph))(x)), leaves(module(x)), strict=True):
        assert torch.equal(one, other)


def test_fx_records_unpooling_and_the_fused_function():
    class Net(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            y, at = functional.max_pool2d(
                functional.conv2d_relu_max_pool2d(x, w, pool_kernel_size=2), 3, 1, 0, 1, False, True
            )
            return functional.max_unpool2d(y, at, 3, 1, output_size=(3, 3))

    class Unpack(torch.fx.Tracer):
        def iter(self, obj: Any) -> Any:
            return iter((obj[0], obj[1]))

    w = torch.randn(4, 3, 3, 3)
    net = Net()
    graph = torch.fx.GraphModule(net, Unpack().trace(net))
    names = {n.target.__name__ for n in graph.graph.nodes if n.op == "call_function"}
    assert {"conv2d_relu_max_pool2d", "max_pool2d", "max_unpool2d"} <= names
    assert torch.equal(graph(X[2], w), net(X[2], w))


class Like:
    """No tensor, but dispatched like one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function, args, kwargs


class Sub(Tensor):
    pass


@every_function
def test_torch_function_is_asked(name):
    (x, *indices), given = CALLS[name]
    like = Like()
    function, args, _ = getattr(functional, name)(like, *indices, *given.values())
    assert function is getattr(functional, name) and args[0] is like
    y = getattr(functional, name)(x.as_subclass(Sub), *indices, *given.values())
    assert type(y) is Sub
    assert torch.equal(y.as_subclass(Tensor), getattr(functional, name)(x, *indices, *given.values()))


@pytest.mark.parametrize("name", [n for n in CALLS if "3d" not in n])
def test_vectorized_jacobians(name):
    (x, *indices), given = CALLS[name]
    x, indices = x[:1].double(), [t[:1] for t in indices]
    one = lambda x: getattr(functional, name)(x, *indices, *given.values())  # noqa: E731
    torch.testing.assert_close(jacobian(one, x, vectorize=True), jacobian(one, x))


# -- torch.compile ----------------------------------------------------------------------------------------------------
COMPILED = {
    "integers": (lambda w, x: w.max_pool2d(x, 2), X[2].long()),
    "means of integers": (lambda w, x: w.avg_pool2d(x, 2), X[2].long()),
    "bool": (lambda w, x: w.unfold(x, 2), X[2] > 0),
    "numpy": (lambda w, x: w.max_pool2d(x, np.int64(2)), X[2]),
    "numpy in a tuple": (lambda w, x: w.avg_pool2d(x, (np.int64(2), 2)), X[2]),
    "lists and sizes": (lambda w, x: w.max_pool2d(x, (2, 3), [1, 2], torch.Size([1, 1]), (1, 2)), X[2]),
    "no channels": (lambda w, x: w.adaptive_avg_pool2d(x, 2), X[2][:, :0]),
    "no channels, unbatched": (lambda w, x: w.adaptive_avg_pool1d(x, 2), X[1][0, :0]),
    "size": (lambda w, x: w.adaptive_avg_pool2d(x, torch.Size([2, 3])), X[2]),
    "size of the input": (lambda w, x: w.adaptive_avg_pool2d(x, (None, 2)), X[2]),
    "unpooled": (lambda w, x: w.max_unpool2d(x, torch.zeros_like(x, dtype=torch.int64), 2, output_size=(15, 17)), X[2]),
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("what", COMPILED)
def test_compile_takes_what_torch_takes(what, dynamic):
    call, x = COMPILED[what]
    fast, _ = compiled(lambda x: call(functional, x), dynamic=dynamic)
    torch.testing.assert_close(fast(x), call(F, x))


IMPOSSIBLE = {
    "padding": lambda w, x: w.max_pool2d(x, 2, 2, 2),
    "padding of a mean": lambda w, x: w.avg_pool2d(x, 2, 2, 2),
    "stride": lambda w, x: w.max_pool2d(x, 2, -1),
    "too large": lambda w, x: w.max_pool2d(x, 10),
    "divisor": lambda w, x: w.avg_pool2d(x, 2, divisor_override=0),
    "adaptive": lambda w, x: w.adaptive_avg_pool2d(x, -1),
    "adaptive none": lambda w, x: w.adaptive_avg_pool2d(x, None),
    "channels": lambda w, x: w.max_pool2d(x[:, :0], 2),
    "unpooled": lambda w, x: w.max_unpool2d(x, torch.zeros_like(x, dtype=torch.int64), 2, output_size=(18, 9)),
    "unpooled indices": lambda w, x: w.max_unpool2d(x, x, 2),
    "unpooled sizes": lambda w, x: w.max_unpool2d(x, torch.zeros_like(x[:1], dtype=torch.int64), 2),
    "bool": lambda w, x: w.max_pool2d(x, True),
    "ceil_mode": lambda w, x: w.max_pool2d(x, 2, ceil_mode=1),
    "unfold": lambda w, x: w.unfold(x, 9),
    "blocks": lambda w, x: w.unfold(x, True),
    "fold": lambda w, x: w.fold(x[0], 8, 2),
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_compile_refuses_in_torchs_words(what, dynamic):
    texts = []
    for where in (functional, F):
        with pytest.raises(Exception, match=r".") as raised:
            compiled(lambda x, w=where: IMPOSSIBLE[what](w, x), dynamic=dynamic)[0](X[2])
        said = re.search(r"got (\w+\(.*)", str(raised.value))
        texts.append((type(raised.value), said and re.sub(r"s\d+", "s", said[1])))
    assert texts[0] == texts[1]
