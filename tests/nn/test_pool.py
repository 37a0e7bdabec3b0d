"""The pooling modules beside torch's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pykernels
from tests.helpers import assert_same_bits, outcome

MODULES = {
    "MaxPool": [(2,), (3, 2, 1), {"kernel_size": 3, "stride": 2, "dilation": 2, "ceil_mode": True}],
    "AvgPool": [(2,), (3, 2, 1), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}],
    "AdaptiveMaxPool": [(3,), (1,)],
    "AdaptiveAvgPool": [(3,), (1,)],
}
CASES = [(name, dims, given) for name, each in MODULES.items() for dims in (1, 2, 3) for given in each]


def pair(name, dims, given):
    options = {"args": given} if isinstance(given, tuple) else {"kwargs": given}
    classes = [getattr(where, f"{name}{dims}d") for where in (pykernels, nn)]
    return [one(*options.get("args", ()), **options.get("kwargs", {})) for one in classes]


@pytest.mark.parametrize(("name", "dims", "given"), CASES, ids=str)
def test_in_the_place_of_torchs(device, name, dims, given):
    ours, theirs = pair(name, dims, given)
    assert isinstance(ours, type(theirs)) and repr(ours) == repr(theirs) and not ours.state_dict()
    for shape in ((2, 3), (3,)):
        x = torch.randn(*shape, *[9] * dims, device=device)
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            found = []
            for one in (module, theirs):
                leaf = x.clone().requires_grad_()
                y = one(leaf)
                found.append({"y": y.detach(), "grad": torch.autograd.grad(y.sum(), leaf)[0]})
            torch.testing.assert_close(*found)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_indices_and_back(device, dims):
    x = torch.randn(2, 3, *[8] * dims, device=device)
    for name in ("MaxPool", "AdaptiveMaxPool"):
        size = 2 if name == "MaxPool" else 4
        ours, theirs = (getattr(w, f"{name}{dims}d")(size, return_indices=True) for w in (pykernels, nn))
        found, expected = ours(x), theirs(x)
        assert_same_bits({"y": found[0], "at": found[1]}, {"y": expected[0], "at": expected[1]})
        back = [getattr(w, f"MaxUnpool{dims}d")(2)(*found) for w in (pykernels, nn)]
        assert torch.equal(*back)
    with_size = [getattr(w, f"MaxUnpool{dims}d")(2)(*found, output_size=[9] * dims) for w in (pykernels, nn)]
    assert torch.equal(*with_size)


def test_divisor_and_lists(device):
    x = torch.randn(2, 3, 9, 12, device=device)
    for options in ({"kernel_size": (2, 3), "divisor_override": 5}, {"kernel_size": [2, 3], "stride": [1, 2]}):
        torch.testing.assert_close(pykernels.AvgPool2d(**options)(x), nn.AvgPool2d(**options)(x))
    adaptive = [w.AdaptiveAvgPool2d((None, 5))(x) for w in (pykernels, nn)]
    torch.testing.assert_close(*adaptive)


def test_in_a_network(device):
    """Convolution and pooling, channels last, with torch.compile and as torch's own."""
    torch.manual_seed(0)
    made = [
        nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), w.MaxPool2d(2), nn.Conv2d(6, 8, 3), w.AdaptiveAvgPool2d(2))
        for w in (pykernels, nn)
    ]
    made[1].load_state_dict(made[0].state_dict())
    x = torch.randn(4, 3, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    found = []
    for net in made:
        net.to(device, memory_format=torch.channels_last)
        y = net(x)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(net.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


WRONG = {
    "no kernel": lambda w: w.MaxPool2d(),
    "kernel": lambda w: w.MaxPool2d(9)(torch.randn(1, 3, 8, 8)),
    "padding": lambda w: w.AvgPool2d(3, padding=2)(torch.randn(1, 3, 8, 8)),
    "dimensions": lambda w: w.MaxPool2d(2)(torch.randn(8, 8)),
    "adaptive": lambda w: w.AdaptiveAvgPool2d(-1)(torch.randn(1, 3, 8, 8)),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors(cpu_only, what):
    found, expected = (outcome(lambda w=w: WRONG[what](w)) for w in (pykernels, nn))
    assert found is not None and found[0] == expected[0] and (found == expected or "__init__" in found[1])
