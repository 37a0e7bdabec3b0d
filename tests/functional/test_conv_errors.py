"""What wrong calls of the convolutions and their operators raise: torch's errors, in torch's order."""

from __future__ import annotations

import random
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jvp, vmap

from pykernels import functional, reference
from pykernels.reference import conv_arguments as arguments
from tests.helpers import outcome

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
    "stride": [0, -1, (1, 2, 3), (1,), (), [], "a", None, 1.5, True, (1.0, 2), torch.tensor([1, 2]), (2, 0), [2]],
    "padding": [
        -1, (1, 2, 3), (1,), (), "same", "valid", "foo", None, 1.5, True, (0, -1), torch.tensor([1, 2]), 9, [2],
        (1.5, 1),
    ],
    "dilation": [0, -1, (1, 2, 3), (1,), (), "a", None, 1.5, 5, (5, 1), True],
    "groups": [0, -1, 2, 4, 7, 1.5, "a", None],
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
        if wrong.get("padding") != "same" or not isinstance(wrong.get("input"), list):
            raised += check(2, *{**GOOD, **wrong}.values())
    assert raised > 2000


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
    "activation": (lambda f: f(X, W, activation="gelu"), "expected activation"),
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
