"""What wrong calls of the convolutions and their operators raise: torch's errors, in torch's order."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jvp, vmap

import pykernels
from pykernels import functional, reference
from pykernels.reference import conv_arguments as arguments
from tests.helpers import outcome, python

pytestmark = pytest.mark.usefixtures("cpu_only")
forward = torch.ops.pykernels.conv_forward.default
input_gradient = torch.ops.pykernels.conv_input_gradient.default
weight_gradient = torch.ops.pykernels.conv_weight_gradient.default

X, W, B = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
GOOD = dict(zip(NAMES, (X, W, B, 1, 0, 1, 1), strict=True))
FAULTS = {
    "input": [
        X[0, 0], X[None], X[0], X[:, :3], X[:, :0], X[:, :, :0], X[:0], X.double(), X.half(), X.to_sparse(), [1.0],
        None, X.movedim(1, 3), X.bool(), X.int(),
    ],
    "weight": [
        W[0], W[0, 0], W[None], W[:0], W[:5], W[:, :2], W.double(), W.long(), torch.randn(6, 4, 9, 9), None,
        W.to_sparse(), torch.randn(6, 4, 9, 1), W[0, 0, 0],
    ],
    "bias": [B[:3], B[None], B.double(), B.half(), B.bfloat16(), B.bool(), B.cfloat(), torch.tensor(1.0), "b", 3],
    "stride": [0, -1, (1, 2, 3), (1,), (), [], "a", None, 1.5, True, (1.0, 2), torch.tensor([1, 2]), (2, 0), [2],
               np.array([1, 1]), (2, 1.0)],
    "padding": [
        -1, (1, 2, 3), (1,), (), "same", "valid", "foo", None, 1.5, True, (0, -1), torch.tensor([1, 2]), 9, [2],
        (1.5, 1), (True, 1), (1, True), (1, 1.0), np.array([1, 1]), torch.tensor(1.5),
    ],
    "dilation": [0, -1, (1, 2, 3), (1,), (), "a", None, 1.5, 5, (5, 1), True],
    "groups": [0, -1, 2, 4, 7, 1.5, "a", None, True, 1.0],
}  # fmt: skip


def check(spatial: int, *given) -> bool:
    """Whether this raises; as torch does (which does not look at the types where there is nothing to compute)."""
    found, expected = (outcome(lambda f=f: getattr(f, f"conv{spatial}d")(*given)) for f in (functional, F))
    assert found == expected or (given[0].numel() == 0 and "should be the same" in found[1])
    return found is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_one_fault(name, spatial):
    raised = [check(spatial, *{**GOOD, name: fault}.values()) for fault in FAULTS[name]]
    assert any(raised)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_two_and_three_faults_are_found_in_torchs_order():
    draw, raised = random.Random(1), 0
    for _ in range(2500):
        wrong = {name: draw.choice(FAULTS[name]) for name in draw.sample(NAMES, draw.choice([2, 2, 3]))}
        if str(wrong.get("padding")) != "same" or not isinstance(wrong.get("input"), list):
            raised += check(2, *{**GOOD, **wrong}.values())
    assert raised > 2000


def test_errors_do_not_depend_on_earlier_calls():
    """Of equal numbers of other types: neither after what is fine nor before it."""
    wrong = [("stride", (2.0, 2)), ("stride", (2, 2.0)), ("padding", (True, 1)), ("dilation", 1.0), ("groups", True)]
    for name, value in wrong:
        fine = tuple(int(n) for n in value) if isinstance(value, tuple) else int(value)
        for _ in range(2):
            expected = outcome(lambda n=name, v=value: F.conv2d(X, W, **{n: v}))
            assert outcome(lambda n=name, v=value: functional.conv2d(X, W, **{n: v}))[0] is expected[0] is TypeError
            torch.testing.assert_close(functional.conv2d(X, W, **{name: fine}), F.conv2d(X, W, **{name: fine}))


@pytest.mark.parametrize("wrong", ["gelu", "", "none", F.relu, True, 1, X], ids=lambda w: type(w).__name__)
def test_activations_that_there_are_not(wrong):
    """The same error everywhere: with kernels and without, of the twin, and of the module."""
    given = repr(wrong) if isinstance(wrong, str) else type(wrong).__name__
    expected = (ValueError, f"[conv] expected activation None or 'relu', got {given}")
    calls = [lambda: nn_conv(activation=wrong)]
    for where in (functional, reference):
        calls += [lambda w=where: w.conv2d(X, W, activation=wrong)]
    calls += [lambda: functional.conv2d(X.long(), W.long(), activation=wrong)]
    calls += [lambda: vmap(lambda x: functional.conv2d(x, W, activation=wrong))(X)]
    for call in calls:
        assert outcome(call) == expected


def nn_conv(**options):
    return pykernels.Conv2d(4, 6, 3, **options)


WARNED = """
import warnings, torch, pykernels.functional as P
x, even, odd = torch.ones(1, 1, 5, 5), torch.ones(1, 1, 2, 3), torch.ones(1, 1, 3, 3)

def count(*given, **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        P.conv2d(*given, **options)
    return [w.category is UserWarning and str(w.message).startswith("Using padding='same' with even") for w in seen]

assert count(x, odd, padding="same") == count(x, even, padding=((0, 1), (1, 1))) == []
assert count(x, even, padding="same", dilation=2) == count(x, even, padding="same", padding_mode="reflect") == []
assert count(x, even, padding="same") == [True] and count(x, even, padding="same") == []
print("fine")
"""


def test_same_warns_of_even_kernels_once_as_torch_does():
    assert python(WARNED).stdout.strip() == "fine"


def test_kernel_without_taps():
    """(torch's own error is one of its library's.)"""
    with pytest.raises(RuntimeError):
        functional.conv2d(X, torch.randn(6, 4, 0, 3))
    with pytest.raises(RuntimeError, match=re.escape("[conv] expected a kernel that is not empty")):
        forward(X, torch.randn(6, 4, 0, 3), None, [1, 1], [0] * 4, [1, 1], 1, "zeros", "none")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_padding_modes_have_the_modules_errors(mode, spatial):
    """Those of torch.nn, which pads first."""
    count = 0
    for padding in (1, 2, 3, 4, 5, 9):
        for batch in (0, 2, None):
            lead = [3] if batch is None else [batch, 3]
            x = torch.randn(*lead, *[4, 5, 6][:spatial])
            module = getattr(nn, f"Conv{spatial}d")(3, 2, 2, padding=padding, padding_mode=mode)
            function = getattr(functional, f"conv{spatial}d")
            expected = outcome(lambda m=module, x=x: m(x))
            parameters, options = module.parameters(), {"padding": padding, "padding_mode": mode}
            assert outcome(lambda: function(x, *parameters, **options)) == expected  # noqa: B023
            if batch is not None:  # what checks where nothing computes
                given = x, *module.parameters(), 1, padding, 1, 1, mode, None
                assert outcome(lambda: arguments.check(spatial, *given)) == expected  # noqa: B023
            count += expected is not None
    assert count == 0 if mode == "replicate" else count > 0


TRANSFORMS = {
    "vmap": lambda f: vmap(f, (0, None)),
    "grad": lambda f: grad(lambda x, w: f(x, w).sum()),
    "jvp": lambda f: lambda x, w: jvp(f, (x, w), (x, w)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_have_torchs_errors(transform):
    for given in ((X[:, :3], W), (X, torch.randn(6, 4, 9, 9)), (X, W[:5, :2]), (X[:, 0, 0], W)):
        found, expected = (outcome(lambda f=f, g=given: transform(f)(*g)) for f in (functional.conv2d, F.conv2d))
        assert found == expected is not None


def test_the_twin_has_torchs_errors():
    kinds = {name: [f for f in FAULTS[name] if not isinstance(f, (str, float, bool, type(None)))] for name in NAMES}
    kinds |= {"padding": [-1, (1, 2, 3), (), "foo"], "bias": FAULTS["bias"][:2], "input": FAULTS["input"][:4]}
    kinds |= {"weight": [*FAULTS["weight"][:6], torch.randn(6, 4, 9, 9)], "stride": FAULTS["stride"][:6]}
    for name, faults in kinds.items():
        for fault in faults:
            given = {**GOOD, name: fault}.values()
            expected = outcome(lambda g=given: F.conv2d(*g))
            if expected is not None and "match the convolution" not in expected[1]:
                assert outcome(lambda g=given: reference.conv2d(*g)) == expected


OWN = {
    "mode": (lambda f: f(X, W, padding_mode="mirror"), "mirror"),
    "pairs": (lambda f: f(X, W, padding=((1, 1), (2, 2), (3, 3))), "expected padding to be a single integer value or"),
    "a pair too long": (lambda f: f(X, W, padding=((1, 1, 1), (2, 2))), "integer"),
    "negative pair": (lambda f: f(X, W, padding=((1, -1), (2, 2))), "egative padding"),
    "no pixels to replicate": (
        lambda f: f(X[:, :, :0], W, padding=2, padding_mode="replicate"),
        "other non-zero|replicate",
    ),
    "meta weight": (lambda f: f(X, W.to("meta")), "weight"),
}


@pytest.mark.parametrize("what", OWN)
def test_errors_of_ours(what):
    attempt, text = OWN[what]
    with pytest.raises((RuntimeError, TypeError, NotImplementedError), match=text):
        attempt(functional.conv2d)


CHANGES = (lambda t: t[:1], lambda t: t.long(), lambda t: t.double(), lambda t: t[None], lambda t: t.cfloat())
BAD = [(3, [0, 1]), (3, [1]), (4, [1, 1]), (4, [1, 1, -1, 1]), (5, [1, -1]), (6, 0), (6, 3), (7, "foo")]


def test_bad_calls_of_the_operators():
    """Wrong sizes, types and lists raise, whichever argument they are in."""
    numbers = ([1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros")
    g = torch.randn(2, 6, 8, 8)
    calls = [
        (forward, (X, W, B, *numbers, "none"), 3),
        (input_gradient, (g, W, X.shape, *numbers), 2),
        (weight_gradient, (X, g, W.shape, *numbers, True), 2),
    ]
    for op, given, tensors in calls:
        op(*given)
        for i in range(tensors):
            for change in (
                lambda t: t[:1],
                lambda t: t.long(),
                lambda t: t.double(),
                lambda t: t[None],
                lambda t: t.cfloat(),
            ):
                wrong = [change(t) if i == j else t for j, t in enumerate(given)]
                if op is forward and i == 0 and wrong[0].shape == X[:1].shape and wrong[0].dtype == X.dtype:
                    continue  # a smaller batch
                with pytest.raises(RuntimeError):
                    op(*wrong)
        for at, bad in (
            (3, [0, 1]),
            (3, [1]),
            (4, [1, 1]),
            (4, [1, 1, -1, 1]),
            (5, [1, -1]),
            (6, 0),
            (6, 3),
            (7, "foo"),
        ):
            with pytest.raises(RuntimeError):
                op(*[bad if j == at else t for j, t in enumerate(given)])
    for size in ([2, 4, 8], [2, 4, 9, 8], [2, 3, 8, 8], [1, 4, 8, 8], [2, 4, -8, 8]):
        with pytest.raises(RuntimeError):
            input_gradient(g, W, size, *numbers)
    for size in ([6, 4, 3], [6, 4, 3, 4], [6, 3, 3, 3], [5, 4, 3, 3], [6, 4, 0, 3], [6, 4, -3, 3]):
        with pytest.raises(RuntimeError):
            weight_gradient(X, g, size, *numbers, True)
