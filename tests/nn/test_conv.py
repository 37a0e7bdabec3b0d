"""Conv1d, Conv2d and Conv3d in the place of torch's."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import fusion, parametrizations, parametrize, prune

import pykernels
from tests.helpers import assert_equal, assert_same_bits, outcome, with_gradients

OURS = {getattr(nn, n): getattr(pykernels, n) for n in ("Conv1d", "Conv2d", "Conv3d")}
kind = pytest.mark.parametrize("kind", OURS, ids=lambda cls: cls.__name__)
OPTIONS = [
    {}, {"bias": False}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"padding": "valid"},
    {"groups": 2}, {"groups": 4, "padding": 1}, {"padding": 2, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "circular"}, {"dtype": torch.float64},
    {"padding": 1, "padding_mode": "replicate", "groups": 2, "stride": 2},
]  # fmt: skip
options = pytest.mark.parametrize("given", OPTIONS, ids=str)


def spatial(kind) -> int:
    return int(kind.__name__[4])


def image(kind, channels=4, size=7, batch=2, **about):
    return torch.randn(batch, channels, *[size] * spatial(kind), **about)


def pair(kind, *args, **given):
    """Ours and torch's with the same weights."""
    torch.manual_seed(5)
    theirs = kind(*args, **given)
    torch.manual_seed(5)
    return OURS[kind](*args, **given), theirs


# -- construction -----------------------------------------------------------------------------------------------------
@kind
@options
def test_the_same_module(kind, given, device):
    """Parameters drawn alike, attributes, text, `isinstance`, and what a state holds."""
    ours, theirs = pair(kind, 4, 8, 3, **given, device=device)
    assert isinstance(ours, kind) and isinstance(ours, nn.modules.conv._ConvNd)
    assert repr(ours) == repr(theirs)
    assert_same_bits(dict(ours.state_dict()), dict(theirs.state_dict()))
    for name in (*theirs.__constants__, "transposed", "_reversed_padding_repeated_twice"):
        assert getattr(ours, name) == getattr(theirs, name), name


@kind
def test_random_numbers_go_on_alike(kind):
    after = []
    for cls in (OURS[kind], kind):
        torch.manual_seed(3)
        cls(4, 6, 3, padding=1)
        after.append(torch.rand(1))
    assert torch.equal(*after)


WRONG = [
    ((3, 4, 3), {"groups": 2}), ((4, 3, 3), {"groups": 2}), ((4, 4, 3), {"groups": 0}),
    ((4, 4, 3), {"padding": "same", "stride": 2}), ((4, 4), {}),
    ((4, 4, 3), {"nothing": 1}), ((4, 4, 3), {"stride": "a"}), ((4, -4, 3), {}),
]  # fmt: skip


@kind
def test_construction_errors_are_torchs(kind):
    for args, given in WRONG:
        found, expected = (outcome(lambda c=c: c(*args, **given)) for c in (OURS[kind], kind))  # noqa: B023
        if expected is None:
            assert found is None
            continue
        assert found == expected
    for given in ({"padding": "foo"}, {"padding_mode": "foo"}):  # (a set in the text, in any order)
        found, expected = (outcome(lambda c=c: c(4, 4, 3, **given)) for c in (OURS[kind], kind))  # noqa: B023
        assert found[0] is expected[0] and sorted(found[1]) == sorted(expected[1])


def test_construction_errors_of_ours():
    with pytest.raises(ValueError, match="expected activation None or 'relu', got 'gelu'"):
        pykernels.Conv2d(2, 3, 3, activation="gelu")
    with pytest.raises(RuntimeError, match="expected padding to be a single integer value or a list of 2 values"):
        pykernels.Conv2d(2, 3, 3, padding=((1, 1), (2, 2), (3, 3)))


@kind
def test_numbers_of_other_types(kind):
    """Arrays and tensors are taken as torch's module takes them; what cannot run there does not run here."""
    ones = [1] * spatial(kind)
    for numbers in (np.array(ones), torch.tensor(ones), np.int64(1), [np.int64(1)] * spatial(kind), 1.5, True, None):
        for mode in ("zeros", "reflect"):
            ours, theirs = pair(kind, 4, 6, 3, padding=numbers, padding_mode=mode, stride=np.array(ones))
            assert repr(ours) == repr(theirs)
            x = image(kind)
            expected = outcome(lambda m=theirs: m(x))  # noqa: B023
            if expected is None:
                torch.testing.assert_close(ours(x), theirs(x))
            else:
                assert outcome(lambda m=ours: m(x))[0] is expected[0]  # noqa: B023
    assert outcome(lambda: kind(4, 6, 3, padding=np.array(1))) == outcome(
        lambda: OURS[kind](4, 6, 3, padding=np.array(1))
    )


@kind
def test_padding_modes_go_by_what_torchs_go_by(kind):
    """Not by `padding`, but by what the constructor made of it; that may be set later, and be negative."""
    dims = spatial(kind)
    for mode in ("reflect", "replicate", "circular"):
        for change in (
            lambda m: setattr(m, "_reversed_padding_repeated_twice", [2, 1, 0, 3, 1, 2][: 2 * dims]),
            lambda m: setattr(m, "_reversed_padding_repeated_twice", [-1, 2] * dims),
            lambda m: setattr(m, "_reversed_padding_repeated_twice", [1] * (2 * dims + 2)),
            lambda m: setattr(m, "_reversed_padding_repeated_twice", [9, 0] * dims),
            lambda m: setattr(m, "padding", (0,) * dims),
        ):
            ours, theirs = pair(kind, 4, 6, 3, padding=1, padding_mode=mode)
            for module in (ours, theirs):
                change(module)
            for x in (image(kind), image(kind)[0]):
                expected = outcome(lambda: theirs(x))  # noqa: B023
                assert outcome(lambda: ours(x)) == expected  # noqa: B023
                if expected is None:
                    torch.testing.assert_close(ours(x), theirs(x))


# -- values -----------------------------------------------------------------------------------------------------------
@kind
@options
def test_values_and_gradients(kind, given, device):
    ours, theirs = (m.double() for m in pair(kind, 4, 8, 3, **given, device=device))
    for x in (image(kind, device=device).double(), image(kind, device=device).double()[0]):
        found = []
        for module in (ours, theirs):
            leaves = {"input": x.clone().requires_grad_(), **dict(module.named_parameters())}
            found.append(with_gradients({"y": module(leaves["input"])}, leaves))
        assert_equal(*found)


@kind
def test_what_is_more_than_torchs(kind, device):
    x, dims = image(kind, device=device), spatial(kind)
    full = OURS[kind](4, 6, 3, padding="full", dilation=2, device=device)
    assert "padding=full" in repr(full) and full(x).shape[2:] == (11,) * dims
    torch.testing.assert_close(full(x), getattr(F, f"conv{dims}d")(x, full.weight, full.bias, padding=4, dilation=2))
    pads = [(i, 2) for i in range(dims)]
    around = OURS[kind](4, 6, 3, padding=pads, padding_mode="reflect", activation="relu", device=device)
    assert "activation=relu" in repr(around) and f"padding={tuple(pads)}" in repr(around)
    padded = F.pad(x, [n for p in reversed(pads) for n in p], mode="reflect")
    expected = torch.relu(getattr(F, f"conv{dims}d")(padded, around.weight, around.bias))
    assert around._reversed_padding_repeated_twice == [n for p in reversed(pads) for n in p]
    for module in (around, copy.deepcopy(around), pickle.loads(pickle.dumps(around))):
        torch.testing.assert_close(module(x), expected)


@kind
def test_errors_in_use_are_torchs(kind):
    for given in ({}, {"padding": 9, "padding_mode": "reflect"}, {"padding": 9, "padding_mode": "circular"}):
        ours, theirs = pair(kind, 4, 6, 3, **given)
        for x in (image(kind, 3), image(kind, size=2), image(kind)[0, 0], image(kind)[None], image(kind).double()):
            found, expected = (outcome(lambda m=m: m(x)) for m in (ours, theirs))  # noqa: B023
            assert found == expected is not None


# -- PyTorch's tools --------------------------------------------------------------------------------------------------
def model(where, activation=None):
    """A small residual net: strided, pointwise, depthwise and dilated layers with batch norms."""
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = where.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.deep = where.Conv2d(8, 8, 3, padding="same", groups=8)
            self.wide = where.Conv2d(8, 16, 1)
            self.back = where.Conv2d(16, 8, 3, padding=2, dilation=2, padding_mode="reflect")
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.norm(self.stem(x)).relu()
            x = x + self.back(self.wide(self.deep(x)).relu())
            return self.head(x.mean((2, 3)))

    return Net()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_model(device, channels_last):
    """A step of training in either memory format; the layers keep the format."""
    found = []
    for where in (pykernels, nn):
        net, x = model(where).to(device).double(), torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(2))
        x = x.to(device).double()
        if channels_last:
            net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net(x).square().sum().backward()
        optimizer.step()
        found.append({"y": net(x).detach(), **{n: p.detach() for n, p in net.named_parameters()}})
        assert net.stem(x).is_contiguous(memory_format=torch.channels_last) is channels_last
        assert net.back(net.wide(net.stem(x))).is_contiguous(memory_format=torch.channels_last) is channels_last
        assert net.stem.weight.grad.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert_equal(*found)


def test_state_of_torchs_model_and_back(device):
    ours, theirs = model(pykernels).to(device), model(nn).to(device)
    with torch.no_grad():
        [p.uniform_(-0.1, 0.1) for p in theirs.parameters()]
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    assert not any(ours.load_state_dict(torch.load(file, weights_only=True)))
    x = torch.randn(2, 3, 12, 12, device=device)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert not any(theirs.load_state_dict(ours.state_dict()))


def test_pickled_before_there_were_activations(device):
    """A state without the attribute, and a torch module whose class is exchanged."""
    theirs = nn.Conv2d(3, 4, 3, device=device)
    x = torch.randn(1, 3, 5, 5, device=device)
    expected = theirs(x)
    theirs.__class__ = pykernels.Conv2d
    torch.testing.assert_close(theirs(x), expected)
    assert "activation" not in repr(theirs)


def test_hooks(device):
    layer, seen = pykernels.Conv2d(3, 4, 3, device=device), []
    layer.register_forward_pre_hook(lambda m, args: seen.append("before") or (args[0] + 1,))
    layer.register_forward_hook(lambda m, args, y: seen.append("behind") or y * 2)
    layer.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append("backward") or (grad_in[0] * 3,))
    x = torch.randn(1, 3, 5, 5, device=device, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, 2 * F.conv2d(x + 1, layer.weight, layer.bias))
    (found,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, 6 * torch.autograd.grad(F.conv2d(x, layer.weight).sum(), x)[0])
    assert seen == ["before", "behind", "backward"]


@kind
def test_parametrizations_and_pruning(kind, device):
    for change in (
        lambda m: parametrizations.weight_norm(m, dim=0),
        lambda m: parametrizations.spectral_norm(m),
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ):
        ours, theirs = (m.double() for m in pair(kind, 4, 6, 3, device=device))
        for module in (ours, theirs):
            torch.manual_seed(3)
            change(module)
            module.eval()
        x = image(kind, device=device).double()
        torch.testing.assert_close(ours(x), theirs(x))
        gradients = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (ours, theirs)]
        torch.testing.assert_close(*gradients)
        if parametrize.is_parametrized(ours):
            assert isinstance(ours, OURS[kind])
            parametrize.remove_parametrizations(ours, "weight")
            assert type(ours) is OURS[kind]


@kind
def test_lazy_conversion(kind, device):
    """A lazy layer that becomes one of ours, made as torch makes its own."""
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cls in (OURS[kind], kind):

            class Lazy(nn.modules.conv._LazyConvXdMixin, cls):
                cls_to_become = cls

                def __init__(self, *args, **given):
                    super(nn.modules.conv._LazyConvXdMixin, self).__init__(0, 0, 1, bias=False)
                    self.weight = nn.UninitializedParameter()
                    self.bias = nn.UninitializedParameter()
                    self.out_channels, self.kernel_size = 6, (3,) * spatial(kind)

                def _get_num_spatial_dims(self):
                    return spatial(kind)

            torch.manual_seed(2)
            lazy = Lazy().to(device)
            x = image(kind, generator=torch.Generator().manual_seed(1)).to(device)
            made[cls] = lazy(x)
            assert type(lazy) is cls and lazy.weight.shape[:2] == (6, 4)
    torch.testing.assert_close(*made.values())


def test_fusion_with_batch_norm(device):
    found = []
    for where in (pykernels, nn):
        torch.manual_seed(4)
        conv, norm = where.Conv2d(3, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6)
        with torch.no_grad():
            [t.uniform_(0.5, 2) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
        conv, norm, x = conv.to(device).eval(), norm.to(device).eval(), torch.ones(1, 3, 6, 6, device=device)
        fused = fusion.fuse_conv_bn_eval(conv, norm)
        assert type(fused) is where.Conv2d
        torch.testing.assert_close(fused(x), norm(conv(x)))
        found.append(fused(x))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(device, dtype):
    found = []
    for where in (pykernels, nn):
        net = model(where).to(device)
        with torch.autocast(device.type, dtype):
            y = net(torch.ones(2, 3, 12, 12, device=device))
            inner = net.wide(net.stem(torch.ones(2, 3, 12, 12, device=device)))
        y.float().sum().backward()
        found.append([y, inner, *(p.grad for p in net.parameters())])
    assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]] and found[0][1].dtype == dtype
    torch.testing.assert_close(*(f[:2] for f in found), rtol=0.05, atol=0.05)


def test_initialisation_loops(device):
    """Other people's code asks `isinstance(m, nn.Conv2d)`."""

    def initialise(m):
        if isinstance(m, nn.Conv2d):
            nn.init.constant_(m.weight, 0.5)

    net = model(pykernels).to(device).apply(initialise)
    assert all((m.weight == 0.5).all() for m in net.modules() if isinstance(m, pykernels.Conv2d))
    assert sum(isinstance(m, pykernels.Conv2d) for m in net.modules()) == 4


def test_compiled_model(cpu_only):
    net = model(pykernels).double()
    fast = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (5, 7):
        x = torch.randn(batch, 3, 12, 12, dtype=torch.float64, requires_grad=True)
        found, expected = (with_gradients({"y": f(x)}, {"x": x}) for f in (fast, net))
        assert_equal(found, expected)
    torch._dynamo.reset()


def test_exported_model(cpu_only):
    net = model(pykernels).eval()
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(net, (torch.randn(3, 3, 12, 12),), dynamic_shapes=({0: batch},))
    x = torch.randn(6, 3, 12, 12)
    torch.testing.assert_close(program.module()(x), net(x))


def test_traced_models(cpu_only):
    """torch.fx has a layer's function as one node, as it has torch's; torch.jit traces torch's own."""
    net, x = model(pykernels).eval(), torch.randn(2, 3, 12, 12)
    graph = torch.fx.symbolic_trace(net)
    assert sum(node.target is pykernels.functional.conv2d for node in graph.graph.nodes) == 4
    torch.testing.assert_close(graph(x), net(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, x)
    torch.testing.assert_close(traced(x), net(x))
