"""conv1d, conv2d and conv3d against their twin in float64 and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pykernels import functional, reference
from tests.helpers import (
    LOW,
    assert_equal,
    assert_same_bits,
    drawn,
    outcome,
    python,
    with_gradients,
)

from .conv_cases import DTYPES, MODES, SPACE, Conv, by_torch, call, check_values, every_dtype, run

CHANNELS = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65]
LARGER = [
    Conv(2, 1, 40, 40, 14, 2, 3), Conv(1, 1, 300, 20, 3, 2, 3), Conv(1, 1, 3, 20, 40, 2, 7, 2),
    Conv(3, 2, 20, 24, 200, 1, 9), Conv(2, 1, 20, 70, 9, 2, 1), Conv(2, 1, 8, 8, 5, 3, 3, layout="channels last"),
    Conv(2, 1, 64, 33, 12, layout="channels last"),
]  # fmt: skip


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@drawn(150, of=Conv, **SPACE)
def test_against_float64(device, dtype, case):
    check_values(case, dtype, device)


@pytest.mark.isa
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_tail(device, channels):
    """Of both kinds of channels, and of the places."""
    layout = "channels last" if channels % 2 else "planar"
    for dtype in DTYPES:
        check_values(Conv(1, 1, 3, channels, 40, 1, 3, seed=channels), dtype, device)
        check_values(Conv(2, 1, channels, 5, 6, seed=channels, layout=layout), dtype, device)
        check_values(Conv(1, 2, 4, channels, 9, relu=True, layout=layout), dtype, device)


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("layout", ["planar", "channels last"])
@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_depthwise(device, dtype, layout, multiplier):
    for groups in (1, 5, 16, 33):
        for stride, dilation in ((1, 1), (2, 1), (1, 2)):
            case = Conv(2, groups, 1, multiplier, 9, 2, 3, stride, dilation, seed=groups, layout=layout)
            check_values(case, dtype, device)
    check_values(Conv(1, 7, 1, multiplier, 20, 1, 5, mode="circular", layout=layout), dtype, device)
    check_values(Conv(1, 4, 1, multiplier, 3, 3, 3, padding="same", layout=layout), dtype, device)


@drawn(100, of=Conv, **{**SPACE, "layout": ["planar", "channels last"]})
def test_equals_torch(device, case):
    if case.mode == "zeros" or case.batch:  # (torch does not pad every batch of nothing)
        assert_equal(run(functional, case, torch.float64, device), run(F, case, torch.float64, device), 1e-11)


@every_dtype
@pytest.mark.parametrize("case", LARGER, ids=str)
def test_larger(device, dtype, case):
    check_values(case, dtype, device)


# -- paddings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_paddings_by_every_name(device, mode, spatial):
    """A number, lists and pairs that say the same give the same bits."""
    draw = {"dtype": torch.float64, "device": device}
    x, w = torch.randn(2, 2, *[5] * spatial, **draw), torch.randn(3, 2, *[3] * spatial, **draw)

    def padded(padding, **options):
        return {"": getattr(functional, f"conv{spatial}d")(x, w, padding=padding, padding_mode=mode, **options)}

    first = padded(2)
    for same in ([2], (2,) * spatial, [(2, 2)], ((2, 2),) * spatial, "full", torch.tensor(2)):
        assert_same_bits(padded(same), first)
    assert_same_bits(padded("valid"), padded(0))
    assert_same_bits(padded("same", dilation=2), padded(2, dilation=2))
    assert_same_bits(padded([2, *[(1, 0)] * (spatial - 1)]), padded([(2, 2), *[(1, 0)] * (spatial - 1)]))


@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["tensor", "array"])
def test_numbers_that_change(make):
    """Each call takes what they are then."""
    x, w = torch.randn(2, 2, 9, 9), torch.randn(3, 2, 3, 3)
    for name, first, then in (("stride", 1, 3), ("padding", 1, 2), ("dilation", 1, 2)):
        number = make(first)
        for value in (first, then):
            number[...] = value
            expected = F.conv2d(x, w, **{name: value})
            torch.testing.assert_close(functional.conv2d(x, w, **{name: number}), expected)
            torch.testing.assert_close(functional.conv2d(x, w, **{name: [number, number]}), expected)
            torch.testing.assert_close(functional.conv2d(x, w, **{name: (number, value)}), expected)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_gives_the_inputs_size_as_torchs(device, kernel, dilation):
    x, w = torch.randn(1, 2, 9, 7, device=device), torch.randn(3, 2, kernel, 2, device=device)
    found, expected = (f(x, w, padding="same", dilation=dilation) for f in (functional.conv2d, F.conv2d))
    assert found.shape == (1, 3, 9, 7)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", MODES[1:])
def test_padding_up_to_its_limit(device, mode):
    most = {"reflect": 3, "circular": 4, "replicate": 9}[mode]
    options = {"stride": 1, "padding": most, "dilation": 1, "groups": 1, "padding_mode": mode, "activation": None}
    leaves = {n: torch.randn(s, dtype=torch.float64, device=device).requires_grad_()
              for n, s in (("input", (1, 2, 4, 4)), ("weight", (2, 2, 2, 3)))}  # fmt: skip
    found = functional.conv2d(*leaves.values(), padding=most, padding_mode=mode)
    expected = by_torch(*leaves.values(), options=options)
    assert_equal(with_gradients({"y": found}, leaves), with_gradients({"y": expected}, leaves))


# -- layouts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("layout", ["planar", "channels last", "mixed"])
def test_memory_formats_are_torchs(cpu_only, spatial, layout):
    leaves = Conv(spatial=spatial, layout=layout).tensors(torch.float32)
    formats = []
    for where in (functional, F):
        y = call(where, Conv(spatial=spatial), leaves)
        x_grad, w_grad, _ = torch.autograd.grad(y, leaves.values(), torch.ones_like(y))
        formats.append([torch._prims_common.suggest_memory_format(t) for t in (y, x_grad, w_grad)])
    assert formats[0] == formats[1]


def test_gradients_with_any_strides(device):
    """Expanded, turned and channels-last gradients give what contiguous ones give."""
    leaves = Conv(3, 2, 4, 5, 6).tensors(torch.float64, device)
    y = call(functional, Conv(3, 2, 4, 5, 6), leaves)
    drawn = torch.randn(y.shape[-1], dtype=torch.float64, device=device).expand(y.shape)
    turned = torch.randn(y.shape[::-1], dtype=torch.float64, device=device).permute(3, 2, 1, 0)
    for grad in (torch.ones((), dtype=torch.float64, device=device).expand(y.shape), drawn, turned):
        found, expected = (
            dict(zip(leaves, torch.autograd.grad(y, leaves.values(), g, retain_graph=True), strict=True))
            for g in (grad, grad.contiguous())
        )
        assert_equal(found, expected, 1e-14)


# -- meaning ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("layout", ["planar", "channels last"])
@pytest.mark.parametrize("mode", MODES)
@every_dtype
def test_what_is_no_number_stays_in_its_places(device, dtype, mode, layout, bad):
    """Of one pixel, one weight, and one place of the gradient; all else has the bits of the clean run."""
    case = Conv(2, 2, 3, 4, 6, padding="pairs", mode=mode, layout=layout, seed=5)
    given = {n: t.detach() for n, t in case.tensors(dtype, device).items()}
    y = call(functional, case, given)
    given["grad"] = torch.randn_like(y)

    def results(where, tensors):
        leaves = {n: tensors[n].clone().requires_grad_() for n in ("input", "weight", "bias")}
        y = call(where, case, leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves.values(), tensors["grad"])]

    clean = results(functional, given)
    for name, place in (("input", (1, 2, 2, 1)), ("weight", (1, 0, 0, 0)), ("grad", (1, 5, 1, 2))):
        dirty = {**given, name: given[name].clone()}
        dirty[name][place] = bad
        found = results(functional, dirty)
        expected = results(reference, {n: t.double() for n, t in dirty.items()})
        for one, other, before in zip(found, expected, clean, strict=True):
            finite = other.isfinite()
            assert torch.equal(one.isfinite(), finite), f"of {name}"
            assert torch.equal(one[finite], before[finite]), f"of {name}"
        assert not found[0].isfinite().all() or not found[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_empty_batches_and_no_channels(device, spatial, shape):
    """As torch's: of a batch of nothing weights have a gradient of zeros; no channels convolve to none."""
    for channels in (3, 0):
        size = (shape[0], channels, *[8] * spatial)
        shapes = size, (4, channels, *[3] * spatial), (4,)
        found = []
        for where in (functional, F):
            leaves = [torch.ones(s, device=device, requires_grad=True) for s in shapes]
            y = getattr(where, f"conv{spatial}d")(*leaves, padding=1)
            found.append([y, *torch.autograd.grad(y.sum(), leaves, allow_unused=True)])
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64, torch.complex128], ids=str)
def test_dtypes_without_kernels_are_torchs(cpu_only, dtype):
    x, w, b = (torch.randint(0, 9, s).to(dtype) for s in ((2, 4, 6, 7), (6, 2, 3, 2), (6,)))
    for options in ({}, {"padding": "same"}, {"padding": (1, 2), "stride": 2}):
        assert torch.equal(functional.conv2d(x, w, b, groups=2, **options), F.conv2d(x, w, b, groups=2, **options))
    found = functional.conv2d(x, w, b, groups=2, padding=((0, 1), (2, 0)), padding_mode="circular")
    assert torch.equal(found, F.conv2d(F.pad(x, (2, 0, 0, 1), mode="circular"), w, b, groups=2))
    if not dtype.is_complex:
        found = functional.conv2d(x, w - 5, b, groups=2, padding="full", activation="relu")
        assert torch.equal(found, F.conv2d(x, w - 5, b, groups=2, padding=(2, 1)).relu())
    else:
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(functional.conv2d(leaf, w, groups=2).abs().sum(), leaf)
        assert found.any()


def test_bool_is_refused_as_torch_refuses_it(cpu_only):
    x, w = torch.ones(1, 2, 4, 4).bool(), torch.ones(3, 2, 3, 3)
    found, expected = (outcome(lambda f=f: f(x, w.bool())) for f in (functional.conv2d, F.conv2d))
    assert found == expected and found is not None


def test_relu_ends_at_zero(device):
    leaves = Conv().tensors(torch.float32, device)
    plain = {"y": torch.relu(functional.conv2d(*leaves.values(), padding=1))}
    fused = {"y": functional.conv2d(*leaves.values(), padding=1, activation="relu")}
    assert (fused["y"] == 0).any() and (fused["y"] > 0).any()
    assert_same_bits(with_gradients(fused, leaves), with_gradients(plain, leaves))


# -- what is kept, and by whom it is computed -------------------------------------------------------------------------
def test_nothing_but_what_is_needed_is_saved(device):
    for needing, kept_of in (
        ("input", {"weight"}),
        ("weight", {"input"}),
        ("bias", set()),
        ("all", {"input", "weight"}),
    ):
        leaves, kept = Conv().tensors(torch.float32, device), []
        given = {n: t.detach().requires_grad_(needing in (n, "all")) for n, t in leaves.items()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.append(t) or t, lambda t: t):
            functional.conv2d(*given.values())
        assert {t.data_ptr() for t in kept} == {given[n].data_ptr() for n in kept_of}


def test_changed_operands_are_noticed(device):
    leaves = Conv().tensors(torch.float32, device)
    weight = leaves["weight"].detach().clone()
    y = functional.conv2d(leaves["input"], weight)
    weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = functional.conv2d(leaves["input"], leaves["weight"], activation="relu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.mul_(2).sum().backward()


THREADED = [
    Conv(5, 1, 9, 33, 30, 2, 3), Conv(2, 3, 8, 16, 25, 2, 3, 2), Conv(4, 1, 64, 48, 12, 2, 1, padding="none"),
    Conv(3, 20, 1, 1, 25, 2, 3), Conv(2, 1, 3, 16, 41, 2, 7, 2), Conv(1, 1, 5, 1, 300, 1, 9), Conv(2, 1, 4, 8, 9, 3, 3),
]  # fmt: skip


@pytest.mark.isa
@every_dtype
@pytest.mark.parametrize("layout", ["planar", "channels last"])
def test_same_bits_for_any_number_of_threads(threads, dtype, layout):
    for case in THREADED:
        given = Conv(**{**vars(case), "layout": layout})
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(run(functional, given, dtype))
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_bias_alone_has_the_same_bits_for_any_number_of_threads(threads, channels):
    x, w, b = torch.randn(1, 1, 200_000), torch.randn(channels, 1, 1), torch.zeros(channels, requires_grad=True)
    weighting, found = torch.randn(1, channels, 200_000), []
    for count in (1, 2, 3):
        threads(count)
        found.append({"": torch.autograd.grad(functional.conv1d(x, w, b), b, weighting)[0]})
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])
    torch.testing.assert_close(found[0][""], weighting.sum((0, 2)))


FORKED = """
import torch, pykernels
from torch.utils.data import DataLoader, Dataset

class Features(Dataset):
    def __init__(self):
        self.layers = [pykernels.Conv2d(8, 16, 3, padding=1), pykernels.Conv2d(8, 8, 3, groups=8)]
        self.data = torch.randn(6, 4, 8, 20, 20)
    def __len__(self):
        return len(self.data)
    def __getitem__(self, index):
        layer = self.layers[index % 2]
        layer.zero_grad()
        y = layer(self.data[index])
        y.square().sum().backward()
        return y.detach(), layer.weight.grad.clone()

torch.set_num_threads(2)
features = Features()
expected = [features[i] for i in range(len(features))]      # the parent's threads exist before the fork
loader = DataLoader(features, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
for (y, gradient), (one, other) in zip(loader, expected):
    assert torch.equal(y, one) and torch.equal(gradient, other)
assert torch.equal(features[0][0], expected[0][0])          # and the parent still works
print("fine")
"""


def test_forked_workers(cpu_only):
    assert python(FORKED, timeout=120).stdout.strip() == "fine"


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_long_sums_in_low_precision(device, dtype):
    """4608 products a place: a sum kept in the low type would be off by tens of its units."""
    x, w = torch.rand(1, 512, 5, 5, device=device).to(dtype), torch.rand(2, 512, 3, 3, device=device).to(dtype)
    truth = F.conv2d(x.double(), w.double())
    found = functional.conv2d(x, w)
    assert ((found.double() - truth).abs() <= torch.finfo(dtype).eps * truth).all()
